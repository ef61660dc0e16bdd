"""What people give as prompts: texts, or conversations as lists of messages."""

from collections.abc import Iterable, Mapping, Sequence

from cai.config.schema import DataConfig
from cai.data.formats import UNFIT, to_dialogue
from cai.errors import UsageError
from cai.messages import Prompt
from cai.text import well_formed

# a text, or messages: {"role": "user", "content": "..."}, the last of them the user's
PromptLike = str | Sequence[Mapping[str, object]]

SOURCE = "api"  # in place of a data set's name

LAYOUT = DataConfig("file", "", format="prompt")


def read_prompts(prompts: Iterable[PromptLike]) -> list[Prompt]:
    """Raises UsageError, which names the first that is no prompt."""
    if isinstance(prompts, str | Mapping):
        raise UsageError("prompts: give a list; of one text, [text]")
    return [read_prompt(prompt, f"prompts[{place}]") for place, prompt in enumerate(prompts)]


def read_prompt(prompt: PromptLike, name: str) -> Prompt:
    """As a data set's rows are read, so it has the id that it has in a run. Raises UsageError."""
    if isinstance(prompt, str):
        value: object = well_formed(prompt)
    elif isinstance(prompt, Sequence):
        value = [dict(turn) if isinstance(turn, Mapping) else turn for turn in prompt]
    else:
        kind = type(prompt).__name__
        raise UsageError(f"{name} is neither a text nor a list of messages: {kind}")
    try:
        dialogue = to_dialogue({"prompt": value}, LAYOUT)
    except UNFIT as error:
        raise UsageError(f"{name}: {error}") from None
    if dialogue[-1].role != "user":
        raise UsageError(f"{name} ends with a turn of the {dialogue[-1].role}, not with the user's")
    return Prompt.of(dialogue, SOURCE)
