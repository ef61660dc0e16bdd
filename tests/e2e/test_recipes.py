"""Each recipe of CONTRIBUTING.md, followed to the letter in a copy of the repository."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAN_OF_A_NEW_RUN = ["sft", "revise", "sl_cai", "label", "dpo", "evaluate", "report"]


def recipe(title: str) -> str:
    """A section of CONTRIBUTING.md."""
    sections = re.split(r"^## ", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    (section,) = (section for section in sections if section.startswith(title))
    return section


def block(section: str, language: str) -> str:
    """The section's block of code in a language."""
    (found,) = re.findall(rf"^ *```{language}\n(.*?)^ *```$", section, re.DOTALL | re.MULTILINE)
    return textwrap.dedent(found)


def inserted(section: str, pattern: str) -> str:
    """The code that the section has written in its text, in backticks."""
    (found,) = re.findall(pattern, " ".join(section.split()))
    return found


class Checkout:
    """A copy of what the recipes touch."""

    def __init__(self, root: Path):
        self.root = root
        for folder in ("cai", "conf", "principles"):
            shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("*.pyc"))

    def write(self, file: str, text: str) -> None:
        path = self.root / file
        assert not path.exists()
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def change(self, file: str, before: str, after: str) -> None:
        text = (self.root / file).read_text()
        assert text.count(before) == 1, f"{file} has no single {before!r}"
        (self.root / file).write_text(text.replace(before, after))

    def python(self, *arguments: str) -> str:
        process = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=os.environ | {"PYTHONPATH": str(self.root)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert process.returncode == 0, process.stderr[-3000:]
        return process.stdout


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def cai_there(cai: Command, checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`cai WORDS` on the copy's conf/ and principles/, by the code of the tests' own process."""
    monkeypatch.setattr("cai.paths.PACKAGE", checkout.root / "cai")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        process = cai(*words, folder=checkout.root)
        assert process.returncode == 0, process.stderr
        return process

    return run


def to_run(plan: str) -> list[str]:
    """The names of the stages that would run."""
    stages = plan.split("\n\n")[0]  # what is estimated stands below
    return [line.split()[0] for line in stages.splitlines() if line.split()[1] == "run"]


def test_a_principle(cai_there: Command, checkout: Checkout, tiny_model: Path):
    section = recipe("Add a principle")
    checkout.write("principles/mine.yaml", block(section, "yaml"))
    check, attempt, run = (shlex.split(words) for words in re.findall(r"`cai (.*?)`", section))
    assert "mine" in cai_there(*check).stdout
    fast = ["model=path", f"model.path={tiny_model}", "engine.kind=scripted"]
    shown = cai_there(*attempt, "--principle", "no-diagnosis", *fast).stdout
    assert "by no-diagnosis" in shown
    assert to_run(cai_there("plan", *run).stdout) == PLAN_OF_A_NEW_RUN


def test_a_data_set(cai_there: Command, checkout: Checkout, tiny_model: Path):
    section = recipe("Add a data set")
    checkout.write("mine.jsonl", block(section, "json"))
    checkout.write("conf/data/mine.yaml", block(section, "yaml"))
    checkout.change(
        "conf/config.yaml", "      - human_harm\n", "      - human_harm\n      - mine\n"
    )
    (command,) = re.findall(r"`cai (audit .*?)`", section)
    audited = cai_there(*shlex.split(command), "model=path", f"model.path={tiny_model}").stdout
    assert re.search(r"mine +1\b", audited.replace("│", " "))


def test_a_data_set_without_a_file_of_the_package(cai: Command, tmp_path: Path, tiny_model: Path):
    """By an override, where nobody may write into conf/."""
    (tmp_path / "mine.jsonl").write_text(block(recipe("Add a data set"), "json"))
    words = ["+data.mine={kind: file, path: mine.jsonl}", "sft.data=[seed,mine]"]
    model = ["model=path", f"model.path={tiny_model}"]
    audited = cai("audit", "experiment=quickstart", *words, "sft.weights=null", *model)
    assert audited.returncode == 0, audited.stderr
    assert re.search(r"mine +1\b", audited.stdout.replace("│", " "))


def test_a_model(cai_there: Command, checkout: Checkout):
    section = recipe("Add a model")
    checkout.write("conf/model/mine.yaml", block(section, "yaml"))
    (command,) = re.findall(r"`cai (plan .*?)`", section)
    assert to_run(cai_there(*shlex.split(command)).stdout) == PLAN_OF_A_NEW_RUN


def test_a_judge(cai_there: Command):
    section = recipe("Add a judge")
    words = r"[`'](\+model@.*?|label\.calibrate.*?|label\.require.*?)[`']"
    named, measured, required = re.findall(words, section)
    served = shlex.split(block(section, ""))[1:]
    for overrides in ([*served, measured, required], [served[0], named]):
        assert to_run(cai_there("plan", *overrides).stdout) == PLAN_OF_A_NEW_RUN


ASK_ECHO = """
import asyncio
from cai.config.compose import compose
from cai.config.schema import Sampling
from cai.engines.base import Request, open_engine
from cai.messages import user
engine = open_engine(compose(["experiment=quickstart", "engine=echo"]).engine, "any")
print(asyncio.run(engine.complete(Request((user("Hello there."),), Sampling()))).text)
"""


def test_an_engine(checkout: Checkout):
    section = recipe("Add an engine")
    checkout.write("cai/engines/echo.py", block(section, "python"))
    row = inserted(section, r'`("echo": .*?)`')
    checkout.change("cai/engines/base.py", "ENGINES = {\n", f"ENGINES = {{\n    {row},\n")
    checkout.change("cai/config/types.py", '"scripted"]\n', '"scripted", "echo"]\n')
    checkout.write("conf/engine/echo.yaml", inserted(section, r"`(kind: echo)`"))
    assert checkout.python("-c", ASK_ECHO) == "Hello there.\n"
    (command,) = re.findall(r"`cai (.*? engine=echo)`", section)
    plan = checkout.python("-m", "cai", "plan", *shlex.split(command))
    assert to_run(plan) == PLAN_OF_A_NEW_RUN


RUN_COUNT = """
from pathlib import Path
from cai.config.compose import compose
from cai.data.parquet import write_rows
from cai.stages.base import Input, verb_context
from cai.stages.count import STAGE
config, root = compose(["experiment=smoke"]), Path("run")
root.mkdir()
write_rows(root / "revisions.parquet", [{"final": "one two"}, {"final": "two three"}])
context = verb_context("count", config, root, "harmlessness", {"revise": Input("run", "digest")})
summary = STAGE.run(config.count, root, context)
print(summary.view("count").lines, (root / "words.json").read_text())
"""


def test_a_stage(checkout: Checkout):
    section = recipe("Add a stage")
    checkout.write("cai/stages/count.py", block(section, "python"))
    imports = "from cai.stages import build, "
    checkout.change("cai/run/plan.py", imports, f"{imports}count, ")
    checkout.change("cai/run/plan.py", "    sft.SL_CAI,\n", "    count.STAGE,\n    sft.SL_CAI,\n")
    config = "@dataclass(frozen=True, config=STRICT)\nclass Config:\n"
    setting = inserted(section, r"`(different: bool = False)`")
    declared = f"{config.replace('Config:', 'CountConfig:')}    {setting}\n\n\n"
    checkout.change("cai/config/schema.py", config, declared + config)
    field = "    count: CountConfig = field(default_factory=CountConfig)\n"
    rounds = "    rounds: Annotated[int, Field(ge=1, le=99)] = 1\n"
    checkout.change("cai/config/schema.py", rounds, field + rounds)
    checkout.write("conf/count/default.yaml", inserted(section, r"`(different: false)`"))
    default = "  - revise: default\n"
    checkout.change("conf/config.yaml", default, f"{default}  - count: default\n")
    plan = checkout.python("-m", "cai", "plan", "experiment=smoke", "count.different=true")
    assert to_run(plan) == ["sft", "revise", "count", *PLAN_OF_A_NEW_RUN[2:]]
    assert checkout.python("-c", RUN_COUNT).split("\n")[0] == "(('words', '4'),) 4"


COUNT_QUESTIONS = """
from cai.messages import Prompt, user
from cai.report.metrics import METRICS
from cai.scoring.answers import Answer, answer_scores
prompt = Prompt.of((user("Hello?"),), "test")
answers = [(Answer("base", "red", prompt, text), False) for text in ("Why?", "Because.")]
print(METRICS["asks"].title, answer_scores(answers)["asks"].values())
"""


def test_a_metric(checkout: Checkout):
    section = recipe("Add a metric")
    answers = checkout.root / "cai/scoring/answers.py"
    answers.write_text(f"{answers.read_text()}\n\n{block(section, 'python')}")
    call, row = re.findall(r'`("asks": .*?)`', section)
    words = '            "words": word_count(answer.text),\n'
    checkout.change("cai/scoring/answers.py", words, f"{words}            {call},\n")
    checkout.change("cai/report/metrics.py", "METRICS = {\n", f"METRICS = {{\n    {row},\n")
    assert checkout.python("-c", COUNT_QUESTIONS) == "ends with a question dict_values([0.5])\n"
