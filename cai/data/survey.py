"""How large a data set is, for an estimate that must answer at once."""

from dataclasses import dataclass
from pathlib import Path

from cai.config.schema import DataConfig
from cai.data.formats import UNFIT, to_dialogue
from cai.data.sources import local_files, read_source
from cai.data.wheels import cached_wheel
from cai.errors import CaiError

LARGEST = 8 << 20  # bytes that are read for an estimate

SLOW = (".prompt", ".yaml", ".yml")  # YAML takes half a second a megabyte

CHARACTERS, MARKERS = 4, 5  # of a token; tokens around a turn


@dataclass(frozen=True)
class Size:
    """Rows that fit, and the mean tokens of their last human turn's side and of the whole."""

    rows: int
    prompt: float  # all turns but a last answer
    whole: float


def survey(name: str, config: DataConfig) -> Size | None:
    """A set's size; None where reading it would take long: from a hub, large, or not here yet."""
    if not _is_quick(name, config):
        return None
    prompts: list[float] = []
    wholes: list[float] = []
    for _, row in read_source(name, config):
        try:
            dialogue = to_dialogue(row, config, seed=0)
        except UNFIT:
            continue
        tokens = [len(turn.content) / CHARACTERS + MARKERS for turn in dialogue]
        answered = dialogue[-1].role == "assistant"
        wholes.append(sum(tokens))
        prompts.append(sum(tokens[:-1] if answered else tokens))
    rows = len(wholes)
    return Size(rows, sum(prompts) / rows, sum(wholes) / rows) if rows else None


def _is_quick(name: str, config: DataConfig) -> bool:
    if config.kind == "hub":
        return False
    if config.kind == "wheel":
        members = [config.path, *config.more]
        quick = not any(member.endswith(SLOW) for member in members)
        return quick and cached_wheel(config.sha256) is not None
    try:
        files = local_files(name, config)
    except CaiError:
        return False
    slow = any(file.suffix in SLOW for file in files)
    return not slow and sum(Path(file).stat().st_size for file in files) <= LARGEST
