"""What whole runs of the tests fork from: a clean process that has the libraries loaded.

It runs nothing. A run that forks from it saves the ten seconds that imports take.
"""

import importlib

from cai.run.process import quiet

LIBRARIES = ["torch", "transformers", "datasets", "peft"]
TRAINERS = ["trl.trainer.sft_trainer", "trl.trainer.dpo_trainer", "cai.training.trainer"]
COMMANDS = ["cai.cli.run", "cai.run.worker", "cai.stages.model_answers", "cai.stages.verdicts"]

quiet()  # as a command does before it loads them
for name in LIBRARIES + TRAINERS + COMMANDS:
    importlib.import_module(name)
