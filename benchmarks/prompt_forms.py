"""Which form of the critique and revision requests gives a small model the most usable revisions?

    .venv/bin/python benchmarks/prompt_forms.py --prompts 160

Runs `cai` once for each form on the same red-team prompts, in one run folder. Forms after the same
instruction tuning share it and its first answers, and what was measured before comes from the
ledger. A revision is usable if it passes every gate. The table gives the share with its Wilson
interval, and how many of the usable ones decline the request.
Both are rules; docs/prompt-forms.md says what a reader found.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from cai.data.parquet import read_rows
from cai.method.refusal import refuses
from cai.scoring.statistics import share

PLAIN = ["sft.data=[seed]", "sft.limit=56", "sft.args.num_train_epochs=1"]
FORMS = {
    "critique, no exemplars": ["revise.exemplars=0"],
    "direct, no exemplars": ["revise.exemplars=0", "revise.critique=false"],
    "critique, no exemplars, as text": ["revise.exemplars=0", "revise.form=text"],
    "critique, 1 sampled": ["revise.exemplars=1"],
    "direct, 1 sampled": ["revise.exemplars=1", "revise.critique=false"],
    "direct, 2 sampled": ["revise.exemplars=2", "revise.critique=false"],
    "critique, 2 sampled": ["revise.exemplars=2"],
    "critique, 2 fixed": ["revise.exemplars=2", "revise.exemplar_choice=fixed"],
    "critique, 1 sampled, as text": ["revise.exemplars=1", "revise.form=text"],
}
TUNINGS = {"instructions alone": PLAIN, "warm start": []}  # the latter is experiment=bench's own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=160)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--tunings", nargs="*", default=list(TUNINGS), choices=list(TUNINGS))
    parser.add_argument(
        "--forms", nargs="*", default=list(FORMS), choices=list(FORMS), metavar="FORM"
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for all of them", default=[])
    options = parser.parse_intermixed_args()
    common = [
        "experiment=bench",
        "name=prompt-forms",
        f"outputs={options.outputs}",
        "stages=[sft,revise]",
    ]
    common += [f"revise.prompts.limit={options.prompts}"]
    print("| tuning | form | usable | of them decline | refusal rate before | gated by |")
    print("| --- | --- | --- | --- | --- | --- |")
    for tuning in options.tunings:
        for form in options.forms:
            words = [*common, *TUNINGS[tuning], *FORMS[form], *options.overrides]
            subprocess.run(
                [sys.executable, "-m", "cai", *words], check=True, stdout=subprocess.DEVNULL
            )
            print(
                f"| {tuning} | {form} "
                f"| {row(options.outputs / 'prompt-forms' / 'latest' / 'revise')}",
                flush=True,
            )


def row(stage: Path) -> str:
    summary = json.loads((stage / "manifest.json").read_text())["summary"]
    chains = read_rows(stage / "out" / "revisions.parquet")
    kept = share(summary["kept"], summary["prompts"])
    declined = sum(refuses(chain["final"]) for chain in chains)
    before = sum(refuses(chain["answer"]) for chain in chains)
    gates = ", ".join(
        f"{name} {count}" for name, count in sorted(summary["gates"].items(), key=lambda g: -g[1])
    )
    usable = (
        f"{summary['kept']} = {100 * kept.value:.0f} % "
        f"[{100 * kept.low:.0f}, {100 * kept.high:.0f}]"
    )
    return f"{usable} | {declined} | {before} of {summary['prompts']} | {gates} |"


if __name__ == "__main__":
    main()
