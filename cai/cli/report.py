"""`cai report`: what a run changed and where its page is; one page for several evaluations."""

from pathlib import Path

from cai.cli.options import verb_parser
from cai.errors import UsageError
from cai.redact import safe
from cai.report.compare import Evaluation, comparison_page, load_evaluations
from cai.report.page import verdict
from cai.scoring.adherence import Adherence
from cai.store.run_folder import Run, find_run

LONGEST = 80  # characters of the runs' names in the name of a file


def main(arguments: list[str]) -> None:
    """Prints what one run changed, and the path of its page.

    Of several evaluations, writes a page that compares them.

    A sweep leaves several evaluations in one run. Raises UsageError where a run has no finished
    evaluation or report.
    """
    parser = verb_parser(
        "report",
        "What a run changed, and the path of its page. Of several runs, or of a sweep, one page "
        "that compares them.",
        "outputs/quickstart outputs/other -o both.html",
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="folders of runs (default: the newest)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where to write the page of several"
    )
    options = parser.parse_args(arguments)
    roots = list(dict.fromkeys(find_run(name) for name in options.runs or [None]))
    # paths tell runs of one name apart
    same_names = len({root.name for root in roots}) < len(roots)
    evaluations = []
    for root in roots:
        evaluations += load_evaluations(root, str(root) if same_names else root.name)
    if len(roots) == 1:
        page = find_page(roots[0])
        for sentence in verdict_of(evaluations[0]) if len(evaluations) == 1 else ():
            print(safe(sentence))
        print(page)
    if len(evaluations) > 1:
        target = options.output or _default_target(roots)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(comparison_page(evaluations))
        print(target)


def verdict_of(evaluation: Evaluation) -> list[str]:
    """What changed, and which stage did it; [] of a run of an earlier version."""
    summary = evaluation.stages["evaluate"].summary
    if "changes" not in summary:
        return []
    adherence = Adherence.of(summary)
    return verdict(evaluation.metrics, evaluation.kinds, summary["changes"], adherence)


def _default_target(roots: list[Path]) -> Path:
    names = "+".join(root.name for root in roots)
    name = names if len(names) < LONGEST else f"{len(roots)}-runs"
    return roots[0].parent / f"report-{name}.html"


def find_page(root: Path) -> Path:
    """A run's own page. Raises UsageError where there is none."""
    manifest = Run(root).latest("report")
    if manifest is None:
        raise UsageError(f"{root}: the stage 'report' has not finished; see `cai status {root}`")
    return Run(root).folder("report", manifest.key) / "out" / "report.html"
