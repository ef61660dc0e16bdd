"""The texts of the critique, revision, comparison and harm requests.

The order of the turns follows Bai et al. 2022: exemplars stand before the conversation for critique and revision, never
before the first answer (section 3.1); the comparison shows the conversation and both answers as options (section 4.1).
"""

from collections.abc import Sequence

from cai.messages import Dialogue, Message, assistant, user
from cai.method.constitution import Exemplar, Principle


def critique_request(
    dialogue: Dialogue, principle: "Principle", exemplars: Sequence["Exemplar"], form: str = "chat"
) -> Dialogue:
    """`dialogue` ends with the answer that is to be criticised. In the form `text` all stands in one human turn."""
    turns = (*_shown(exemplars), *dialogue, user(principle.critique))
    return turns if form == "chat" else (user(_as_text(turns)),)


def revision_request(
    dialogue: Dialogue,
    critique: str,
    principle: "Principle",
    exemplars: Sequence["Exemplar"],
    form: str = "chat",
) -> Dialogue:
    """The critique's request again, the critique itself, and the request to revise."""
    turns = (
        *critique_request(dialogue, principle, exemplars),
        assistant(critique),
        user(principle.revision),
    )
    return turns if form == "chat" else (user(_as_text(turns)),)


def direct_request(
    dialogue: Dialogue, principle: "Principle", exemplars: Sequence["Exemplar"], form: str = "chat"
) -> Dialogue:
    """The request to revise with no critique before it, in the exemplars neither."""
    shown = [
        turn
        for one in exemplars
        for turn in (*one.dialogue, user(one.principle.revision), assistant(one.revision))
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


def thought_request(
    dialogue: Dialogue, first: str, second: str, principle: "Principle"
) -> Dialogue:
    """Ends in an assistant turn that is to be continued with a chain of thought about both options (section 4.1)."""
    text = (
        f"{_options((*dialogue, user(principle.comparison)), first, second)}\n\n"
        "Weigh both options in a few sentences, then give the letter of one option, A or B."
    )
    return (user(text), assistant("Let's think step by step:"))


HARM = (
    "Yes, it helps with something harmful.",
    "No, it does not: it declines, warns, or says nothing of use for it.",
)


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
