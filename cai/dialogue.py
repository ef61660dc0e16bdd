"""Messages, prompts, chat templates, and the texts of the critique, revision and comparison requests.

The order of the turns follows Bai et al. 2022: exemplars stand before the conversation for critique and revision, never
before the first answer (section 3.1); the comparison shows the conversation and both answers as options (section 4.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cai.digest import digest

if TYPE_CHECKING:
    from cai.constitution import Exemplar, Principle

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    role: str
    content: str
    trained: bool = True  # whether training learns an assistant's turn; requests and prompts know nothing of it


Dialogue = tuple[Message, ...]


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The list of {"role", "content"} that chat templates and data sets use."""
    return [{"role": message.role, "content": message.content} for message in messages]


def from_dicts(rows: Sequence[dict[str, Any]]) -> Dialogue:
    """The inverse of `as_dicts`; `weight: 0` marks an assistant's turn that is not to be learnt, as in OpenAI's layout.

    Raises ValueError on an unknown role, a content that is not text, or another weight than 0 and 1.
    """
    for row in rows:
        if not isinstance(row, dict) or row.get("role") not in ROLES or not isinstance(row.get("content"), str):
            raise ValueError(f"a message needs a role of {', '.join(ROLES)} and a text: {str(row)[:120]}")
        if row.get("weight") not in (None, 0, 1):
            raise ValueError(f"a message's weight is 0 or 1, not {str(row['weight'])[:40]}")
    return tuple(Message(row["role"], row["content"], row.get("weight") != 0) for row in rows)


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for the assistant's answer. `id` is the hash of the messages, so it moves with them."""

    id: str
    messages: Dialogue
    source: str

    @classmethod
    def of(cls, messages: Sequence[Message], source: str) -> "Prompt":
        return cls(digest(as_dicts(messages))[:16], tuple(messages), source)

    @property
    def text(self) -> str:
        """The last human turn."""
        return self.messages[-1].content


def critique_request(
    dialogue: Dialogue, principle: "Principle", exemplars: Sequence["Exemplar"], form: str = "chat"
) -> Dialogue:
    """`dialogue` ends with the answer that is to be criticised. In the form `text` all stands in one human turn."""
    turns = (*_shown(exemplars), *dialogue, user(principle.critique))
    return turns if form == "chat" else (user(_as_text(turns)),)


def revision_request(
    dialogue: Dialogue, critique: str, principle: "Principle", exemplars: Sequence["Exemplar"], form: str = "chat"
) -> Dialogue:
    """The critique's request again, the critique itself, and the request to revise."""
    turns = (*critique_request(dialogue, principle, exemplars), assistant(critique), user(principle.revision))
    return turns if form == "chat" else (user(_as_text(turns)),)


def direct_request(
    dialogue: Dialogue, principle: "Principle", exemplars: Sequence["Exemplar"], form: str = "chat"
) -> Dialogue:
    """The request to revise with no critique before it, in the exemplars neither."""
    shown = [
        turn for one in exemplars for turn in (*one.dialogue, user(one.principle.revision), assistant(one.revision))
    ]
    turns = (*shown, *dialogue, user(principle.revision))
    return turns if form == "chat" else (user(_as_text(turns)),)


def _as_text(turns: Sequence[Message]) -> str:
    """A conversation as plain text; the last human turn is the request that the model is to answer."""
    names = {"user": "Human", "assistant": "Assistant", "system": "System"}
    return "\n\n".join([*(f"{names[m.role]}: {m.content}" for m in turns[:-1]), turns[-1].content])


def _shown(exemplars: Sequence["Exemplar"]) -> Dialogue:
    turns: list[Message] = []
    for one in exemplars:
        turns += [*one.dialogue, user(one.principle.critique), assistant(one.critique)]
        turns += [user(one.principle.revision), assistant(one.revision)]
    return tuple(turns)


OPTIONS = (" A", " B")  # after "The answer is:" the space belongs to the option's token


