"""The command line: `cai run | plan | status | show | audit | ...` (see HELP); `run`, the Hydra app, by default."""

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from cai import __version__
from cai.errors import CaiError, Interrupted, UsageError, nearest
from cai.redact import printable, redact, safe

HELP = """\
cai: Constitutional AI from a principle file. Version {version}.

  cai experiment=quickstart            tune, critique, revise, label, train, evaluate and report
  cai run [OVERRIDES] [HYDRA FLAGS]    the same; `run` is the default verb; -m sweeps; `cai run --help` lists the groups
  cai plan [--check] [OVERRIDES]       each stage: done, partial, or what would run and why
                                       (--check also builds every trl and peft config)
  cai status [RUN] [--verify]          the same from a run's folder alone, e.g. outputs/quickstart
                                       (--verify reads every file and compares it with its digest)
  cai show [RUN] [STAGE] [-n N]        read what a stage made: build, revise, label or evaluate
                                       (--random N, --id ID, --gated GATE)
  cai report [RUN ...] [-o FILE]       the path of a run's page; of several, or of a sweep, one page that compares them
  cai audit [OVERRIDES]                what sft and sl_cai would be trained on, and what is left out and why
  cai build-instructions [OVERRIDES]   writes instructions and answers to train on where there are few (conf/build);
                                       trained on by 'sft.data=[seed,built]'
  cai try FILE "PROMPT"                answer, critique and revision under a principle file (--watch: at every save;
                                       --against OTHER, --principle ID, --suite N, --run RUN)
  cai chat [RUN]                       talk to the run's model and to the one it was made from, side by side
                                       (--model NAME, --against NAME, --alone)
  cai push [RUN] --repo OWNER/NAME     shows the model and its card as they would be sent to a hub; --yes sends them
                                       (--what model|revisions|preferences, --stage NAME, --private)
  cai principles check FILE ...        every problem of a principle file, by line and column
  cai principles show [FILE]           its principles, with what it extends
  cai principles import FILE [--to F]  from the JSON of the paper's release or of llm-swarm

  --debug                              tracebacks, and the libraries' own warnings
  --version, --help

Overrides are Hydra's: key=value, group=option, +key=value. Principles are files in principles/; settings in conf/.
"""
INTERRUPTED = "\ninterrupted; nothing is lost: the same command continues"
VERBS = ("run", "plan", "status", "show", "report", "audit", "build-instructions", "try", "chat", "push", "principles")


def main(argv: Sequence[str] | None = None) -> None:
    """Exit codes: 0 done, 1 a failure, 2 wrong usage, 130 and 143 for SIGINT and SIGTERM."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--debug" in arguments:
        arguments.remove("--debug")
        os.environ["CAI_DEBUG"] = os.environ["HYDRA_FULL_ERROR"] = "1"
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        os.environ["CAI_DEBUG"] = "1"
    os.umask(os.umask(0o077) | 0o007)  # prompts and answers are for nobody else on the machine
    try:
        _dispatch(arguments)
    except (CaiError, Interrupted) as error:
        _end(error)
    except KeyboardInterrupt:  # before the handlers were there
        _end(Interrupted(signal.SIGINT))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left: nothing more to say


def _end(error: CaiError | Interrupted) -> None:
    """Says what went wrong and ends with its exit code; with --debug, shows where."""
    if isinstance(error, Interrupted):
        print(INTERRUPTED, file=sys.stderr, flush=True)
        os._exit(error.exit_code)  # threads of a running batch need not be waited for: every finished one is committed
    if os.environ.get("CAI_DEBUG"):
        raise error
    print(f"cai: {printable(str(error))}", file=sys.stderr)
    sys.exit(error.exit_code)


def _dispatch(arguments: list[str]) -> None:
    verb, rest = (arguments[0], arguments[1:]) if arguments and arguments[0] in VERBS else ("run", arguments)
    if arguments in (["--version"], ["-V"]):
        print(f"cai {__version__}")
    elif not arguments or arguments[0] in ("--help", "-h", "help"):
        print(HELP.format(version=__version__), end="")
    elif verb == "run":
        _run(rest)
    elif verb == "build-instructions":
        _run([*rest, "stages=[build]"])
    elif verb == "plan":
        _plan(rest)
    elif verb == "status":
        _status(rest)
    elif verb == "show":
        _show(rest)
    elif verb == "report":
        from cai import comparing

        comparing.main(rest)
    elif verb == "audit":
        from cai import auditing

        auditing.main(rest, VERBS)
    elif verb == "try":
        from cai import trial

        trial.main(rest)
    elif verb == "chat":
        from cai import chat

        chat.main(rest)
    elif verb == "push":
        from cai import publishing

        publishing.main(rest)
    else:
        from cai import principles

        principles.main(rest)


def _run(arguments: list[str]) -> None:
    import hydra

    from cai.composing import compose, refuse_targets, words_are_overrides
    from cai.paths import shipped
    from cai.store import probe
    from cai.worker import install_signals, quiet

    for word in arguments:
        if redact(word) != word:  # Hydra keeps the words in files before anything is checked
            raise UsageError(f"{redact(word)}: a secret on the command line; put it into an environment variable")
    refuse_targets(arguments)
    if any(word.startswith("hydra/launcher=submitit_") for word in arguments):
        if importlib.util.find_spec("submitit") is None:
            raise UsageError("hydra/launcher: submitit is not installed; pip install 'constitutional-ai[slurm]'")
        if not {"-m", "--multirun"} & {*arguments}:
            raise UsageError("hydra/launcher starts the jobs of a sweep: add -m, also where there is but one job")
    flags = [word for word in arguments if word.startswith("-")]
    if not flags:
        words_are_overrides(arguments, VERBS)
        config = compose(arguments)  # says clearly what is wrong, before Hydra makes a folder for the run
        # Hydra, which writes its logs there, would end in a traceback
        probe(Path(config.outputs) / config.name, 1 << 16, "free it, or choose another with outputs=...")
    quiet()
    install_signals(INTERRUPTED)

    @hydra.main(version_base="1.3", config_path=str(shipped("conf")), config_name="config")
    def job(composed: Any) -> None:
        _job(composed)

    # argparse takes overrides in one place only: `a=1 -m b=2` is `a=1 b=2 -m`
    sweep = [word for word in arguments if word in ("-m", "--multirun")]
    sys.argv = ["cai", *(word for word in arguments if word not in sweep), *sweep]
    job()


def _job(composed: Any) -> None:
    """One run of the pipeline: Hydra calls it once, or once for each point of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from cai import conductor
    from cai.config import in_round
    from cai.rules import load
    from cai.tables import build_table, result_table, revision_tables
    from cai.worker import quiet

    job = HydraConfig.get()
    # a launcher that isn't Hydra's own starts jobs at once, in processes where nobody has called quiet()
    at_once = job.mode == RunMode.MULTIRUN and not job.launcher._target_.endswith(".BasicLauncher")
    end = _end_job if at_once else _end
    if at_once:
        quiet()
    try:
        config = load(composed, list(job.overrides.task))
    except CaiError as error:
        end(error)
        return
    began = time.time()
    try:
        manifests = conductor.conduct(config, lambda line: print(printable(line), file=sys.stderr, flush=True), at_once)
    except OSError as error:
        end(CaiError(f"{error.filename or config.outputs}: {error.strerror or error}; what is done so far is kept"))
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


