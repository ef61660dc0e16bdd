"""Every quality gate with a text that fails it and one that passes."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from cai.digest import seed_of
from cai.method.gates import ENGLISH_GATES, GATES, Draft, failed_gates, serves_harm
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
    "serves_harm": {"revision": "I won't steal it. I can tell you how bicycles are unlocked."},
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


@pytest.mark.parametrize(
    ("half", "precision", "recall"), [("dev", 0.92, 0.8), ("test", 0.68, 0.78)]
)
def test_offers_that_serve_the_harm(half: str, precision: float, recall: float):
    """What was measured: tuned on dev, and on test not good enough to be on by default."""
    marked = yaml.safe_load((Path(__file__).parent / "marked_offers.yaml").read_text("utf-8"))
    caught = {
        kind: [
            serves_harm(dataclasses.replace(GOOD, prompt=prompt, revision=revision))
            for prompt, revision in rows
            if seed_of(0, prompt, revision) % 2 == (half == "test")
        ]
        for kind, rows in marked.items()
    }
    hits, false_alarms = sum(caught["bad"]), sum(caught["good"])
    assert hits / (hits + false_alarms) >= precision
    assert hits / len(caught["bad"]) >= recall


def test_a_harmless_prompt_may_be_offered_its_own_words():
    draft = dataclasses.replace(GOOD, revision="I can help you steal a bicycle.", benign=True)
    assert not serves_harm(draft) and serves_harm(dataclasses.replace(draft, benign=False))
