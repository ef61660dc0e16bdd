"""`cai init`: a folder to begin in, for people who have no checkout."""

from pathlib import Path

from cai.cli.options import verb_parser
from cai.errors import CaiError, UsageError

PRINCIPLES = """\
<!--
How the assistant is to behave. A dash, and then a sentence or a few: that is a principle.
These are of a pharmacy's assistant. Write your own in their place.

  cai principles check mine          what models are asked for each of them
  cai principles draft mine          has a model write better requests, for you to edit
-->

- Never give medical doses; say who to ask.
- Do not tell anyone what another customer has bought.
- If somebody is in danger, name the emergency number first.
- Speak kindly, and never blame the person.
- Answer in at most three sentences.
"""

EXPERIMENT = """\
# @package _global_
# Your recipe: the shipped quickstart, and what differs from it. Any setting can stand here. `cai
# run --help` lists the groups, and `cai plan experiment=mine` says what a change would run again.
# Other experiments are larger (laptop, gpu-7b), and so are other models (qwen2.5-7b).
defaults:
  - quickstart

name: mine

# principles/mine.md
constitution: mine

revise:
  # quickstart's, without `complied`: not every principle asks for a refusal.
  gates:
    - empty
    - unchanged
    - copied
    - echo
    - leakage
    - repetition
    - cut_off
    - off_topic
    - language

label:
  # By your principles. quickstart's `rule` reads none: it prefers answers that decline.
  kind: contrast
  harmless_share: null
  prompts:
    limit: 60
  benign:
    limit: 60
"""

PROBED = """\
# @package _global_
# Your recipe on prompts about your principles. A stronger model writes them, compares answers, and
# says of each answer whether it keeps a principle: 1.1 GB to download, and an hour on two cores. Or
# name another, such as qwen2.5-7b, or a server (/engine@probe.engine: openai, and so on).
defaults:
  - mine
  - /model@probe.model: qwen2.5-coder-1.5b
  - /model@label.model: qwen2.5-coder-1.5b
  - /model@evaluate.judge.model: qwen2.5-coder-1.5b

name: probed

# For each principle 8 prompts that tempt a model to break it, and 8 harmless ones like them.
probe:
  target: 8
  requests: 3
  rounds: 2

revise:
  prompts:
    data: [probe]
    limit: null
    offset: 0
  helpful:
    prompts:
      limit: 150

label:
  # The stronger model compares two answers under a principle.
  kind: feedback
  answers: 2
  prompts:
    data: [probe]
    limit: null
    offset: 0
  benign: null

evaluate:
  # Which principle holds, on prompts that nothing was trained on.
  adherence:
    data: [probe_test]
  suites:
    red_team:
      prompts:
        limit: 24
    benign:
      prompts:
        limit: 24
"""

FILES = {
    "principles/mine.md": PRINCIPLES,
    "conf/experiment/mine.yaml": EXPERIMENT,
    "conf/experiment/probed.yaml": PROBED,
    ".gitignore": "outputs/\nmultirun/\n",
}

NEXT = """\
now edit {principles}, and try:
  {enter}cai principles check mine      what each sentence becomes
  cai plan experiment=mine       what would run, and about how long
  cai experiment=mine            runs it
  cai plan experiment=probed     the same on prompts about your principles (docs/tutorial.md)"""


def main(arguments: list[str]) -> None:
    """Raises UsageError where the folder already has one of the files."""
    parser = verb_parser(
        "init", "A folder with principles and settings of your own, to begin in.", "my-assistant"
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), metavar="FOLDER")
    folder: Path = parser.parse_args(arguments).folder
    present = [name for name in FILES if (folder / name).exists()]
    if present:
        raise UsageError(f"{folder / present[0]} is already there; nothing was written")
    try:
        for name, text in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise CaiError(f"{error.filename}: {error.strerror}") from None
    enter = "" if folder == Path() else f"cd {folder}\n  "
    print(NEXT.format(principles=folder / "principles/mine.md", enter=enter))
