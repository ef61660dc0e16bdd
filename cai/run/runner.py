"""Runs what the plan says has to run: in order, each output published or refused."""

import contextlib
import logging
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from cai import __version__
from cai.config.names import own_engines
from cai.config.schema import Config
from cai.digest import plain
from cai.engines.base import check_ready
from cai.errors import CaiError, Interrupted, UsageError
from cai.method.constitution import Constitution
from cai.observe.log import enter_stage, log, open_log
from cai.redact import redacted
from cai.run.machines import Conductor, follow
from cai.run.outlook import Outlook
from cai.run.packages import missing_packages
from cai.run.plan import (
    NEW,
    STAGES,
    Step,
    check_settings,
    inputs_of,
    job_inputs,
    plan_run,
    selected_stages,
    stages,
    step_of,
)
from cai.run.process import run_in_process
from cai.run.worker import Job, run_stage
from cai.stages.base import Stage
from cai.store.files import write_json
from cai.store.manifest import Damaged, Manifest, verify_files
from cai.store.run_folder import Run

Tell = Callable[[str], None]

UP_TO_DATE = ": up to date"  # after a stage's name


def run_stages(config: Config, tell: Tell, patient: bool = False) -> dict[str, Manifest]:
    """Runs what has to run, in order. Returns every selected stage's manifest.

    `tell` shows a person each line; the run's log has it too. `patient`: waits for another process
    that holds the run's folder, where it would raise UsageError. Any but the first of several
    machines joins the first one's training, and returns no manifest. Raises CaiError.
    """
    check_settings(config)
    selected = selected_stages(config)
    if config.launcher.machines.rank:
        follow(config, tell)
        return {}
    run = Run(Path(config.outputs) / config.name)
    conductor = Conductor(run.root, config.launcher.machines)
    with run.lock(tell if patient else None) as lock, _logged(run), conductor.open():
        write_json(run.root / "run.json", {"schema": 1, "config": redacted(config)})
        outlook = _look_ahead(config, run, selected)
        for line in outlook.lines():
            tell(line)
        runner = _Runner(config, run, lock, selected, tell, conductor, outlook)
        for stage in stages(config):
            enter_stage(stage.name)
            runner.take(stage)
        run.remove_merged()
    return {name: manifest for name, manifest in runner.done.items() if name in selected}


def is_up_to_date(config: Config) -> bool:
    """Whether every selected stage is done, as far as manifests say. Raises UsageError."""
    if config.launcher.machines.rank:  # it has to tell the first machine so
        return False
    return _to_run(config, Run(Path(config.outputs) / config.name), selected_stages(config)) == []


def _to_run(config: Config, run: Run, selected: Sequence[str]) -> list[Step] | None:
    """The selected stages that are not done; None where a damaged one has to be seen to first."""
    try:
        steps = plan_run(config, run)
    except Damaged:
        return None
    return [step for step in steps if step.stage.name in selected and step.state != "done"]


def _look_ahead(config: Config, run: Run, selected: Sequence[str]) -> Outlook:
    return Outlook(config, _to_run(config, run, selected) or [])


@contextlib.contextmanager
def _logged(run: Run) -> Iterator[None]:
    """Opens the run's log, and logs how the run ends."""
    open_log(run.root)
    log("the run begins", version=__version__, host=socket.gethostname())
    try:
        yield
    except BaseException as error:
        traceback = None if isinstance(error, CaiError | Interrupted) else error
        kind = type(error).__name__
        log(str(error) or kind, logging.ERROR, traceback, kind=kind)
        raise
    finally:
        enter_stage("")
    log("the run is done")


