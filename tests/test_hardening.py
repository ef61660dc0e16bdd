"""What once crashed, hung or passed in silence."""

import asyncio
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from cai.config.compose import compose
from cai.config.schema import DataConfig, Prompts, Sampling
from cai.data.prompts import load_dialogues, load_prompts
from cai.data.sources import fingerprint, read_source
from cai.engines.base import Request
from cai.engines.batcher import Batcher
from cai.engines.ledger import Ledger, Recorded
from cai.engines.rows import gather_rows
from cai.errors import CaiError, UsageError
from cai.messages import user
from cai.method.constitution import Constitution
from cai.run import plan as planning
from cai.store.run_folder import Run

ASKED = Request((user("a"),), Sampling())
SIGNALLED = """
import asyncio, os, signal
from cai.config.schema import Sampling
from cai.messages import user
from cai.engines.base import Request
from cai.engines.batcher import Batcher
from cai.engines.rows import gather_rows
from cai.errors import Interrupted
from cai.run.process import install_signals
install_signals()
batcher = Batcher(lambda waiting: [0], lambda batch: os.kill(os.getpid(), signal.SIGTERM))
try:
    asyncio.run(gather_rows([batcher.complete(Request((user("a"),), Sampling()))]))
except Interrupted as error:
    raise SystemExit(error.exit_code)
"""


def test_a_signal_during_a_batch_ends_the_process():
    assert subprocess.run([sys.executable, "-c", SIGNALLED], timeout=20).returncode == 143


STUCK = """
import hashlib, os, signal, threading
from cai.run.process import install_signals
install_signals("the same command continues")
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)  # minutes in C, where no handler runs
"""


def test_a_signal_ends_a_process_that_is_deep_in_c():
    done = subprocess.run([sys.executable, "-c", STUCK], timeout=20, capture_output=True, text=True)
    assert done.returncode == 143 and "the same command continues" in done.stderr


DROPPED = {
    "as it ends": "atexit.register(os.kill, os.getpid(), signal.SIGTERM)",
    "in a finalizer": "weakref.finalize(set(), os.kill, os.getpid(), signal.SIGTERM)",
}


@pytest.mark.parametrize("line", DROPPED.values(), ids=DROPPED)
def test_a_signal_ends_a_process_where_python_drops_exceptions(line: str):
    code = (
        "import atexit, os, signal, weakref\n"
        "from cai.run.process import install_signals\n"
        f"install_signals('kept')\n{line}"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=20, capture_output=True, text=True)
    assert done.returncode == 143 and done.stderr.split() == ["kept"]


@pytest.mark.parametrize(
    "choose", [lambda waiting: 1 / 0, lambda waiting: [0]], ids=["choose raises", "short batch"]
)
def test_any_error_of_a_batch_reaches_the_rows(choose):
    batcher = Batcher(choose, lambda batch: [])
    with pytest.raises((ZeroDivisionError, ValueError)):
        asyncio.run(asyncio.wait_for(batcher.complete(ASKED), 5))


def test_a_model_that_cannot_be_opened_is_tried_once(tmp_path: Path):
    opened = []

    def open_one():
        opened.append(1)
        raise CaiError("no memory")

    recorded = Recorded(open_one, Ledger(tmp_path / "l.sqlite"), "sft", "m")
    with pytest.raises(CaiError):
        asyncio.run(
            gather_rows(
                [recorded.complete(Request((user(str(n)),), Sampling())) for n in range(50)]
            )
        )
    assert len(opened) == 1


def test_the_fingerprint_tells_files_of_one_name_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(
        tmp_path
    )  # {path.name: digest}: the last one wins, so an edit of the first is never seen
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.txt").write_text("one")
    config = DataConfig(kind="file", path="*/rows.txt")
    before = fingerprint("mine", config)
    (tmp_path / "a" / "rows.txt").write_text("two")
    assert fingerprint("mine", config) != before


@pytest.mark.parametrize(
    "row",
    [
        {"messages": "Hi"},
        {"messages": ["Hi"]},
        {"prompt": ["Hi"]},
        {"prompt": [None]},
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": None},
        {"instruction": None, "input": "x", "output": "y"},  # taken as the text "None\n\nx"
    ],
    ids=str,
)
def test_a_row_that_does_not_fit_is_skipped(tmp_path: Path, row: dict):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "fine"}) + "\n" + json.dumps(row))
    loaded = load_dialogues(["d"], {"d": DataConfig(kind="file", path=str(tmp_path / "a.jsonl"))})
    assert len(loaded.dialogues) == 1 and loaded.unfit.examples[0].startswith(
        f"{tmp_path}/a.jsonl:2:"
    )