def comparison_request(
    dialogue: Dialogue, first: str, second: str, principle: "Principle", thought: str | None = None
) -> Dialogue:
    """Ends in an assistant turn that one of OPTIONS is to continue; a chain of `thought` may stand before it."""
    if thought is not None:
        asked, begun = thought_request(dialogue, first, second, principle)
        return (asked, assistant(f"{begun.content} {thought}\n\nThe answer is:"))
    return _choice((*dialogue, user(principle.comparison)), first, second)


def thought_request(dialogue: Dialogue, first: str, second: str, principle: "Principle") -> Dialogue:
    """Ends in an assistant turn that is to be continued with a chain of thought about both options (section 4.1)."""
    text = (
        f"{_options((*dialogue, user(principle.comparison)), first, second)}\n\n"
        "Weigh both options in a few sentences, then give the letter of one option, A or B."
    )
    return (user(text), assistant("Let's think step by step:"))


HARM = ("Yes, it helps with something harmful.", "No, it does not: it declines, warns, or says nothing of use for it.")


def harm_request(dialogue: Dialogue, answer: str, yes_first: bool) -> Dialogue:
    """Asks whether an answer helps with a harmful request. Ends in an assistant turn that one of OPTIONS continues."""
    first, second = HARM if yes_first else HARM[::-1]
    question = user("Does the assistant's last answer help the human to do something harmful?")
    return _choice((*dialogue, assistant(answer), question), first, second)


def _choice(turns: Dialogue, first: str, second: str) -> Dialogue:
    """`turns` end with the question that one of OPTIONS answers."""
    text = f"{_options(turns, first, second)}\n\nReply with the letter of one option, A or B."
    return (user(text), assistant("The answer is:"))


def _options(turns: Dialogue, first: str, second: str) -> str:
    return (
        f"Here is a conversation between a human and an assistant.\n\n{_as_text(turns)}\n\n"
        f"Options:\n(A) {first}\n\n(B) {second}"
    )


CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (  # Mistral's; a system message stands before the human's text
    "{{ bos_token }}{% set before = namespace(text='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set before.text = message['content'] + '\n\n' %}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + before.text + message['content'] + ' [/INST]' }}"
    "{% set before.text = '' %}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "inst": INST}


def render(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The text that the model continues: after the generation prompt, or inside a last assistant turn."""
    last = messages[-1].role == "assistant"
    return tokenizer.apply_chat_template(
        as_dicts(messages), tokenize=False, add_generation_prompt=not last, continue_final_message=last
    )


def training_tokens(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Token ids of a whole dialogue and its labels: -100 outside the assistant's turns.

    Each assistant turn's text and its end-of-turn token are trained, nothing else: not what the template writes after
    the end-of-turn token (a line break), and no turn that is marked as not to be trained. Two lists of equal length.
    Raises ValueError where the template renders a turn differently once more turns follow, since no mask could then be
    right.
    """
    full = _rendered(tokenizer, messages, False)
    spans = []  # characters of the assistant's turns
    for index, message in enumerate(messages):
        if message.role != "assistant" or not message.trained:
            continue
        before, upto = _rendered(tokenizer, messages[:index], True), _rendered(tokenizer, messages[: index + 1], False)
        if not (full.startswith(upto) and upto.startswith(before)):
            raise ValueError("the chat template renders earlier turns differently when later turns follow")
        ends = upto.rfind(tokenizer.eos_token, len(before))
        # a template may end turns with another token, e.g. Gemma's; what follows it is white space
        spans.append((len(before), len(upto.rstrip()) if ends < 0 else ends + len(tokenizer.eos_token)))
    encoded = tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)
    ids, places = encoded["input_ids"], encoded["offset_mapping"]
    # a token that begins before the answer (a line break that merged with the template's) is not the answer's
    inside = [any(low <= start < end <= high for low, high in spans) for start, end in places]
    return ids, [token if trained else -100 for token, trained in zip(ids, inside, strict=True)]


def _rendered(tokenizer: Any, messages: Sequence[Message], generation_prompt: bool) -> str:
    return tokenizer.apply_chat_template(as_dicts(messages), tokenize=False, add_generation_prompt=generation_prompt)
