"""Known vulnerabilities by a local copy of the advisories (.ci/advisories.py)."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

SCRIPT = Path(__file__).parents[1] / ".ci" / "advisories.py"

PINS = (
    "# a comment\n-c other.txt\ntorch!=2.13.0+cpu\nMy_Lib==2.1\nother==1.0 ; python_version < '4'\n"
)


def package(name: str, ecosystem: str = "PyPI") -> dict[str, Any]:
    return {"package": {"name": name, "ecosystem": ecosystem}}


def advisory(number: int, affected: dict[str, Any]) -> dict[str, Any]:
    entry = package("my-lib") | affected
    return {"id": f"PYSEC-{number}", "summary": "Bad", "affected": [entry]}


def ranged(*events: dict[str, str], kind: str = "ECOSYSTEM") -> dict[str, Any]:
    return {"ranges": [{"type": kind, "events": list(events)}]}


CASES = {
    "before the fix": (ranged({"introduced": "0"}, {"fixed": "2.2"}), True),
    "fixed": (ranged({"introduced": "0"}, {"fixed": "2.1"}), False),
    "the last one": (ranged({"introduced": "0"}, {"last_affected": "2.1.0"}), True),
    "after the last one": (ranged({"introduced": "0"}, {"last_affected": "2.0"}), False),
    "never fixed": (ranged({"introduced": "1.0"}), True),
    "introduced later": (ranged({"introduced": "2.10"}), False),
    "introduced again": (
        ranged({"introduced": "0"}, {"fixed": "1.0"}, {"introduced": "2.1rc1"}, {"fixed": "3"}),
        True,
    ),
    "in no order": (ranged({"fixed": "2.1"}, {"introduced": "0"}), False),
    "listed": ({"versions": ["2.0", "2.1.0"]}, True),
    "not listed": ({"versions": ["2.0", "2.10", "odd-version"]}, False),
    "commits alone": (ranged({"introduced": "0"}, kind="GIT"), False),
    "another library": (ranged({"introduced": "0"}) | package("my-lib2"), False),
    "another ecosystem": (ranged({"introduced": "0"}) | package("my-lib", "npm"), False),
}


def audit(folder: Path, copy: Path) -> subprocess.CompletedProcess[str]:
    (folder / "pins.txt").write_text(PINS)
    command = [sys.executable, SCRIPT, copy, folder / "pins.txt"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_pinned_version_is_judged_by_lists_and_ranges(tmp_path: Path):
    """All cases in one copy; a folder of YAML, as pypa/advisory-database has them."""
    for number, (affected, _) in enumerate(CASES.values()):
        folder = tmp_path / "copy" / "vulns" / str(number)
        folder.mkdir(parents=True)
        text = yaml.safe_dump(advisory(number, affected))
        (folder / "PYSEC.yaml").write_text(text)
    result = audit(tmp_path, tmp_path / "copy")
    hits = {name for number, name in enumerate(CASES) if f"PYSEC-{number} Bad\n" in result.stdout}
    assert hits == {name for name, (_, hit) in CASES.items() if hit}
    assert result.returncode == 1 and "2 versions, 13 advisories, 5 vuln" in result.stderr


def write_zip(path: Path, advisories: list[dict[str, Any]]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for entry in advisories:
            archive.writestr(f"{entry['id']}.json", json.dumps(entry))
    return path


def test_a_zip_as_osv_has_it(tmp_path: Path):
    everywhere = ranged({"introduced": "0"})
    withdrawn = advisory(1, everywhere) | {"withdrawn": "2026-01-01T00:00:00Z"}
    clean = write_zip(tmp_path / "all.zip", [withdrawn, advisory(2, everywhere | package("numpy"))])
    result = audit(tmp_path, clean)
    assert result.returncode == 0 and result.stdout == ""
    hit = write_zip(tmp_path / "all.zip", [advisory(3, everywhere | package("OTHER"))])
    assert audit(tmp_path, hit).stdout == "other 1.0: PYSEC-3 Bad\n"


@pytest.mark.parametrize("content", ["", "README"])
def test_a_copy_without_advisories_is_no_clean_audit(content: str, tmp_path: Path):
    copy = tmp_path / "copy"
    copy.mkdir()
    if content:
        (copy / content).write_text("nothing here")
    result = audit(tmp_path, copy)
    assert result.returncode == 2 and "no advisories in OSV's format" in result.stderr
