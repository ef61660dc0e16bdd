"""`cai run`: the Hydra app."""

import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from cai.cli.main import INTERRUPTED, VERBS, end_with
from cai.errors import CaiError, Interrupted, UsageError
from cai.redact import printable, redact


def main(arguments: list[str]) -> None:
    import hydra

    from cai.config.compose import compose, refuse_targets, words_are_overrides
    from cai.paths import shipped
    from cai.run.process import install_signals, quiet
    from cai.store.files import check_writable

    for word in arguments:
        if redact(word) != word:  # Hydra keeps the words in files before anything is checked
            raise UsageError(
                f"{redact(word)}: a secret on the command line; put it into an environment variable"
            )
    refuse_targets(arguments)
    if any(word.startswith("hydra/launcher=submitit_") for word in arguments):
        if importlib.util.find_spec("submitit") is None:
            raise UsageError(
                "hydra/launcher: submitit is not installed; pip install 'constitutional-ai[slurm]'"
            )
        if not {"-m", "--multirun"} & {*arguments}:
            raise UsageError(
                "hydra/launcher starts the jobs of a sweep: add -m, also where there is but one job"
            )
    flags = [word for word in arguments if word.startswith("-")]
    if not flags:
        words_are_overrides(arguments, list(VERBS))
        config = compose(
            arguments
        )  # says clearly what is wrong, before Hydra makes a folder for the run
        # Hydra, which writes its logs there, would end in a traceback
        check_writable(
            Path(config.outputs) / config.name,
            1 << 16,
            "free it, or choose another with outputs=...",
        )
    quiet()
    install_signals(INTERRUPTED)

    @hydra.main(version_base="1.3", config_path=str(shipped("conf")), config_name="config")
    def job(composed: Any) -> None:
        _job(composed)

    # argparse takes overrides in one place only: `a=1 -m b=2` is `a=1 b=2 -m`
    sweep = [word for word in arguments if word in ("-m", "--multirun")]
    sys.argv = ["cai", *(word for word in arguments if word not in sweep), *sweep]
    job()


def build_instructions(arguments: list[str]) -> None:
    """`cai build-instructions`: the stage `build` alone."""
    main([*arguments, "stages=[build]"])


def _job(composed: Any) -> None:
    """One run of the pipeline: Hydra calls it once, or once for each point of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from cai.config.checks import load
    from cai.config.schema import in_round
    from cai.report.terminal import build_table, result_table, revision_tables
    from cai.run import runner
    from cai.run.process import quiet

    job = HydraConfig.get()
    # a launcher that isn't Hydra's own starts jobs at once, in processes where nobody has called quiet()
    at_once = job.mode == RunMode.MULTIRUN and not job.launcher._target_.endswith(".BasicLauncher")
    end = _end_job if at_once else end_with
    if at_once:
        quiet()
    try:
        config = load(composed, list(job.overrides.task))
    except CaiError as error:
        end(error)
        return
    began = time.time()
    try:
        manifests = runner.run_stages(
            config, lambda line: print(printable(line), file=sys.stderr, flush=True), at_once
        )
    except OSError as error:
        end(
            CaiError(
                f"{error.filename or config.outputs}: {error.strerror or error}; what is done so far is kept"
            )
        )
        return
    except (CaiError, Interrupted) as error:
        end(error)
        return
    root = Path(config.outputs) / config.name
    if "build" in manifests and manifests["build"].started >= began:
        build_table(manifests["build"].summary)
    if "revise" in manifests and manifests["revise"].started >= began:
        revision_tables(manifests["revise"].summary)
    if "evaluate" in manifests:
        result_table(manifests["evaluate"].summary["metrics"])
    last = in_round("dpo", config.rounds)
    shown = (
        ("build", "instructions", "instructions.parquet"),
        (last, "model", "model"),
        ("report", "report", "report.html"),
    )
    for stage, name, file in shown:
        if stage in manifests:
            folder = root / stage / manifests[stage].key[:12]
            print(f"{name}: {folder / 'out' / file}")


def _end_job(error: CaiError | Interrupted) -> NoReturn:
    """Says what went wrong in a launcher's own process, whose standard error is a file, and hands it to the sweep's:
    only an exception gets there, and Hydra shows a compact one as a line, any other as a traceback."""
    from hydra.errors import CompactHydraException

    if isinstance(error, Interrupted) or os.environ.get("CAI_DEBUG"):
        raise error
    print(f"cai: {printable(str(error))}", file=sys.stderr, flush=True)
    raise CompactHydraException(f"cai: {printable(str(error))}")
