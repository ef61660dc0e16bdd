"""Cohen's kappa of two reviewers."""

import random
import warnings

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from cai.data.verdicts import Kind, Verdict
from cai.messages import user
from cai.scoring.agreement import agreements, kappa


def said(reviewer: str, kind: Kind, number: int, choice: str, *texts: str) -> tuple[str, Verdict]:
    prompt = (user(f"Question {number}?"),)
    return reviewer, Verdict(kind, f"{number}", prompt, "", texts or ("x",), choice, "", reviewer)


def test_kappa_is_scikit_learns():
    rng = random.Random(0)
    for size in (2, 5, 40):
        one, other = ([rng.choice("abc") for _ in range(size)] for _ in range(2))
        counts = np.array([[sum(pair == (x, y) for pair in zip(one, other, strict=True))
                            for y in "abc"] for x in "abc"], dtype=float)  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert float(kappa(counts)) == pytest.approx(cohen_kappa_score(one, other), nan_ok=True)


def test_two_reviewers_are_compared_on_what_both_have_judged():
    words = ["good", "good", "bad", "bad", "good", "edit", "good", "bad"]
    others = ["good", "good", "bad", "good", "good", "edit", "bad", "bad"]
    verdicts = [said("ann", "revision", n, word) for n, word in enumerate(words)]
    verdicts += [said("ben", "revision", n, word) for n, word in enumerate(others)]
    verdicts += [said("ann", "revision", 99, "bad"), said("ann", "pair", 1, "a", "x", "y")]
    (found,) = agreements(verdicts)
    assert (found.first, found.second, found.kind) == ("ann", "ben", "revision")
    assert (found.same.value, found.same.count) == (0.75, 8)
    assert found.kappa is not None
    assert found.kappa.value == pytest.approx(cohen_kappa_score(words, others))
    assert found.kappa.low < found.kappa.value < found.kappa.high <= 1


def test_of_a_pair_it_is_the_answer_that_counts_not_its_side():
    verdicts = [
        said("ann", "pair", 1, "a", "x", "y"),
        said("ben", "pair", 1, "b", "y", "x"),
        said("ann", "pair", 2, "a", "x", "y"),
        said("ben", "pair", 2, "tie", "x", "y"),
    ]
    (found,) = agreements(verdicts)
    assert (found.same.value, found.same.count) == (0.5, 2)


def test_where_each_has_one_word_there_is_no_kappa():
    verdicts = [said(name, "revision", n, "good") for name in ("ann", "ben") for n in range(4)]
    (found,) = agreements(verdicts)
    assert found.same.value == 1 and found.kappa is None
    assert agreements(verdicts[:4]) == []
