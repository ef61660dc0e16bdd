"""The command line: `cai VERB ...`; `run`, the Hydra app, is the verb where none is given."""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from cai import __version__
from cai.errors import CaiError, Interrupted
from cai.redact import printable

VERBS = {  # verb -> (the function that runs it, what it does); a verb's file is loaded only to run it
    "run": ("cai.cli.run:main", "run the pipeline; the verb where none is given"),
    "plan": ("cai.cli.plan:main", "what would run and why, without running it"),
    "status": (
        "cai.cli.status:main",
        "how far a run is, what is slow, and whether its files are sound",
    ),
    "show": ("cai.cli.show:main", "read what a stage made"),
    "report": (
        "cai.cli.report:main",
        "the path of a run's page; of several runs, one page that compares them",
    ),
    "audit": (
        "cai.cli.audit:main",
        "what sft and sl_cai would be trained on, and what is left out and why",
    ),
    "build-instructions": (
        "cai.cli.run:build_instructions",
        "write instructions and answers to train on",
    ),
    "try": (
        "cai.cli.try_:main",
        "answer, critique and revision of one prompt under a principle file",
    ),
    "chat": ("cai.cli.chat:main", "talk to a run's model and to the one it was made from"),
    "push": ("cai.cli.push:main", "send a model or its data to a hub, with a card"),
    "principles": ("cai.cli.principles:main", "check, read and import principle files"),
}
EPILOG = """\
`cai VERB --help` says more of a verb. The first things to type:

  cai experiment=quickstart               tune, critique, revise, label, train, evaluate and report
  cai plan experiment=quickstart          which stages would run, and why
  cai run --help                          the groups of settings; -m sweeps

Overrides are Hydra's: key=value, group=option, +key=value. Principles are files in principles/; settings in conf/.
"""
INTERRUPTED = "\ninterrupted; nothing is lost: the same command continues"


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
        end_with(error)
    except KeyboardInterrupt:  # before the handlers were there
        end_with(Interrupted(signal.SIGINT))
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # the reader has left: nothing more to say


def _dispatch(arguments: list[str]) -> None:
    verb = arguments[0] if arguments else "--help"
    if verb in VERBS:
        arguments = arguments[1:]
    elif verb in ("--help", "-h", "help", "--version", "-V"):
        _parser().parse_args(["--help" if verb == "help" else verb])
    else:
        verb = "run"
    module, _, function = VERBS[verb][0].partition(":")
    getattr(importlib.import_module(module), function)(arguments)


def _parser() -> argparse.ArgumentParser:
    """Of what stands before a verb; each verb has a parser of its own."""
    parser = argparse.ArgumentParser(
        prog="cai",
        description="Constitutional AI from a principle file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", "-V", action="version", version=f"cai {__version__}")
    parser.add_argument(
        "--debug", action="store_true", help="tracebacks, and the libraries' own warnings"
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    for verb, (_, purpose) in VERBS.items():
        verbs.add_parser(verb, help=purpose, add_help=False)
    return parser


def end_with(error: CaiError | Interrupted) -> None:
    """Says what went wrong and ends with its exit code; with --debug, shows where."""
    if isinstance(error, Interrupted):
        print(INTERRUPTED, file=sys.stderr, flush=True)
        os._exit(
            error.exit_code
        )  # threads of a running batch need not be waited for: every finished one is committed
    if os.environ.get("CAI_DEBUG"):
        raise error
    print(f"cai: {printable(str(error))}", file=sys.stderr)
    sys.exit(error.exit_code)
