"""`cai build-instructions`: the stage `build` alone."""

from cai.cli import run
from cai.cli.options import add_overrides, verb_parser


def main(arguments: list[str]) -> None:
    """As `cai run`, and takes the same words."""
    parser = verb_parser(
        "build-instructions",
        "Write instructions and answers to train on where there are few (conf/build). "
        "'sft.data=[seed,built]' trains on them. Takes Hydra's flags as `cai run` does.",
        "experiment=quickstart build.target=100",
    )
    add_overrides(parser)
    # only for --help: Hydra reads the words themselves
    parser.parse_known_args(arguments)
    run.main([*arguments, "stages=[build]"])