class _Runner:
    """Takes one stage after the other, and remembers what is done."""

    def __init__(
        self,
        config: Config,
        run: Run,
        lock: int,
        selected: list[str],
        tell: Tell,
        conductor: Conductor,
        outlook: Outlook,
    ):
        self.config, self.run, self.lock, self.selected = config, run, lock, selected
        self.tell, self.conductor, self.outlook = tell, conductor, outlook
        self.law = Constitution.load(config.constitution)
        self.done: dict[str, Manifest] = {}
        self.outputs: dict[str, str | None] = {}
        self.checked = False

    def take(self, stage: Stage) -> None:
        """Runs a stage where it is selected and not done."""
        step = self._sound_step(stage)
        manifest = step.manifest
        if stage.name in self.selected:
            manifest = self._up_to_date(step) if manifest else self._run(step)
        self.outputs[stage.name] = manifest.output if manifest else None
        if manifest:
            self.done[stage.name] = manifest

    def _say(self, line: str, level: int = logging.INFO) -> None:
        self.tell(line)
        log(line, level)

    def _sound_step(self, stage: Stage) -> Step:
        """As step_of, with every file compared with its digest; what is damaged is moved aside."""
        while True:
            try:
                step = step_of(stage, self.config, self.run, self.law, self.outputs)
                if step.manifest and step.key:
                    verify_files(self.run.folder(stage.name, step.key), step.manifest)
                return step
            except Damaged as damaged:
                self._say(f"{stage.name}: {damaged}")
                self._say(f"{stage.name}: moved to {self.run.set_aside(damaged.folder)}")

    def _up_to_date(self, step: Step) -> Manifest:
        name, manifest = step.stage.name, step.manifest
        assert manifest is not None
        self.run.point_latest(name, manifest.key)
        # a process may have been killed before it removed this
        shutil.rmtree(self.run.folder(name, manifest.key) / "scratch", ignore_errors=True)
        self._say(f"{name}{UP_TO_DATE}")
        return manifest

    def _run(self, step: Step) -> Manifest:
        stage, key, config = step.stage, step.key, self.config
        names = inputs_of(stage, config)
        missing = [name for name in names if self.outputs[name] is None]
        if missing or key is None:
            order = [stage.name for stage in stages(config)]
            needed = ",".join(name for name in order if name in {*self.selected, *missing})
            raise UsageError(
                f"stage '{stage.name}' needs {', '.join(missing)}, which has not run with this "
                f"configuration; run with 'stages=[{needed}]', or without stages=..."
            )
        if not self.checked:
            check(config)
            self.checked = True
        manifests = {name: self.done[name] for name in names}
        self._heed(stage, manifests)
        self._say(f"{stage.name}: {step.why}")
        started = time.time()
        work, scratch = self.run.begin(stage.name, key)
        inputs = job_inputs(self.run, manifests)
        folders = (str(self.run.root), str(work), str(scratch))
        job = Job(stage.name, config, *folders, inputs, self.outlook.later(stage.name))
        if config.launcher.kind == "inline":
            summary = run_stage(job)
        else:
            job.save(scratch / "job.json")
            if stage.trains:
                self.conductor.call(stage.name, scratch / "job.json")
            summary = run_in_process(stage, config, scratch, self.lock)
        manifest = self.run.publish(
            stage.name, stage.version, key, step.ingredients, plain(summary), started
        )
        self.outlook.note(stage.name, manifest.seconds, whole=step.why == NEW)
        log(f"{stage.name}: done", seconds=manifest.seconds, output=manifest.output)
        return manifest

    def _heed(self, stage: Stage, manifests: Mapping[str, Manifest]) -> None:
        classes = {stage.name: stage.summary for stage in stages(self.config)}
        summaries = {name: classes[name].load(manifests[name]) for name in manifests}
        stage.before(
            self.config,
            summaries,
            lambda warning: self._say(f"WARNING: {warning}", logging.WARNING),
        )


def check(config: Config) -> None:
    """Builds every trl and peft config and opens nothing else.

    A typo fails in seconds, not after hours. Raises UsageError.
    """
    for key, engine in own_engines(config).items():
        check_ready(engine, key)
    for error in missing_packages(config):
        raise error
    if config.engine.model is not None:
        raise UsageError(
            f"engine.model={config.engine.model}: every stage would ask this one model, whatever "
            "it trains; leave it null and serve the run's models as base, sft, sl_cai and dpo; a "
            "critic is named by revise.engine.model, a judge by label.engine.model"
        )
    for stage in STAGES:
        stage.check(config)
