"""`cai principles explain`: candidates against labelled pairs, and proposals on held-out ones."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from cai.engines.base import Completion, Request
from cai.messages import Prompt, user
from cai.method.constitution import Constitution
from cai.method.explaining import Pair, as_principles, read_proposal, vote
from tests.model_server import ModelHandler, served

Command = Callable[..., CompletedProcess[str]]

BRIEF = "Be brief."
PAIRS = [
    {"prompt": f"What is {n} and {n}?", "chosen": f"{2 * n}", "rejected": f"Well, it is {2 * n}."}
    for n in range(12)
]


class Handler(ModelHandler):
    """Proposes brevity, and as a judge chooses the shorter answer where it is asked for that.

    By any other principle it chooses (A)."""

    requests = 0

    def do_POST(self) -> None:
        type(self).requests += 1
        body = self.body()
        if not self.path.endswith("/chat/completions"):
            self.send_error(404)
            return
        text = body["messages"][0]["content"]
        if "Which rule" in text:
            self.reply({"message": {"role": "assistant", "content": "be brief.\n"}})
            return
        a, b = text.split("\n(A) ")[1].split("\n\nReply")[0].split("\n\n(B) ")
        prefers_a = len(a) < len(b) if "brief" in text else True
        likely = [
            {"token": f" {letter}", "logprob": -0.1 if prefers == prefers_a else -3.0}
            for letter, prefers in (("A", True), ("B", False))
        ]
        content = [{"token": " A", "logprob": likely[0]["logprob"], "top_logprobs": likely}]
        message = {"role": "assistant", "content": " A"}
        self.reply({"message": message, "logprobs": {"content": content}})


@pytest.fixture
def model() -> Iterator[list[str]]:
    """The overrides that name a server's model."""
    with served(Handler, "judge") as overrides:
        yield [*overrides, "engine.server.patience=5"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    (tmp_path / "mine.md").write_text(f"- {BRIEF}\n- Be kind.\n")
    return tmp_path


def row_of(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if start in line)
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_candidates_against_chance_and_a_file_of_the_good_ones(
    cai: Command, model: list[str], folder: Path
):
    words = ("principles", "explain", "pairs.jsonl", "--candidates", "mine.md", "--to", "good.yaml")
    done = cai(*words, *model)
    assert done.returncode == 0, done.stderr
    brief = row_of(done.stdout, BRIEF)
    assert brief == [BRIEF, "12", "0", "0", "100 % [76, 100]", "better"]
    assert row_of(done.stdout, "(no principle)")[1:] == ["0", "0", "12", "", "decides nothing"]
    assert "the longer answer is the preferred one" in done.stdout
    assert "WARNING: The judge (judge) goes by position: 67 % of its choices" in done.stdout
    (kept,) = Constitution.load(str(folder / "good.yaml")).principles
    assert kept.sentence == BRIEF

    asked = Handler.requests
    assert cai(*words[:-1], "other.yaml", *model).stdout.count("100 % [76, 100]") == 1
    assert Handler.requests == asked  # all of it was in the ledger
    refused = cai(*words, *model)
    assert refused.returncode == 2 and "good.yaml is already there" in refused.stderr


def test_proposals_are_chosen_on_one_half_and_measured_on_the_other(
    cai: Command, model: list[str], folder: Path
):
    done = cai("principles", "explain", "pairs.jsonl", "--propose", "2", "--to", "new.yaml", *model)
    assert done.returncode == 0, done.stderr
    cells = row_of(done.stdout, BRIEF)
    assert cells == [BRIEF, "6", "0", "0", *("100 % [61, 100]", "better", "100 % [61, 100]")]
    assert [p.sentence for p in Constitution.load(str(folder / "new.yaml")).principles] == [BRIEF]


def test_nothing_is_written_of_what_explains_no_more_than_chance(
    cai: Command, model: list[str], folder: Path
):
    (folder / "mine.md").write_text("- Be kind.\n")
    words = ["principles", "explain", "pairs.jsonl", "--candidates", "mine.md", "--to", "none.yaml"]
    done = cai(*words, "--pairs", "3", *model)
    assert "none.yaml: not written: no candidate explains more than chance" in done.stdout
    assert not (folder / "none.yaml").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["human_ham"], "'human_ham' is no data set and no file; did you mean 'human_harm'?"),
        (["pairs.jsonl", "--propose", "0"], "--propose: a number of 1 or more"),
        (["pairs.jsonl", "--pairs", "1", "--propose", "1"], "pairs of two prompts at least"),
        (["pairs.jsonl", "--candidates", "hamlessness"], "did you mean 'harmlessness'"),
    ],
)
def test_what_can_not_be_asked_is_said_at_once(
    cai: Command, folder: Path, words: list[str], message: str
):
    done = cai("principles", "explain", *words)
    assert done.returncode == 2 and message in done.stderr


def written(text: str, reason: str = "stop") -> str | None:
    return read_proposal(Completion(text, reason, 1, 1, 0.0))


def test_a_proposal_is_one_sentence():
    assert written("be kind.\nAnd so on") == "Be kind."
    assert written(" not insult people.") == "Do not insult people."
    assert written("The assistant's answers should be true.") == "Be true."
    assert written("be kind and", "length") is None
    assert written("be kind.\nand then", "length") == "Be kind."
    assert written("") is None and written("be {adjective}.") is None
    assert written("be " * 60) is None
    both = as_principles(["Be kind to all.", "Be kind to all!", "Cite a source for it."])
    assert [principle.id for principle in both] == ["be-kind-to-all", "cite-a-source-for-it"]


@pytest.mark.parametrize(
    ("first", "second", "choice"), [(1, -1, "agrees"), (-1, 1, "against"), (1, 1, "none")]
)
def test_a_vote_needs_both_orders(first: int, second: int, choice: str):
    """`first`, `second`: the log-odds of (A), with the better answer as (A) and as (B)."""

    async def judge(request: Request) -> Completion:
        better_first = "(A) good" in request.messages[0].content
        odds = first if better_first else second
        return Completion("", "score", 1, 0, 0.0, (odds / 2 - 2, -odds / 2 - 2))

    pair = Pair(Prompt.of((user("Hi"),), "mine"), "good", "bad")
    (principle,) = as_principles(["Be good."])
    result = asyncio.run(vote(pair, principle, judge))
    assert result is not None and result.choice == choice and 0 < result.letters < 0.5
