"""Which form of the critique and revision requests gives a small model the most usable revisions?

    .venv/bin/python benchmarks/prompt_forms.py --prompts 160

Runs `cai` once for each form on the same red-team prompts, in one run folder, so that instruction tuning and the first
answers are shared. A revision is usable if it passes every gate; the table gives the share with its Wilson interval.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from cai.scoring.statistics import share

FORMS = {
    "critique, no exemplars, chat": ["revise.exemplars=0"],
    "direct, no exemplars, chat": ["revise.exemplars=0", "revise.critique=false"],
    "critique, no exemplars, text": ["revise.exemplars=0", "revise.form=text"],
    "critique, 1 sampled, chat": ["revise.exemplars=1"],
    "direct, 1 sampled, chat": ["revise.exemplars=1", "revise.critique=false"],
    "direct, 2 sampled, chat": ["revise.exemplars=2", "revise.critique=false"],
    "critique, 2 sampled, chat": ["revise.exemplars=2"],
    "critique, 2 fixed, chat": ["revise.exemplars=2", "revise.exemplar_choice=fixed"],
    "critique, 1 sampled, text": ["revise.exemplars=1", "revise.form=text"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=160)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--forms", nargs="*", default=list(FORMS), help="some of them, by name")
    options = parser.parse_args()
    common = ["experiment=quickstart", "name=prompt-forms", f"outputs={options.outputs}", "stages=[sft,revise]"]
    common += [f"revise.prompts.limit={options.prompts}"]
    results = {}
    print("| form | usable | refuses | minutes | gated by |\n| --- | --- | --- | --- | --- |")
    for form in options.forms:
        subprocess.run([sys.executable, "-m", "cai", *common, *FORMS[form]], check=True, stdout=subprocess.DEVNULL)
        latest = options.outputs / "prompt-forms" / "latest" / "revise" / "manifest.json"
        manifest = json.loads(latest.read_text())
        summary = manifest["summary"]
        kept = share(summary["kept"], summary["prompts"])
        refused = share(sum(one["refused"] for one in summary["principles"].values()), summary["prompts"])
        gates = ", ".join(f"{name} {count}" for name, count in sorted(summary["gates"].items(), key=lambda g: -g[1]))
        shown = [f"{100 * one.value:.0f} % [{100 * one.low:.0f}, {100 * one.high:.0f}]" for one in (kept, refused)]
        print(f"| {form} | {shown[0]} | {shown[1]} | {manifest['seconds'] / 60:.1f} | {gates} |", flush=True)
        results[form] = {"summary": summary, "seconds": manifest["seconds"]}
    (options.outputs / "prompt-forms" / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
