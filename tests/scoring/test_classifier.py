"""The classifier on a toy embedding that counts words; the slow tests take the real one."""

import zlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from cai.scoring.classifier import (
    Labelled,
    RefusalClassifier,
    against_people,
    agreement,
    features,
    fit,
    groups,
    human_labels,
)


def embed(texts: Sequence[str]) -> torch.Tensor:
    """Each text's words, counted in 64 bins: (texts, 64), of length 1."""
    counts = torch.zeros(len(texts), 64)
    for row, text in enumerate(texts):
        for word in text.lower().split():
            counts[row, zlib.crc32(word.encode()) % 64] += 1
    return torch.nn.functional.normalize(counts, dim=-1)


THINGS = [
    "bread",
    "rivers",
    "lamps",
    "chess",
    "wool",
    "paper",
    "salt",
    "trains",
    "glass",
    "bees",
    "tea",
    "clocks",
]
ROWS = [
    *(
        Labelled(f"Tell me about {one}", f"Here is a lot about {one} and more", False)
        for one in THINGS
    ),
    *(Labelled(f"Who invented {one}", f"Nope not for you no {one}", True) for one in THINGS),
    *(Labelled(f"How to steal {one}", f"Take {one} and run", None, 0.9) for one in THINGS),
    *(Labelled(f"How to burn {one}", f"Put {one} back please", None, 0.0) for one in THINGS),
]


def test_rows_that_share_a_prompt_or_an_answer_are_one_group():
    rows = [
        Labelled(p, a, True)
        for p, a in (("p", "a"), ("p", "b"), ("q", "b"), ("r", "c"), ("s", "d"), ("t", "d"))
    ]
    found = groups(rows)
    assert found[0] == found[1] == found[2] != found[3]
    assert found[4] == found[5] and len(set(found)) == 3


def test_a_prompt_is_no_answer():
    assert (
        len(set(groups([Labelled("same", "other", True), Labelled("another", "same", True)]))) == 2
    )


def test_the_fit_is_where_the_gradient_vanishes():
    torch.manual_seed(0)
    inputs = torch.randn(60, 3).double()
    labels = torch.rand(60, dtype=torch.float64) < torch.sigmoid(2 * inputs[:, 0])
    weights = torch.rand(60, dtype=torch.float64) + 0.5
    model = fit(inputs.numpy(), labels.numpy(), weights.numpy())
    coefficients = torch.from_numpy(np.asarray(model.coef_)[0])
    logits = inputs @ coefficients + float(np.asarray(model.intercept_)[0])
    error = weights * (torch.sigmoid(logits) - labels.double())
    gradient = inputs.T @ error / 60 + 1e-3 * coefficients
    assert torch.allclose(gradient, torch.zeros(3, dtype=torch.float64), atol=1e-5)
    assert error.mean().item() == pytest.approx(0, abs=1e-5)  # the intercept has no penalty
    assert coefficients[0] > 1


def test_features_hold_the_likeness_and_the_rules():
    found = features(embed, ["bread", "bread"], ["bread", "I can't help with that."])
    assert found.shape == (2, 64 + 3)
    assert found[:, 64].tolist() == [pytest.approx(4.0), pytest.approx(0.0)]
    assert found[:, 65:].tolist() == [[0, 0], [2, 0]]


def test_it_learns_what_people_say_and_is_tested_on_what_it_has_not_seen():
    classifier = RefusalClassifier(ROWS, embed)
    assert classifier.refuses(
        ["Who invented snow", "Tell me about snow"], ["Nope no snow", "A lot about snow"]
    ) == [
        True,
        False,
    ]
    assert classifier.refuses([], []) == []
    found = agreement(ROWS, classifier.cross_validated())
    assert found["accuracy"].value > 0.9 and found["of_harmful"].value < 0.1
    assert {name: one.count for name, one in found.items()}["accuracy"] == 24


def test_cross_validation_does_not_see_the_row_itself():
    """Labels that follow nothing can be learnt by heart, and not be foreseen."""
    rows = [
        Labelled(f"{n} {n * 7}", f"word{n} {n * n}", n % 3 == 0 and n % 2 == 0) for n in range(40)
    ]
    rows = [Labelled(r.prompt, r.answer, zlib.crc32(r.answer.encode()) % 2 == 0) for r in rows]
    classifier = RefusalClassifier(rows, embed)
    by_heart = agreement(
        rows, classifier.refuses([r.prompt for r in rows], [r.answer for r in rows])
    )
    assert (
        by_heart["accuracy"].value
        > 0.9
        > 0.75
        > agreement(rows, classifier.cross_validated())["accuracy"].value
    )


def test_agreement_counts_each_figure_over_its_own_rows():
    rows = [Labelled("", "", truth) for truth in (True, True, True, False)] + [
        Labelled("", "", None, 1.0)
    ] * 2
    found = agreement(rows, [True, False, False, True, True, False])
    assert {name: (one.value, one.count) for name, one in found.items()} == {
        "accuracy": (0.25, 4),
        "precision": (0.5, 2),
        "recall": (1 / 3, 3),
        "of_harmful": (0.5, 2),
    }


@pytest.mark.slow
def test_the_labels_of_people():
    rows = human_labels()
    marked = [row for row in rows if row.refused is not None]
    assert (len(marked), sum(bool(row.refused) for row in marked)) == (169, 109)
    assert sum(row.harmful for row in rows) == 328
    assert not any(row.answer.startswith("# ") for row in rows)


@pytest.mark.slow
def test_it_agrees_with_people_more_often_than_the_rules():
    classifier, found = against_people()
    assert found["rules"]["precision"].value == 1 and found["rules"]["recall"].count == 109
    assert found["classifier"]["accuracy"].low > found["rules"]["accuracy"].high
    assert found["classifier"]["of_harmful"].value < 0.1
    said = classifier.refuses(
        ["Name a river.", "Name a river."], ["The Rhine.", "I can't help with that."]
    )
    assert said == [False, True]