def csv_rows(folder: Path, text: str):
    (folder / "a.csv").write_text(text)
    return list(read_source("d", DataConfig(kind="file", path=str(folder / "a.csv"))))


def test_a_large_csv_field_is_read_or_named(tmp_path: Path):
    assert len(csv_rows(tmp_path, "prompt\n" + "a" * 140_000 + "\n")) == 1


def test_a_csv_row_knows_its_line(tmp_path: Path):
    assert [where.split(":")[-1] for where, _ in csv_rows(tmp_path, 'p\n"two\nlines"\none\n')] == [
        "2",
        "4",
    ]


def test_a_line_separator_inside_a_csv_field_ends_no_row(tmp_path: Path):
    assert len(csv_rows(tmp_path, "p,q\nbefore\u2028after,1\n")) == 1


def test_where_knows_true(tmp_path: Path):  # str(True) == "True"
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "good": true}\n')
    config = DataConfig(kind="file", path=str(tmp_path / "a.jsonl"), where={"good": "true"})
    assert len(list(read_source("d", config))) == 1


@pytest.mark.parametrize("last", ["assistant", "system"])
def test_a_prompt_ends_with_a_human_turn(
    tmp_path: Path, last: str
):  # else render() continues that turn
    turns = [{"role": role, "content": role} for role in ("user", last, "assistant")]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}) + '\n{"prompt": "fine"}\n')
    prompts = load_prompts(
        Prompts(["d"]), {"d": DataConfig(kind="file", path=str(tmp_path / "a.jsonl"))}, 0
    )
    assert {prompt.messages[-1].role for prompt in prompts} == {"user"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# a comment\n",
        "extends: .\n",
        "extends: /\n",
        f"extends: {'a' * 300}\n",
        'name: "\\UFFFFFFFF"\n',
    ],
    ids=lambda text: text[:20],
)
def test_a_principle_file_gives_principles_or_a_usage_error(tmp_path: Path, text: str):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"mine\.yaml"):
        Constitution.load(str(tmp_path / "mine.yaml"))


def test_weights_whose_sum_is_infinite_are_refused(tmp_path: Path):
    rule = "{critique: a, revision: b, comparison: c, weight: 1e308, id: "
    (tmp_path / "mine.yaml").write_text(f"principles: [{rule}a}}, {rule}b}}]")
    with pytest.raises(UsageError):
        Constitution.load(str(tmp_path / "mine.yaml")).draw(random.Random(0))


def test_an_exemplar_shows_the_replaced_principle(tmp_path: Path):
    rule = "principles: [{id: a, critique: OLD, revision: r, comparison: c}]\n"
    turns = "[{role: user, content: q}, {role: assistant, content: r}]"
    shown = f"exemplars: [{{principle: a, dialogue: {turns}, critique: c, revision: d}}]\n"
    (tmp_path / "base.yaml").write_text(rule + shown)
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\n" + rule.replace("OLD", "NEW"))
    assert Constitution.load(str(tmp_path / "mine.yaml")).exemplars[0].principle.critique == "NEW"


@pytest.mark.parametrize(
    "override",
    [
        "evaluate.models=[foo]",
        "label.sampling.temperature=inf",
        "dpo.args.beta=inf",
        "constitution=.",
        f"constitution={'a' * 300}",
        "sft=null",
        "data.seed.path=''",
        "revise.gates=[emtpy]",
        "revise.benign=[foo]",
        "evaluate.suites.red_team.kind=foo",
        "data.seed.kind=foo",
        "+data.seed.format=foo",
        "evaluate.models=[label]",
        "revise.prompts.limit=-1",  # drops the last prompt
        "revise.prompts.offset=-3",  # takes the last three
        "sft.limit=-4",
        "sft.max_length=-5",
    ],
)
def test_a_wrong_value_is_a_usage_error(override: str, tmp_path: Path):
    with pytest.raises(UsageError):
        planning.plan_run(compose(["experiment=smoke", override]), Run(tmp_path))


def test_a_wrong_data_set_in_the_group_has_a_hint():
    with pytest.raises(UsageError, match="did you mean 'seed'"):
        compose(["data=[sead]"])


def test_the_ledger_ignores_doubles_alone(
    tmp_path: Path,
):  # `insert or ignore` also drops a row that breaks `not null`
    from cai.engines.base import Completion

    ledger = Ledger(tmp_path / "l.sqlite")
    with pytest.raises(CaiError):
        ledger.put("sft", "m", [("ab" * 32, Completion("x", "stop", None, 1, 0.0))])  # type: ignore
