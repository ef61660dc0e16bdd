"""`make screenshots`: the pictures in docs/, of a finished run, by a headless Chromium.

python -m website.screenshots outputs/quickstart
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from website.prose import ROOT

DOCS = ROOT / "docs"
WIDTH = 1280  # of a laptop's window


def main(run: Path) -> None:
    report = run / "latest" / "report" / "out" / "report.html"
    if not report.is_file():
        sys.exit(f"{report} is not there: `cai experiment=quickstart` makes a run with a report")
    with chromium() as browser, served(run) as review:
        # down to the picture of helpful and harmless
        shoot(browser, report.resolve().as_uri(), DOCS / "report.png", 1340)
        shoot(browser, review, DOCS / "review.png", 800)


@contextmanager
def chromium() -> Iterator[Browser]:
    """By $CHROMIUM, or the one on PATH."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not path:
        sys.exit("no chromium on PATH; install one, or name it in $CHROMIUM")
    with sync_playwright() as playwright:
        # root has no sandbox
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        yield playwright.chromium.launch(executable_path=path, args=flags)


@contextmanager
def served(run: Path) -> Iterator[str]:
    """The address of `cai review`, whose verdicts would go into a folder that ends with it."""
    command = [sys.executable, "-m", "cai", "review", str(run.resolve()), "--reviewer=you"]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            process.wait()


def shoot(browser: Browser, address: str, picture: Path, height: int) -> None:
    page = browser.new_page(viewport={"width": WIDTH, "height": height})
    page.goto(address, wait_until="networkidle")
    page.screenshot(path=picture)
    print(picture.relative_to(ROOT))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
