"""The stages: one config class (in cai.config) and one function `run(config, inputs, work, context)` each."""