def _plan(arguments: list[str]) -> None:
    from cai import pipeline
    from cai.composing import compose, words_are_overrides
    from cai.store import Run
    from cai.tables import plan_table

    check = "--check" in arguments
    words = [word for word in arguments if word != "--check"]
    words_are_overrides(words, VERBS)
    config = compose(words)
    if check:
        from cai import conductor

        conductor.check(config)
    plan_table(pipeline.plan(config, Run(Path(config.outputs) / config.name)))


def _status(arguments: list[str]) -> None:
    from cai import pipeline
    from cai.composing import run_folder, saved
    from cai.progress import details
    from cai.store import Run
    from cai.tables import plan_table

    words = [word for word in arguments if word != "--verify"]
    root = run_folder(words[0] if words else None)
    if len(words) < len(arguments):
        _verify(root)
        return
    try:
        config = saved(root)
    except UsageError as error:
        raise CaiError(
            f"{root / 'run.json'} is of another version of cai ({error}). `cai plan` with the run's overrides says "
            "what would run today; `cai show` and `cai status --verify` read what is there"
        ) from None
    steps = pipeline.plan(config, Run(root))
    plan_table(steps)
    for step in steps:
        if step.state == "partial" and step.key:
            folder = Run(root).folder(step.stage.name, step.key)
            print("".join(f"  {safe(line)}\n" for line in details(folder / "scratch" / "progress.json")), end="")


def _verify(root: Path) -> None:
    from cai.store import Run

    found = list(Run(root).verify())
    for folder, damaged in found:
        print(safe(str(damaged or f"{folder}: sound")))
    if count := sum(damaged is not None for _, damaged in found):
        raise CaiError(f"{count} of {len(found)} stages damaged")


def _show(arguments: list[str]) -> None:
    import argparse

    from cai.checks import GATES
    from cai.composing import run_folder
    from cai.config import first_round
    from cai.store import Run
    from cai.tables import SHOWN, show_records

    parser = argparse.ArgumentParser(prog="cai show", description="Read what a stage made.")
    parser.add_argument("run", nargs="?", help="a run's folder, e.g. outputs/quickstart (default: the newest)")
    help = f"one of {', '.join(SHOWN)}, label2 and so on of later rounds (default: revise)"
    parser.add_argument("place", nargs="?", metavar="stage", help=help)
    parser.add_argument("--stage", help="the same")
    parser.add_argument("-n", type=int, default=5, metavar="N", help="how many records (default 5)")
    parser.add_argument("--random", type=int, metavar="N", help="N records drawn anew at every call")
    parser.add_argument("--id", help="the records whose id begins so")
    parser.add_argument("--gated", metavar="GATE", help=f"chains with a revision that failed it: {', '.join(GATES)}")
    options = parser.parse_args(arguments)
    if options.run and first_round(options.run) in SHOWN:  # `cai show revise`
        options.run, options.place = None, options.run
    options.stage = options.stage or options.place or "revise"
    if options.gated is not None and (options.stage != "revise" or options.gated not in GATES):
        hint = "only revise has gates" if options.stage != "revise" else f"one of {', '.join(GATES)}"
        raise UsageError(f"cai show --gated {options.gated}: {hint}{nearest(options.gated, list(GATES))}")
    if first_round(options.stage) not in SHOWN:
        raise UsageError(
            f"cai show: no records of '{options.stage}'{nearest(options.stage, list(SHOWN))} ({', '.join(SHOWN)})"
        )
    root = run_folder(options.run)
    manifest = Run(root).latest(options.stage)
    if manifest is None:
        raise UsageError(f"{root}: the stage '{options.stage}' has not finished; see `cai status {root}`")
    folder = Run(root).folder(options.stage, manifest.key) / "out"
    shown = show_records(options.stage, folder, options.n, options.random, options.id, options.gated)
    if not shown:
        raise CaiError(f"{root}: no record of {options.stage} is like that")
