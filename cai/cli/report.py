"""`cai report`: where a run's page is; and one page for several evaluations, of a sweep or of several runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cai.errors import UsageError
from cai.report.compare import comparison_page, evaluations
from cai.store.run_folder import Run, find_run


def main(arguments: Sequence[str]) -> None:
    """Prints where the page of one run is, and of several evaluations writes one and prints its path.

    Raises UsageError where a run has no finished evaluation or report.
    """
    parser = argparse.ArgumentParser(
        prog="cai report", description="The page of a run, or of several."
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="folders of runs (default: the newest)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where to write the page of several"
    )
    options = parser.parse_args(arguments)
    roots = list(dict.fromkeys(find_run(name) for name in options.runs or [None]))
    clear = len({root.name for root in roots}) == len(
        roots
    )  # else their paths tell runs of one name apart
    found = [one for root in roots for one in evaluations(root, root.name if clear else str(root))]
    if len(roots) == 1:
        print(_own_page(roots[0]))
    if len(found) == 1:
        return
    names = "+".join(root.name for root in roots)
    target = (
        options.output
        or roots[0].parent / f"report-{names if len(names) < 80 else f'{len(roots)}-runs'}.html"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(comparison_page(found))
    print(target)


def _own_page(root: Path) -> Path:
    manifest = Run(root).latest("report")
    if manifest is None:
        raise UsageError(f"{root}: the stage 'report' has not finished; see `cai status {root}`")
    return Run(root).folder("report", manifest.key) / "out" / "report.html"
