"""CONTRIBUTING's recipes, each followed as it stands: its files written, its commands run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


class Checkout:
    """A copy of the sources that a recipe may change."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("cai", "conf", "principles"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)

    def follow(self, recipe: str) -> None:
        """Writes the files of `## Add a ...` that stand as a block below "Write `FILE`"."""
        section = GUIDE.split(f"## Add {recipe}\n")[1].split("\n## ")[0]
        blocks = re.findall(
            r"Write `([^`]+)`[^\n]*(?:\n   [^\n`]*)*\n\n   ```\w+\n(.*?)   ```", section, re.S
        )
        assert blocks, f"the recipe for {recipe} writes no file"
        for name, text in blocks:
            content = re.sub(r"^   ", "", text, flags=re.MULTILINE)
            (self.folder / name).write_text(content, encoding="utf-8")

    def edit(self, file: str, old: str, new: str) -> None:
        text = (self.folder / file).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file} has not one {old!r}"
        (self.folder / file).write_text(text.replace(old, new), encoding="utf-8")

    def run(self, *command: str) -> str:
        """What `python COMMAND` prints in the copy."""
        environment = os.environ | {"PYTHONPATH": str(self.folder)}
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def cai(self, *words: str) -> str:
        return self.run("-m", "cai", *words)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_principle(checkout: Checkout):
    checkout.follow("a principle")
    assert "principles" in checkout.cai("principles", "check", "principles/mine.yaml")
    assert "no-diagnosis" in checkout.cai("principles", "show", "mine")
    assert "sft" in checkout.cai("plan", "experiment=smoke", "constitution=mine")


def test_a_data_set(checkout: Checkout):
    checkout.follow("a data set")
    checkout.edit("conf/config.yaml", "- human_harm\n", "- human_harm\n      - mine\n")
    plan = checkout.cai("plan", "experiment=smoke", "sft.data=[seed,mine]", "sft.weights=null")
    assert plan.startswith("sft      run      not run yet")


def test_a_model(checkout: Checkout):
    checkout.follow("a model")
    assert "sft" in checkout.cai("plan", "experiment=smoke", "model=mine")


ANSWER = """
import asyncio
from cai.config.compose import compose
from cai.config.schema import Sampling
from cai.engines.base import Request, open_engine
from cai.messages import user
engine = open_engine(compose(["experiment=smoke", "engine=echo"]).engine, "any")
print(asyncio.run(engine.complete(Request((user("Hello."),), Sampling()))).text)
"""


def test_an_engine(checkout: Checkout):
    checkout.follow("an engine")
    (checkout.folder / "conf/engine/echo.yaml").write_text("kind: echo\n")
    row = '"echo": EngineKind("cai.engines.echo:EchoEngine"),'
    assert row.rstrip(",") in GUIDE
    checkout.edit("cai/engines/base.py", "ENGINES = {\n", f"ENGINES = {{\n    {row}\n")
    checkout.edit("cai/config/types.py", '"openai", "scripted"]', '"openai", "scripted", "echo"]')
    assert checkout.run("-c", ANSWER) == "Hello.\n"
    assert "sft" in checkout.cai("plan", "experiment=smoke", "engine=echo")


COUNT_CONFIG = """@dataclass(frozen=True, config=STRICT)
class CountConfig:
    different: bool = False


"""
SHOWN = """
from cai.stages.count import Summary
view = Summary(words=7).view("count")
print(view.description, view.lines)
"""


def test_a_stage(checkout: Checkout):
    checkout.follow("a stage")
    schema, plan = "cai/config/schema.py", "cai/run/plan.py"
    above = "@dataclass(frozen=True, config=STRICT)\nclass ReportConfig:"
    checkout.edit(schema, above, COUNT_CONFIG + above)
    field = "    report: ReportConfig = field(default_factory=ReportConfig)\n"
    counted = "    count: CountConfig = field(default_factory=CountConfig)\n"
    checkout.edit(schema, field, field + counted)
    checkout.edit(plan, "import build, dpo,", "import build, count, dpo,")
    checkout.edit(plan, "    evaluate.STAGE,\n", "    count.STAGE,\n    evaluate.STAGE,\n")
    (checkout.folder / "conf/count").mkdir()
    (checkout.folder / "conf/count/default.yaml").write_text("different: false\n")
    checkout.edit(
        "conf/config.yaml", "  - report: default\n", "  - report: default\n  - count: default\n"
    )
    assert "count    run      after revise" in checkout.cai("plan", "experiment=smoke")
    assert checkout.run("-c", SHOWN) == (
        "counted the words of the final revisions (('words', '7'),)\n"
    )
