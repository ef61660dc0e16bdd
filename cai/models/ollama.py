"""A Modelfile for Ollama: what it needs beside a GGUF file, in its own language of templates."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cai.messages import Dialogue, Message, assistant, user
from cai.models.chat_template import TemplateRefusal, apply_template
from cai.models.gguf_file import adds_bos, stop_texts

SYSTEM, FIRST, ANSWER, SECOND = "System text.", "First question.", "Some answer.", "Another one."

LEFT_OUT = """\
# No template in Ollama's language writes what the model's chat template does. So Ollama looks for
# one that is like it: compare what it sends, with `ollama show --template`.
"""


class TurnTexts(NamedTuple):
    """What a chat template writes around the turns of a conversation."""

    opening: str  # where it begins with no system message
    before_system: str
    after_system: str
    before_user: str
    before_answer: str  # between the human's turn and the answer
    after_answer: str


def modelfile(folder: Path, gguf_name: str, system: str | None) -> str:
    """Of the model in `folder`, which `gguf_name` beside the Modelfile holds."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = [f"FROM ./{gguf_name}"]
    texts = turn_texts(tokenizer)
    if texts is None:
        lines.append(LEFT_OUT.rstrip())
    else:
        lines.append(f'TEMPLATE """{go_template(texts)}"""')
    lines += [f"PARAMETER stop {json.dumps(text)}" for text in stop_texts(folder)]
    if system is not None and '"""' not in system:
        lines.append(f'SYSTEM """{system}"""')
    return "\n".join(lines) + "\n"


def go_template(texts: TurnTexts) -> str:
    """As Go's text/template has it. Ollama adds no answer behind the last turn of the human."""
    return (
        "{{ range $i, $m := .Messages }}"
        + '{{ if eq $m.Role "system" }}'
        + f"{texts.before_system}{{{{ $m.Content }}}}{texts.after_system}"
        + f"{{{{ else }}}}{{{{ if eq $i 0 }}}}{texts.opening}{{{{ end }}}}{{{{ end }}}}"
        + '{{ if eq $m.Role "user" }}'
        + f"{texts.before_user}{{{{ $m.Content }}}}{texts.before_answer}{{{{ end }}}}"
        + '{{ if eq $m.Role "assistant" }}'
        + f"{{{{ $m.Content }}}}{texts.after_answer}{{{{ end }}}}"
        + "{{ end }}"
    )


def write_turns(texts: TurnTexts, dialogue: Dialogue) -> str:
    """What go_template makes of a dialogue."""
    around = {
        "system": (texts.before_system, texts.after_system),
        "user": (texts.before_user, texts.before_answer),
        "assistant": ("", texts.after_answer),
    }
    opening = "" if dialogue[0].role == "system" else texts.opening
    return opening + "".join(
        f"{around[turn.role][0]}{turn.content}{around[turn.role][1]}" for turn in dialogue
    )


def turn_texts(tokenizer: PreTrainedTokenizerBase) -> TurnTexts | None:
    """Found by rendering; None where turns are not written alike, wherever they stand."""
    try:
        texts = _read_turns(tokenizer)
        right = all(
            write_turns(texts, dialogue) == _render(tokenizer, dialogue) for dialogue in _samples()
        )
    except (TemplateRefusal, ValueError):
        return None
    unwritable = any(mark in "".join(texts) for mark in ("{{", "}}", '"""'))
    return texts if right and not unwritable else None


def _read_turns(tokenizer: PreTrainedTokenizerBase) -> TurnTexts:
    """Raises ValueError where a text is not found, or stands elsewhere than expected."""
    system = Message("system", SYSTEM)
    talk = (system, user(FIRST), assistant(ANSWER), user(SECOND))
    text = _render(tokenizer, talk)
    before_system, text = _split(text, SYSTEM)
    between, text = _split(text, FIRST)
    before_answer, text = _split(text, ANSWER)
    after_and_before, _ = _split(text, SECOND)
    _, after_answer = _split(_render(tokenizer, talk[:3]), ANSWER)
    before_user = _without_start(after_and_before, after_answer)
    opening, _ = _split(_render(tokenizer, (user(FIRST),)), FIRST)
    return TurnTexts(
        opening=_without_end(opening, before_user),
        before_system=before_system,
        after_system=_without_end(between, before_user),
        before_user=before_user,
        before_answer=before_answer,
        after_answer=after_answer,
    )


def _samples() -> Sequence[Dialogue]:
    talk = (user(FIRST), assistant(ANSWER), user(SECOND), assistant(FIRST), user(ANSWER))
    dialogues = [talk[:count] for count in (1, 2, 3, 5)]
    return [*dialogues, *((Message("system", SYSTEM), *dialogue) for dialogue in dialogues)]


def _render(tokenizer: PreTrainedTokenizerBase, dialogue: Dialogue) -> str:
    """Without the token that the GGUF file says is added before everything."""
    waits = dialogue[-1].role == "user"
    text = apply_template(tokenizer, dialogue, add_generation_prompt=waits)
    return text.removeprefix(str(tokenizer.bos_token)) if adds_bos(tokenizer) else text


def _split(text: str, part: str) -> tuple[str, str]:
    before, _, after = text.partition(part)
    if text.count(part) != 1:
        raise ValueError(f"'{part}' does not stand there once")
    return before, after


def _without_start(text: str, start: str) -> str:
    if not text.startswith(start):
        raise ValueError("turns are not written alike")
    return text.removeprefix(start)


def _without_end(text: str, end: str) -> str:
    if not text.endswith(end):
        raise ValueError("turns are not written alike")
    return text.removesuffix(end)
