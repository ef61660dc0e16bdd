"""What people are told to install exists, and the sets of versions that are shipped resolve."""

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def repository_texts() -> dict[str, str]:
    """Every text file that git has, by its path; without this one."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    texts = {}
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if path.is_file() and path.suffix != ".png" and path != Path(__file__):
            texts[name] = path.read_text(encoding="utf-8")
    return texts


def test_no_text_installs_a_name_that_is_not_ours():
    """Anybody could register it. Everything is installed from a checkout: `-e '.[extra]'`."""
    texts = repository_texts()
    assert len(texts) > 200
    name = PROJECT["name"].replace("-", "[-_.]")
    pattern = re.compile(rf"(install\s[^\n]*{name})|({name}\[)", re.IGNORECASE)
    assert [path for path, text in texts.items() if pattern.search(text)] == []


def test_every_extra_that_a_text_names_exists():
    extras = set()
    for text in repository_texts().values():
        extras.update(re.findall(r"['\" ]\.\[([a-z-]+)\]['\"]", text))
    assert {"dev", "qlora", "otel"} <= extras
    assert extras <= set(PROJECT["optional-dependencies"])
