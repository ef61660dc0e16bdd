"""The columns that layouts read, and how a row comes to have them."""

from cai.config.schema import DataConfig
from cai.data.files import UNREADABLE_ROW
from cai.data.parquet import Row
from cai.data.sources import yaml_text
from cai.data.turns import read_path
from cai.errors import UsageError, nearest

# columns of a request, of what it is about, and of its answer
REQUESTS = ("instruction", "prompt", "question", "query", "input")
CONTEXTS = ("input", "context")
ANSWERS = ("completion", "response", "output", "demonstration", "answer")

OTHER_NAMES = {"system_prompt": "system"}

# flags of a row that say whether its answer is a good one: for KTO, and BeaverTails'
DESIRED_FLAGS = ("label", "kto_tag", "is_safe")

# columns that are kept beside a dialogue
TAGS = ("id", "task", "format", "domain", "category", "principle", "kind", "keeps")

TURNS = ("messages", "conversations")

# of which a data set may write the names in other case
COLUMNS = {
    *(*REQUESTS, *CONTEXTS, *ANSWERS, *TURNS, *DESIRED_FLAGS),
    *("text", "chosen", "rejected", "system", "history", "score", "harm"),
}


def map_columns(row: Row, config: DataConfig) -> Row:
    """The row with our columns' names, and with our values for theirs.

    Names in other case or with spaces around them (`Prompt`, ` output`) are ours too.
    """
    if UNREADABLE_ROW in row:
        return row
    spellings = {name.strip().lower(): name for name in row}
    spellings |= {OTHER_NAMES[name]: spellings[name] for name in OTHER_NAMES & spellings.keys()}
    for column in sorted(COLUMNS & spellings.keys() - row.keys()):
        row = row | {column: row[spellings[column]]}
    row = row | {
        column: read_path(row, path)
        for column, path in config.fields.items()
        if column not in ("role", "content")  # those are of a turn
    }
    for column, replacements in config.values.items():
        row[column] = replacements.get(yaml_text(row[column]), row[column])
    return row


def refuse_unknown_fields(name: str, config: DataConfig) -> None:
    """Raises UsageError where `fields` names a column of ours that nothing would read."""
    readable = {*COLUMNS, *TAGS, "role", "content"}
    for column in () if config.templates else config.fields.keys() - readable:
        hint = nearest(column, sorted(readable))
        raise UsageError(f"data.{name}.fields: no layout reads '{column}'{hint}")


def refuse_undesired(row: Row) -> None:
    """Raises ValueError where a flag says that the answer is a bad one."""
    for flag in DESIRED_FLAGS:
        if str(row.get(flag)).lower() == "false":
            raise ValueError(
                f"{flag} is false, so its answer is not learnt; 'where' reads the others alone, "
                "and format: prompt the request alone"
            )
