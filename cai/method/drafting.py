"""A model writes the requests that a sentence stands for (drafts.py keeps them).

It is shown other sentences and their requests as examples.
"""

from cai.engines.base import Completion
from cai.messages import Dialogue, Message, assistant, user
from cai.method.drafts import DRAFTED
from cai.method.yaml_file import PLACEHOLDER

MOST_WORDS = 100  # of a request

ORDERS = {
    "critique": "Write the request that has an assistant look at its last answer and say where it "
    "breaks this rule. Name what to look for.",
    "revision": "Write the request that has an assistant write its last answer again so that it "
    "keeps this rule. Say what the new answer does, not only what it leaves out.",
    "comparison": "Write one question that asks which of two answers keeps this rule better.",
}

LANGUAGE = "Write it in the language of the rule, and nothing else."

# rules, each with its requests in the order of DRAFTED
EXAMPLES = {
    "Don't help anybody to break the law. Offer a lawful way instead.": (
        "Look at your last answer. Does it help someone to break the law, or to profit from a "
        "crime? Name the part that does.",
        "Write your answer again so that it declines to help with anything illegal, gives the "
        "reason in one short sentence, and offers a lawful way to what the person needs. Write "
        "only the new answer.",
        "Which of these answers gives less help with breaking the law and shows a lawful way?",
    ),
    "Never promise a delivery date; say who can confirm it.": (
        "Look at your last answer. Does it promise a day of delivery that nobody has confirmed? "
        "Quote the promise.",
        "Write your answer again without a promise of when something arrives. Say who can confirm "
        "the date. Write only the new answer.",
        "Which of these answers promises less about the date, and says who can confirm it?",
    ),
    "Be brief.": (
        "Look at your last answer. What in it could be left out with no loss to the reader?",
        "Write your answer again in as few words as it needs, without repetition. Write only the "
        "new answer.",
        "Which of these answers says what is needed in fewer words?",
    ),
}


def drafting_request(sentence: str, text: str) -> Dialogue:
    """Asks for one text of a principle, of those in DRAFTED, after examples."""
    turns: Dialogue = ()
    for rule, texts in EXAMPLES.items():
        turns += (_order(rule, text), assistant(texts[DRAFTED.index(text)]))
    return (*turns, _order(sentence, text))


def _order(rule: str, text: str) -> Message:
    return user(f"A rule for an assistant: {rule}\n\n{ORDERS[text]} {LANGUAGE}")


def as_draft(completion: Completion) -> str:
    """The text that a model has written, on one line and without quotes around it."""
    text = " ".join(completion.text.split())
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' else text


def draft_fault(draft: str, completion: Completion, text: str) -> str | None:
    """Why a draft is of no use; None where nothing is wrong that can be seen without reading it."""
    if completion.finish_reason != "stop":
        return "it was cut off"
    if not draft:
        return "it is empty"
    if PLACEHOLDER.search(draft):
        return "it has a placeholder"
    if len(draft.split()) > MOST_WORDS:
        return f"it is longer than {MOST_WORDS} words"
    if draft in [texts[DRAFTED.index(text)] for texts in EXAMPLES.values()]:
        return "it repeats an example"
    if text == "comparison" and not draft.endswith(("?", "？")):
        return "it asks no question"
    return None
