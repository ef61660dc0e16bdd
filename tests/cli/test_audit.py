"""`cai audit` as a person types it."""

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cai.paths import cache

Audit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def audit(cai: Audit, tiny_model: Path) -> Audit:
    smoke = ("experiment=smoke", "model=path", f"model.path={tiny_model}", "sft.limit=null")
    return partial(cai, "audit", *smoke)


def mine(folder: Path, rows: list[dict[str, str]]) -> list[str]:
    (folder / "mine.jsonl").write_text(
        "".join(json.dumps(row | {"split": "train"}) + "\n" for row in rows)
    )
    return ["data.seed.kind=file", f"data.seed.path={folder}/mine.jsonl"]


def test_it_shows_what_is_lost_and_trains_nothing(audit: Audit, tmp_path: Path):
    rows = [
        {"prompt": f"Write [b]poem {n}[/b].", "completion": f"Roses {n}.", "task": "verse"}
        for n in range(4)
    ]
    done = audit(*mine(tmp_path, [*rows, rows[0], {"foo": "bar"}]))
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.replace("│", " ").split())
    assert "unfit 1, without an answer 0" in said and "mine.jsonl:6: no known layout" in done.stderr
    assert (
        "1 exact" in said
        and "task verse 5" in said
        and "harmbench 0" in said
        and "seed 5 (100%)" in said
    )
    assert "sl_cai: can be audited once sft and revise have run" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_it_renders_rows_with_the_configured_template(
    audit: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (cache() / "wheels").mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/wheels").symlink_to(cache() / "wheels")  # its models are this test's own
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "long.jinja").write_text(
        "{{ '<|begin|>' * 99 }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    rows = mine(tmp_path, [{"prompt": "Say it.", "completion": "It."}] * 4)
    done = audit(*rows, "model.template=long.jinja", "sft.max_length=128")
    assert done.returncode == 0, done.stderr
    assert "most 108" in done.stdout  # 99 new markers of one token each, as sft would have them
    assert not (tmp_path / "outputs").exists()


def test_it_fails_as_the_stage_would(audit: Audit, tmp_path: Path):
    done = audit(
        *mine(tmp_path, [{"prompt": "Hi", "completion": "Hello"}] + [{"foo": ""}] * 3),
    )
    assert done.returncode == 1 and "rows read" in done.stdout
    assert (
        "sft: 75% of the rows are lost, and sft.max_lost is 0.5: of 4 read, 3 do not fit"
        in done.stderr
    )


def test_a_word_that_is_no_override_is_refused(audit: Audit):
    done = audit("sft")
    assert done.returncode == 2 and "'sft' is no verb and no override" in done.stderr
