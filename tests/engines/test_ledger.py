"""The ledger: what was committed is there, once, and for good."""

import asyncio
import contextlib
import dataclasses
import random
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.config.schema import Sampling
from cai.digest import digest
from cai.engines.base import Completion, Request
from cai.engines.ledger import Ledger, Recorded
from cai.engines.rows import gather_rows
from cai.errors import CaiError
from cai.messages import user

DIGEST = "ab" * 32
DONE = Completion("A river – 河, \ud800 and \x00.", "stop", 7, 3, 0.25, (-0.5, float("-inf")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def test_what_was_put_is_got_after_reopening(path: Path):
    ledger = Ledger(path)
    ledger.put("sft", "model", [(DIGEST, DONE)])
    assert ledger.get(DIGEST) == DONE and ledger.get("cd" * 32) is None
    ledger.close()
    assert Ledger(path).get(DIGEST) == DONE


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return Ledger(tmp_path_factory.mktemp("ledger") / "shared.sqlite")


@given(
    st.builds(
        Completion,
        st.text(),
        st.text(),
        st.integers(0, 2**40),
        st.integers(0, 2**40),
        st.floats(0, 1e9),
    )
)
def test_any_completion_comes_back_as_it_was(shared: Ledger, completion: Completion):
    shared.put("sft", "model", [(digest(completion), completion)])
    assert shared.get(digest(completion)) == completion


def test_a_request_is_kept_once_and_the_first_answer_stays(path: Path):
    ledger, other = Ledger(path), dataclasses.replace(DONE, text="other")
    ledger.put("sft", "model", [(DIGEST, DONE), (DIGEST, other)])
    ledger.put("label", "model", [(DIGEST, other)])
    assert ledger.get(DIGEST) == DONE
    assert [(row["stage"], row["completions"]) for row in ledger.cost()] == [("sft", 1)]


def test_a_batch_is_kept_whole_or_not_at_all(path: Path):
    ledger = Ledger(path)
    with pytest.raises(OverflowError):
        ledger.put(
            "sft",
            "model",
            [(DIGEST, DONE), ("cd" * 32, dataclasses.replace(DONE, new_tokens=2**70))],
        )
    assert ledger.get(DIGEST) is None


KILLED = """
import os, sys
from pathlib import Path
from cai.digest import digest
from cai.engines.base import Completion
from cai.engines.ledger import Ledger
Ledger(Path(sys.argv[1])).put("sft", "model", [("ab" * 32, Completion("kept", "stop", 1, 1, 0.0))])
os.kill(os.getpid(), 9)
"""


def test_what_was_put_survives_a_kill(path: Path):
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)]).returncode == -9
    found = Ledger(path).get(DIGEST)
    assert found is not None and found.text == "kept"


def test_the_cost_is_summed_by_stage_and_model(path: Path):
    ledger = Ledger(path)
    ledger.put("revise", "m1", [(f"{n:02x}" * 32, DONE) for n in range(3)])
    ledger.put("label", "m1", [("dd" * 32, DONE)])
    ledger.put("label", "m2", [("ee" * 32, DONE)])
    sums = {(row.pop("stage"), row.pop("model")): row for row in ledger.cost()}
    assert list(sums) == [("revise", "m1"), ("label", "m1"), ("label", "m2")]
    assert sums["revise", "m1"] == {
        "completions": 3,
        "prompt_tokens": 21,
        "new_tokens": 9,
        "seconds": 0.75,
    }


def test_a_damaged_file_is_named(path: Path):
    path.write_bytes(b"this is no database" * 300)
    with pytest.raises(CaiError, match=r"ledger\.sqlite is damaged .*; move it away"):
        Ledger(path)


def test_a_flipped_bit_gives_an_error_or_is_asked_again_and_never_another_answer(path: Path):
    ledger = Ledger(path)
    kept = {digest(n): dataclasses.replace(DONE, text=f"answer {n} " * 20) for n in range(100)}
    ledger.put("sft", "model", list(kept.items()))
    ledger.close()
    sound, rng, outcomes = path.read_bytes(), random.Random(8), Counter[str]()
    for number in range(200):
        data = bytearray(sound)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (path.parent / str(number)).write_bytes(data)
        try:
            damaged = Ledger(path.parent / str(number))
        except CaiError:
            outcomes["refused"] += 1
            continue
        try:
            found = {key: damaged.get(key) for key in kept}
            assert all(found[key] in (None, kept[key]) for key in kept)
            outcomes["asked again" if None in found.values() else "unharmed"] += 1
        except CaiError:
            outcomes["refused"] += 1
        finally:
            damaged.close()
    assert outcomes["asked again"] > 30 and outcomes["refused"] > 0, outcomes


def test_a_ledger_of_schema_1_is_migrated(path: Path):
    ledger = Ledger(path)
    ledger.put("sft", "model", [(DIGEST, DONE)])
    ledger.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("alter table completions drop column checksum")
        database.execute("pragma user_version=1")
    for _ in range(2):
        migrated = Ledger(path)
        assert migrated.get(DIGEST) == DONE
        migrated.put("sft", "model", [("cd" * 32, DONE)])
        migrated.close()


def test_another_schema_is_refused(path: Path):
    with sqlite3.connect(path) as database:
        database.execute("pragma user_version=99")
    with pytest.raises(CaiError, match="another version of cai \\(schema 99, not 2\\)"):
        Ledger(path)


def test_a_missing_folder_is_named(path: Path):
    with pytest.raises(CaiError, match=r"nowhere/ledger\.sqlite"):
        Ledger(path.parent / "nowhere" / "ledger.sqlite")


def test_a_model_that_cannot_be_opened_is_tried_once(tmp_path: Path):
    opened = []

    def open_one():
        opened.append(1)
        raise CaiError("no memory")

    recorded = Recorded(open_one, Ledger(tmp_path / "l.sqlite"), "sft", "m")
    with pytest.raises(CaiError):
        asyncio.run(
            gather_rows(
                [recorded.complete(Request((user(str(n)),), Sampling())) for n in range(50)]
            )
        )
    assert len(opened) == 1


def test_the_ledger_ignores_doubles_alone(
    tmp_path: Path,
):  # `insert or ignore` also drops a row that breaks `not null`
    from cai.engines.base import Completion

    ledger = Ledger(tmp_path / "l.sqlite")
    with pytest.raises(CaiError):
        ledger.put("sft", "m", [("ab" * 32, Completion("x", "stop", None, 1, 0.0))])  # type: ignore
