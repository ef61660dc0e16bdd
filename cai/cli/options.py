"""What the parsers of several verbs share."""

import argparse
import math

from cai.paths import own_conf


def verb_parser(verb: str, description: str, *examples: str) -> argparse.ArgumentParser:
    """A parser whose `--help` ends in examples."""
    lines = "".join(f"  cai {verb} {example}".rstrip() + "\n" for example in examples)
    return argparse.ArgumentParser(
        prog=f"cai {verb}",
        description=description,
        epilog=f"example{'s' if len(examples) > 1 else ''}:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def positive_int(text: str) -> int:
    """The type of an option that counts something. Raises argparse.ArgumentTypeError."""
    # int() reads 1_000, and digits of other scripts
    if not (text.isascii() and text.isdigit() and 1 <= int(text) < 1 << 31):
        raise argparse.ArgumentTypeError(f"'{text}': must be a whole number of at least 1")
    return int(text)


def number_from_0(text: str) -> float:
    """The type of an option that is a finite number. Raises argparse.ArgumentTypeError."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}': must be a number of at least 0")
    return number


def add_run(parser: argparse.ArgumentParser) -> None:
    text = "a run's folder, e.g. outputs/quickstart (default: the newest)"
    parser.add_argument("run", nargs="?", metavar="RUN", help=text)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    text = "Hydra's: key=value, group=option, +key=value; the settings are in conf/"
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help=text)
    text = "configuration files of your own, in folders as conf/ has them (default: ./conf, where "
    text += "./principles is beside it)"
    parser.add_argument("--config-dir", "-cd", metavar="FOLDER", default=own_conf(), help=text)
