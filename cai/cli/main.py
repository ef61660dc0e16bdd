"""The command line: `cai VERB ...`; `run`, the Hydra app, is the verb where none is given."""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

from cai import __version__
from cai.errors import CaiError, Interrupted
from cai.redact import printable


class Verb(NamedTuple):
    """A verb's file has a function `main(arguments)`; it is loaded only to run it."""

    module: str
    usage: str
    purpose: str


VERBS = {
    "run": Verb("run", "[OVERRIDES]", "run the pipeline; the verb where none is given; -m sweeps"),
    "plan": Verb("plan", "[OVERRIDES]", "what would run and why, without running it"),
    "status": Verb("status", "[RUN]", "how far a run is, and whether its files are sound"),
    "show": Verb("show", "[RUN] [STAGE]", "read what a stage made"),
    "review": Verb("review", "[RUN]", "judge revisions and pairs yourself; --view: all records"),
    "report": Verb("report", "[RUN ...]", "a run's page; of several runs, one that compares them"),
    "audit": Verb("audit", "[OVERRIDES]", "what is trained on, and what is left out and why"),
    "build-instructions": Verb(
        "build_instructions", "[OVERRIDES]", "write instructions and answers to train on"
    ),
    "try": Verb("try_", 'FILE "PROMPT"', "answer, critique and revision under a principle file"),
    "chat": Verb("chat", "[RUN]", "talk to a run's model beside the one it was made from"),
    "export": Verb(
        "export", "[RUN] --to FORM", "a model as GGUF, for Ollama, in 16 bits, or an adapter"
    ),
    "push": Verb("push", "[RUN] --repo ID", "send a model or its data to a hub, with a card"),
    "init": Verb("init", "[FOLDER]", "a folder with principles and settings of your own"),
    "principles": Verb(
        "principles", "VERB ...", "check, show, draft, explain and import principle files"
    ),
}

FIRST_STEPS = """\
the first things to type:
  cai experiment=quickstart                   tune, critique, revise, label, train and evaluate
  cai plan experiment=quickstart              which stages would run, and why
  cai run --help                              the groups of settings

Overrides are Hydra's: key=value, group=option, +key=value.
Principles are files in principles/; settings are in conf/.
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
    # prompts and answers are for nobody else on the machine
    os.umask(os.umask(0o077) | 0o007)
    try:
        _dispatch(arguments)
    except (CaiError, Interrupted) as error:
        end_with(error)
    except KeyboardInterrupt:  # before the handlers were there
        end_with(Interrupted(signal.SIGINT))
    except BrokenPipeError:  # the reader has left: nothing more to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> None:
    verb = arguments[0] if arguments else "--help"
    if verb in VERBS:
        arguments = arguments[1:]
    elif verb in ("--help", "-h", "help", "--version", "-V"):
        _parser().parse_args(["--help" if verb == "help" else verb])
    else:
        verb = "run"
    importlib.import_module(f"cai.cli.{VERBS[verb].module}").main(arguments)


def _parser() -> argparse.ArgumentParser:
    """Of what stands before a verb; each verb has a parser of its own."""
    lines = [f"  {f'cai {name} {verb.usage}':<43} {verb.purpose}\n" for name, verb in VERBS.items()]
    parser = argparse.ArgumentParser(
        prog="cai",
        usage="cai [VERB] [--debug] ...",
        description="Constitutional AI from a principle file.",
        epilog=f"verbs (`cai VERB --help` says more):\n{''.join(lines)}\n{FIRST_STEPS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", "-V", action="version", version=f"cai {__version__}")
    parser.add_argument(
        "--debug", action="store_true", help="tracebacks, and the libraries' own warnings"
    )
    return parser


def end_with(error: CaiError | Interrupted) -> None:
    """Says what went wrong and ends with its exit code; with --debug, shows where."""
    if isinstance(error, Interrupted):
        print(INTERRUPTED, file=sys.stderr, flush=True)
        # threads of a running batch need not be waited for: what is finished is committed
        os._exit(error.exit_code)
    if os.environ.get("CAI_DEBUG"):
        raise error
    print(f"cai: {printable(str(error))}", file=sys.stderr)
    sys.exit(error.exit_code)
