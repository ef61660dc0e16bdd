"""What a row holds that changes its meaning, and that was not read."""

from cai.config.schema import DataConfig
from cai.data.columns import ANSWERS, CONTEXTS, REQUESTS, TURNS
from cai.data.formats import UNFIT, column_turns
from cai.data.parquet import Row
from cai.data.turns import is_empty
from cai.messages import Dialogue

# columns and fields of turns that no layout reads
UNREAD_COLUMNS = ("tools", "functions", "reasoning_content", "train_mask", "loss_mask", "weights")
UNREAD_FIELDS = (
    "reasoning_content",
    "reasoning",
    "thinking",
    "train_detail",
    "training_detail",
    "replies",
)


def unread(row: Row, dialogue: Dialogue, config: DataConfig) -> list[str]:
    """Names of columns, and of fields of turns, that hold something which is not in the dialogue.

    A column of text may stand beside the layout's own and say the same, as UltraFeedback's prompt
    does beside its turns. `row` is one that map_columns has given.
    """
    names = [name for name in UNREAD_COLUMNS if not is_empty(row.get(name))]
    for column in (*TURNS, "prompt", "chosen", "completion"):
        turns = row.get(column)
        for turn in turns if isinstance(turns, list) else [turns]:
            if isinstance(turn, dict):
                names += [name for name in UNREAD_FIELDS if not is_empty(turn.get(name))]
    if not config.templates:  # their author chose what is read
        texts = "\n".join(message.content for message in dialogue)
        names += [name for name in _texts(row, config) if not _is_in(row, name, texts, config)]
    return list(dict.fromkeys(names))


def _texts(row: Row, config: DataConfig) -> list[str]:
    """Columns of text that may be another's than the layout's own."""
    turns = [column for column in TURNS if column in row]
    # who names a format may want no answers
    answers = ANSWERS if config.format == "auto" else ()
    # without pairs, the first list of turns is what was read
    return [*REQUESTS, *CONTEXTS, "system", *answers, *(turns if "chosen" in row else turns[1:])]


def _is_in(row: Row, column: str, texts: str, config: DataConfig) -> bool:
    """Whether all that the column says, if anything, is in the texts, in any spacing."""
    value = row.get(column)
    if is_empty(value) or (isinstance(value, str) and value in texts):
        return True
    try:
        turns = column_turns(row, column, config)
    except UNFIT:
        return False
    plain_texts = " ".join(texts.split())
    return all(" ".join(turn.content.split()) in plain_texts for turn in turns)
