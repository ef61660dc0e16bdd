"""A run's folder, for reading: rows, numbers and models."""

import os
from pathlib import Path

import pyarrow.parquet as parquet
from datasets import Dataset

from cai.config.compose import saved
from cai.config.names import first_round, own_models
from cai.digest import JsonObject
from cai.errors import UsageError, nearest
from cai.report.metrics import each_metric
from cai.run.plan import stages, trained_inputs
from cai.stages.base import verb_context
from cai.store import run_folder
from cai.store.manifest import Manifest

# the files of rows that `rows` gives unless told another
ROWS = {
    "build": "instructions",
    "revise": "revisions",
    "label": "pairs",
    "evaluate": "answers",
}


class Run:
    """A run, as it is when it is asked: a run that goes on may have more the next time.

    `folder`: its folder, or its name in outputs/; without one, the newest run in outputs/.
    Raises UsageError where there is no such run.
    """

    def __init__(self, folder: str | Path | None = None):
        self.folder = run_folder.find_run(None if folder is None else os.fspath(folder))
        self._store = run_folder.Run(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def stages(self) -> list[str]:
        """The stages that are done, in order: sft, revise, sl_cai, label, dpo, ..."""
        names = [stage.name for stage in stages(saved(self.folder))]
        return [name for name in names if self._store.latest(name)]

    def rows(self, stage: str, file: str | None = None) -> Dataset:
        """The rows that a stage wrote; docs/run-folder.md has the columns.

        `file`: another file of the stage than its main one, such as "training" of revise.
        Raises UsageError where the stage is not done, or has no such rows.
        """
        manifest = self._manifest(stage)
        names = [name for name in manifest.files if name.endswith(".parquet")]
        name = f"{file or ROWS.get(first_round(stage), '')}.parquet"
        if name not in names:
            choices = ", ".join(name.removesuffix(".parquet") for name in names) or "none"
            raise UsageError(f"{stage} has no rows called '{file or ''}' (it has {choices})")
        out = self._store.folder(stage, manifest.key) / "out"
        return Dataset(parquet.read_table(out / name))

    def summary(self, stage: str) -> JsonObject:
        """What a stage has counted and measured. Raises UsageError where it is not done."""
        return self._manifest(stage).summary

    def metrics(self) -> Dataset:
        """What `evaluate` has measured, a row each: model, suite, metric, value, low, high, count.

        `low` and `high` are the 95 % interval; `count` is the number of answers.
        Raises UsageError where evaluate is not done.
        """
        rows = [
            {"model": model, "suite": suite, "metric": name, "count": None, **interval}
            for model, suite, name, interval in each_metric(self.summary("evaluate")["metrics"])
        ]
        return Dataset.from_list(rows)

    def model(self, name: str) -> str:
        """What open_engine and `from_pretrained` take of one of the run's models.

        `name`: base, sft, sl_cai, dpo, ... Of a stage that has published its adapter alone the
        whole model is made now, in the run's folder. Raises UsageError where it is not trained.
        """
        config = saved(self.folder)
        inputs = trained_inputs(config, self.folder)
        if name != "base" and name not in inputs:
            hint = nearest(name, own_models(config))
            done = ", ".join(["base", *inputs])
            raise UsageError(f"{self.folder} has no finished model '{name}'{hint} (it has {done})")
        context = verb_context("api", config, self.folder, config.constitution, inputs)
        return context.model_path(name)

    def _manifest(self, stage: str) -> Manifest:
        manifest = self._store.latest(stage)
        if manifest is None:
            hint = nearest(stage, self.stages())
            done = ", ".join(self.stages()) or "none"
            raise UsageError(f"{self.folder}: no stage '{stage}' is done{hint} (done: {done})")
        return manifest
