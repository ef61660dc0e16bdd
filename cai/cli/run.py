"""`cai run`: the Hydra app."""

import importlib.util
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from cai.cli.main import INTERRUPTED, VERBS, end_with
from cai.config.as_typed import as_typed, displayed
from cai.config.compose import compose, load, own_folder, refuse_targets, words_are_overrides
from cai.config.names import in_round
from cai.config.schema import Config
from cai.config.typed_yaml import read_files_with_types
from cai.errors import CaiError, Interrupted, UsageError, not_installed
from cai.paths import shipped
from cai.redact import printable, redact
from cai.report.terminal import print_results, print_stage_view, wide_console
from cai.run import runner
from cai.run.objective import check_objective, objective_of
from cai.run.plan import view_of
from cai.run.process import install_signals, quiet
from cai.store.files import check_writable
from cai.store.manifest import Manifest

SWEEP = ("-m", "--multirun")

SHOWN_STAGES = ("build", "revise")  # their counts stand at the end of a run that made them


def main(arguments: list[str]) -> None:
    """Hands the words to Hydra. Raises UsageError on those that would end in a traceback there."""
    # Hydra keeps the words in files before anything is checked
    for word in arguments:
        if redact(word) != word:
            raise UsageError(
                f"{redact(word)}: a secret on the command line; put it into an environment variable"
            )
    refuse_targets(arguments)
    _refuse_launcher(arguments)
    folder, overrides = own_folder(arguments)
    if not any(word.startswith("-") for word in overrides):
        words_are_overrides(overrides, list(VERBS))
        # says clearly what is wrong, before Hydra makes a folder for the run and logs there
        config = compose(overrides, folder)
        run_folder = Path(config.outputs) / config.name
        check_writable(run_folder, 1 << 16, "free it, or choose another with outputs=...")
    quiet()
    install_signals(INTERRUPTED)
    # argparse takes overrides in one place only: `a=1 -m b=2` is `a=1 b=2 -m`
    sweep = [word for word in arguments if word in SWEEP]
    words = [word for word in arguments if word not in SWEEP]
    sys.argv = ["cai", *as_typed(words, bool(sweep), folder), *sweep]
    read_files_with_types()
    app = hydra.main(version_base="1.3", config_path=str(shipped("conf")), config_name="config")
    app(run_job)()


def _refuse_launcher(arguments: Sequence[str]) -> None:
    """Raises UsageError where a launcher or sweeper is named without a sweep, or is missing."""
    if "hydra/sweeper=optuna" in arguments:
        if importlib.util.find_spec("optuna") is None:
            plugin = "hydra-optuna-sweeper"
            raise not_installed("hydra/sweeper=optuna", plugin, plugin)
        if not {*SWEEP} & {*arguments}:
            raise UsageError("hydra/sweeper=optuna chooses the jobs of a sweep: add -m")
    if not any(word.startswith("hydra/launcher=submitit_") for word in arguments):
        return
    if importlib.util.find_spec("submitit") is None:
        raise not_installed("hydra/launcher", "submitit", ".[slurm]")
    if not {*SWEEP} & {*arguments}:
        raise UsageError(
            "hydra/launcher starts the jobs of a sweep: add -m, also where there is but one job"
        )


def run_job(composed: DictConfig) -> float | None:
    """One run of the pipeline: Hydra calls it once, or once for each point of a sweep.

    Returns the run's objective, where one is configured.
    """
    job = HydraConfig.get()
    # a launcher that isn't Hydra's own starts jobs at once, in processes without quiet()
    is_sweep = job.mode == RunMode.MULTIRUN
    at_once = is_sweep and not job.launcher._target_.endswith(".BasicLauncher")
    if at_once:
        quiet()
    started = time.time()
    try:
        config = load(composed, [displayed(word) for word in job.overrides.task])
        is_search = is_sweep and not job.sweeper._target_.endswith(".BasicSweeper")
        check_objective(config, job.runtime.choices["hydra/sweeper"] if is_search else None)
        manifests = _run_stages(config, at_once)
        _print_outcome(config, manifests, started)
        return objective_of(config, manifests)
    except (CaiError, Interrupted) as error:
        (_end_job if at_once else end_with)(error)


def _run_stages(config: Config, at_once: bool) -> dict[str, Manifest]:
    try:
        return runner.run_stages(config, _tell, at_once)
    except OSError as error:
        raise CaiError(
            f"{error.filename or config.outputs}: {error.strerror or error}; what is done so far "
            "is kept"
        ) from error


def _tell(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def _print_outcome(config: Config, manifests: Mapping[str, Manifest], started: float) -> None:
    """What the stages that ran now did, what was measured, and where the results are."""
    for name in SHOWN_STAGES:
        if name in manifests and manifests[name].started >= started:
            print_stage_view(view_of(manifests[name]), wide_console())
    if "evaluate" in manifests:
        print_results(manifests["evaluate"].summary["metrics"])
    root = Path(config.outputs) / config.name
    results = (
        ("build", "instructions", "instructions.parquet"),
        (in_round("dpo", config.rounds), "model", "model"),
        ("report", "report", "report.html"),
    )
    for stage, name, file in results:
        if stage in manifests:
            print(f"{name}: {root / stage / manifests[stage].key[:12] / 'out' / file}")


def _end_job(error: CaiError | Interrupted) -> NoReturn:
    """Says what went wrong in a launcher's own process, and hands it to the sweep's.

    Only an exception gets there: Hydra shows a compact one as a line, any other as a traceback.
    """
    if isinstance(error, Interrupted) or os.environ.get("CAI_DEBUG"):
        raise error
    # standard error is a file here
    print(f"cai: {printable(str(error))}", file=sys.stderr, flush=True)
    raise CompactHydraException(f"cai: {printable(str(error))}")
