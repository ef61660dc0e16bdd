"""`python -m website`: lays the pages out in build/docs and has MkDocs make build/site of them."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from website.links import fault, loaded_from_elsewhere, outside_links
from website.llms import llms_txt
from website.pages import lay_out, written
from website.prose import ROOT

BUILD = ROOT / "build"


def main() -> int:
    pages, site = BUILD / "docs", BUILD / "site"
    links = list(outside_links(written()))
    if problems := [f"{page}: {link} {fault(link)}" for page, link in links if fault(link)]:
        return failed(problems)
    lay_out(pages)
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    nav = with_folders(config["nav"], pages)
    settings = BUILD / "mkdocs.yml"
    settings.write_text(yaml.safe_dump({"INHERIT": "../mkdocs.yml", "nav": nav}), encoding="utf-8")
    # not --quiet, with which --strict lets warnings pass
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(settings)]
    if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
        return code
    if problems := loaded_from_elsewhere(site):
        return failed(problems)
    text = llms_txt(config["site_name"], config["site_description"], nav, pages)
    (site / "llms.txt").write_text(text, encoding="utf-8")
    for page in pages.rglob("*.md"):
        shutil.copy(page, site / page.relative_to(pages))
    addresses = sorted({address for _, address in links})
    (BUILD / "links.txt").write_text("\n".join(addresses) + "\n", encoding="utf-8")
    print(f"{site / 'index.html'}; links that leave the site are in {BUILD / 'links.txt'}")
    return 0


def failed(problems: list[str]) -> int:
    print("\n".join(problems), file=sys.stderr)
    return 1


def with_folders(nav: Any, pages: Path) -> Any:
    """The navigation, with the pages of a folder ("conf/") in its place, its index first."""
    if isinstance(nav, dict):
        return {title: with_folders(entry, pages) for title, entry in nav.items()}
    if isinstance(nav, list):
        return [with_folders(entry, pages) for entry in nav]
    if not nav.endswith("/"):
        return nav
    files = sorted((pages / nav).glob("*.md"), key=lambda file: (file.stem != "index", file.stem))
    return [file.relative_to(pages).as_posix() for file in files]


if __name__ == "__main__":
    sys.exit(main())
