"""`cai run`: the Hydra app."""

import importlib.util
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from cai.cli.main import INTERRUPTED, VERBS, end_with
from cai.cli.overrides import check_overrides
from cai.config.as_typed import as_typed, displayed
from cai.config.compose import (
    compose,
    load,
    own_folder,
    refuse_targets,
    with_own_folder,
)
from cai.config.names import in_round
from cai.config.schema import Config
from cai.config.typed_yaml import read_files_with_types
from cai.errors import CaiError, Interrupted, UsageError, not_installed
from cai.paths import shipped
from cai.redact import printable, redact, safe
from cai.report.page import verdict
from cai.report.terminal import print_results, print_stage_view, print_tables, wide_console
from cai.run import runner
from cai.run.objective import check_objective, objective_of
from cai.run.outlook import in_words
from cai.run.plan import check_settings, view_of
from cai.run.process import install_signals, quiet
from cai.scoring.adherence import Adherence
from cai.store.files import check_writable
from cai.store.manifest import Manifest

SWEEP = ("-m", "--multirun")

SHOWN_STAGES = ("build", "probe", "revise")  # their counts stand at the end of a run that made them


def main(arguments: list[str]) -> None:
    """Hands the words to Hydra. Raises UsageError on those that would end in a traceback there."""
    # Hydra keeps the words in files before anything is checked
    for word in arguments:
        if redact(word) != word:
            raise UsageError(
                f"{redact(word)}: a secret on the command line; put it into an environment variable"
            )
    arguments = with_own_folder(arguments)
    refuse_targets(arguments)
    _refuse_launcher(arguments)
    quiet()
    install_signals(INTERRUPTED)
    folder, overrides = own_folder(arguments)
    if not any(word.startswith("-") for word in overrides):
        check_overrides(overrides, list(VERBS))
        # says clearly what is wrong, before Hydra makes a folder for the run and logs there
        config = compose(overrides, folder)
        check_writable(_root(config), 1 << 16, "free it, or choose another with outputs=...")
        if runner.is_up_to_date(config):
            _confirm(config)
            return
    # argparse takes overrides in one place only: `a=1 -m b=2` is `a=1 b=2 -m`
    sweep = [word for word in arguments if word in SWEEP]
    words = [word for word in arguments if word not in SWEEP]
    if sweep and not any(word.startswith("-") for word in own_folder(words)[1]):
        check_jobs(overrides, folder)
    sys.argv = ["cai", *as_typed(words, bool(sweep), folder), *sweep]
    read_files_with_types()
    app = hydra.main(version_base="1.3", config_path=str(shipped("conf")), config_name="config")
    app(run_job)()


def check_jobs(words: Sequence[str], folder: str | None) -> None:
    """Raises UsageError where a job of a plain sweep can't work, before the first one starts.

    A sweeper that searches chooses its jobs as it goes, and each is checked when it starts. So are
    those of hydra.sweeper.params in a file.
    """
    overrides = [word for word in words if word not in SWEEP]
    if any(word.startswith("hydra/sweeper=") for word in overrides):
        return
    overrides = [word for word in overrides if not word.lstrip("+~").startswith("hydra")]
    check_overrides(overrides, list(VERBS))
    parsed = OverridesParser.create().parse_overrides(as_typed(overrides, True, folder))
    for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None):
        for job in batch:
            check_settings(compose([displayed(word) for word in job], folder))


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


def _confirm(config: Config) -> None:
    """Checks the files of a run that has nothing to do, and says so in three lines.

    Hydra would compose the configuration twice more first, which takes longer than the rest.
    """
    started = time.time()
    manifests = _run_stages(config, at_once=False, tell=_tell_news)
    # a file may have been damaged, which only reading it shows
    if any(manifest.started >= started for manifest in manifests.values()):
        _print_outcome(config, manifests, started)
        return
    print(f"up to date: {', '.join(manifests)}")
    changes = _changes(config, manifests)
    for line in (*changes[:1], _where(config, manifests)):
        print(line)


def _tell_news(line: str) -> None:
    """Leaves out what is no news where nothing has to run."""
    if not line.endswith(runner.UP_TO_DATE):
        _tell(line)


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
        manifests = _run_stages(config, at_once, _tell)
        _print_outcome(config, manifests, started)
        return objective_of(config, manifests)
    except (CaiError, Interrupted) as error:
        (_end_job if at_once else end_with)(error)


def _run_stages(config: Config, at_once: bool, tell: runner.Tell) -> dict[str, Manifest]:
    try:
        return runner.run_stages(config, tell, at_once)
    except OSError as error:
        raise CaiError(
            f"{error.filename or config.outputs}: {error.strerror or error}; what is done so far "
            "is kept"
        ) from error


def _tell(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def _print_outcome(config: Config, manifests: Mapping[str, Manifest], started: float) -> None:
    """What the stages that ran now did; what changed, at what price, where it is; all metrics."""
    fresh = [name for name, manifest in manifests.items() if manifest.started >= started]
    for name in SHOWN_STAGES:
        if name in fresh:
            print_stage_view(view_of(manifests[name]), wide_console())
    if fresh:
        _tell(f"ran {', '.join(fresh)} in {in_words(time.time() - started)}")
    if "evaluate" in fresh and len(list((_root(config) / "evaluate").glob("*/manifest.json"))) > 1:
        _tell(f"beside the earlier results here: cai report {_root(config)}")
    for line in (*_changes(config, manifests), _where(config, manifests)):
        if line:
            print(safe(line))
    if "evaluate" in manifests:
        print_results(manifests["evaluate"].summary["metrics"])
        print_tables(view_of(manifests["evaluate"]), wide_console())


def _changes(config: Config, manifests: Mapping[str, Manifest]) -> list[str]:
    """The report's first sentences; none where nothing was evaluated."""
    if "evaluate" not in manifests:
        return []
    summary = manifests["evaluate"].summary
    kinds = {name: suite.kind for name, suite in config.evaluate.suites.items()}
    return verdict(summary["metrics"], kinds, summary["changes"], Adherence.of(summary))


def _root(config: Config) -> Path:
    return Path(config.outputs) / config.name


def _where(config: Config, manifests: Mapping[str, Manifest]) -> str:
    """Where the results are, in one line."""
    root = _root(config)
    results = (
        ("instructions", "build", "instructions.parquet"),
        ("prompts", "probe", "probes.parquet"),
        ("report", "report", "report.html"),
        ("model", in_round("dpo", config.rounds), "model"),
    )
    return "  ".join(
        f"{name}: {root / stage / manifests[stage].key[:12] / 'out' / file}"
        for name, stage, file in results
        if stage in manifests
    )


def _end_job(error: CaiError | Interrupted) -> NoReturn:
    """Says what went wrong in a launcher's own process, and hands it to the sweep's.

    Only an exception gets there: Hydra shows a compact one as a line, any other as a traceback.
    """
    if isinstance(error, Interrupted) or os.environ.get("CAI_DEBUG"):
        raise error
    # standard error is a file here
    print(f"cai: {printable(str(error))}", file=sys.stderr, flush=True)
    raise CompactHydraException(f"cai: {printable(str(error))}")
