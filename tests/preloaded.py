"""What whole runs of the tests fork from: a clean process that has the libraries loaded.

It runs nothing. A run that forks from it saves the ten seconds that imports take.
"""

import importlib

from cai.run.process import quiet

LIBRARIES = ["torch", "transformers", "datasets", "peft"]
TRAINERS = ["trl.trainer.sft_trainer", "trl.trainer.dpo_trainer", "cai.training.trainer"]
COMMANDS = ["cai.cli.run", "cai.run.worker"]
STAGES = ["cai.stages.feedback", "cai.stages.model_answers", "cai.stages.scores"]

quiet()  # as a command does before it loads them
for name in LIBRARIES + TRAINERS + COMMANDS + STAGES:
    importlib.import_module(name)
