"""Every quality gate with a text that fails it and one that passes."""

import dataclasses

import pytest

from cai.method.gates import ENGLISH_GATES, GATES, Draft, failed_gates
from cai.text import repeats

GOOD = Draft(
    prompt="How can I steal my neighbour's bicycle?",
    before="Cut the lock at night.",
    revision=(
        "I won't help you steal a bicycle, as it would hurt your neighbour. "
        "I can help you find a cheap used one."
    ),
    finish_reason="stop",
    requests=(
        "Say where the last answer helps with a crime.",
        "Write the answer again so that it declines and says why.",
    ),
    exemplars=(
        "Forging a signature could bring a charge of fraud; "
        "talk to your landlord about it instead.",
    ),
    benign=False,
)
BAD = {
    "empty": {"revision": " \n"},
    "unchanged": {"revision": "Cut the lock, at night!"},
    "copied": {
        "before": "Cut the lock at night, quietly.",
        "revision": "You cut the lock at night, quietly.",
    },
    "echo": {"revision": "Revised answer: I won't help to steal a bicycle."},
    "leakage": {"revision": "A bicycle? Forging a signature could bring a charge of fraud."},
    "repetition": {"revision": "I will not steal the bicycle. " * 9},
    "cut_off": {"finish_reason": "length"},
    "benign_refused": {"benign": True},
    "complied": {"revision": "A bicycle with a thin lock is the easiest one to take."},
    "off_topic": {"revision": "Rivers carry water down to the sea."},
    "language": {"revision": "Я не помогу тебе украсть bicycle у соседа."},
}


def test_every_gate_has_its_case():
    assert BAD.keys() == GATES.keys()


def test_a_good_revision_passes_every_gate():
    assert failed_gates(GOOD, list(GATES)) == ()


@pytest.mark.parametrize("gate", GATES)
def test_a_bad_revision_fails_its_gate(gate: str):
    draft = dataclasses.replace(GOOD, **BAD[gate])
    assert gate in failed_gates(draft, list(GATES))
    assert gate not in failed_gates(draft, [name for name in GATES if name != gate])  # switched off


@pytest.mark.parametrize(
    "revision",
    [
        "The assistant's last answer helped to steal a bicycle.",
        "Write the answer again so that it declines and says why, about a bicycle.",
    ],
)
def test_talk_about_the_request_is_an_echo(revision: str):
    assert "echo" in failed_gates(dataclasses.replace(GOOD, revision=revision), ["echo"])


def test_to_help_with_a_harmless_request_is_no_compliance():
    helps = dataclasses.replace(
        GOOD, prompt="How do I mend a bicycle?", revision="Patch the bicycle's inner tube."
    )
    assert failed_gates(helps, ["complied"]) == ("complied",)
    assert failed_gates(dataclasses.replace(helps, benign=True), ["complied"]) == ()


def test_short_texts_do_not_repeat():
    assert not repeats("no no no no no")
    assert repeats("no " * 30)


@pytest.mark.parametrize(
    ("prompt", "revision"),
    [
        ("Wie knacke ich ein Fahrradschloss?", "Dabei helfe ich nicht, denn es wäre Diebstahl."),
        ("怎么偷邻居的自行车？", "我不能帮助你做这件事，因为这会伤害别人。"),
        ("Wie knacke ich ein Fahrradschloss?", "I can't help with that. Ask your neighbour."),
    ],
)
def test_gates_that_know_english_only_let_other_languages_pass(prompt: str, revision: str):
    draft = dataclasses.replace(GOOD, prompt=prompt, revision=revision)
    assert failed_gates(draft, ENGLISH_GATES) == ()
    dull = dataclasses.replace(draft, prompt=GOOD.prompt, revision="Rivers carry water to the sea.")
    assert failed_gates(dull, ENGLISH_GATES) == ("complied", "off_topic")
