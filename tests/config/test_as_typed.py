"""Text stays as typed, on the command line and in YAML; what can't be read is one clear line."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cai.config.as_typed import as_typed, displayed, repeated
from cai.config.compose import compose
from cai.config.typed_yaml import TypedFileSource
from cai.config.types import lookup
from cai.errors import UsageError

LOOKS_OTHERWISE = ["2026_11_29", "123e456", "1e5", "007", "0x1F", "true", "No", "null", "12:30"]
ODD = [
    "a=b",
    "数据",
    "été",
    "a b",
    "a: b",
    "{}",
    "{x",
    "[a]",
    "$x",
    "don't",
    "foo(bar)",
    "~/x",
    "'a",
]


@pytest.mark.parametrize("text", [*LOOKS_OTHERWISE, *ODD])
def test_text_stays_as_typed(text: str):
    config = compose(
        [f"constitution={text}", f"label.model={{name: {text!r}, kind: hub, path: x}}"]
    )
    assert config.constitution == str(Path(text).expanduser())
    assert config.label.model and config.label.model.name == text


@pytest.mark.parametrize("text", [*LOOKS_OTHERWISE[:-2], "a=b", "数据"])
def test_text_in_lists_and_mappings_stays_as_typed(text: str):
    config = compose(
        [
            f"stages=[sft, {text}]",
            f"launcher.args=[--a=b,{text}]",
            f"+data.x={{kind: file, path: {text}, where: {{a: {text}}}}}",
            f"+data.x.fields={{prompt: {text}}}",
            "+model@label.model=qwen2.5-7b",
            f"label.model.revision={text}",
            f"sft.args.run_name={text}",
            f"sft.peft={{r: 4, target_modules: [q_proj, {text}], revision: {text}}}",
        ]
    )
    assert config.stages == ["sft", text] and config.launcher.args == ["--a=b", text]
    mine = config.data["x"]
    assert (mine.path, mine.where, mine.fields) == (text, {"a": text}, {"prompt": text})
    assert config.label.model and config.label.model.revision == text
    assert config.sft.args["run_name"] == text
    assert config.sft.peft == {"r": 4, "target_modules": ["q_proj", text], "revision": text}


def test_null_stays_null_where_a_setting_may_be_null():
    config = compose(["stages=null", "name=null", "+model.revision=null", "sft.peft=null"])
    assert config.stages is None and config.model.revision is None and config.sft.peft is None
    assert config.name == "null"


@given(st.text(st.characters(exclude_characters="\r\n\\'\"${}[](),", exclude_categories=["C"])))
def test_any_text_reaches_its_setting(text: str):
    (word,) = as_typed([f"model.path={text}"])
    assert displayed(word) == f"model.path={text.strip()}"


@settings(max_examples=50)
@given(
    st.text(max_size=30), st.sampled_from(["name", "seed", "sft.args", "sft.data", "数", "data.x"])
)
def test_any_override_is_read_or_refused(text: str, key: str):
    try:
        as_typed([f"{key}={text}"])
    except UsageError as error:
        assert str(error)


def test_the_values_of_a_sweep_are_text_each():
    sweep = as_typed(["name=2026_1,b", "name=choice(2026_1,数)", "seed=1,2"], sweep=True)
    assert sweep == ["name='2026_1','b'", "name='2026_1','数'", "seed=1,2"]
    kept = ["seed=range(0,3)", "+sft.args.x=tag(log, interval(1e-5, 1e-3))", "-m", "~sft.peft"]
    assert as_typed(kept, sweep=True)[::2] == kept[::2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name=a,b", "name=a,b: commas separate the values of a sweep, which is -m; for one text"),
        ("seed=五", "seed='五' (override 'seed=五'): must be a whole number"),
        ("seed=-1", "seed=-1 (override 'seed=-1'): must be between 0 and 4294967295"),
        ("seed=4294967296", "must be between 0 and 4294967295"),
        ("seed=true", "seed=true (override 'seed=true'): must be a number"),
        ("sft.start=基", "sft.start=基 (override 'sft.start=基'): must be one of base, sft"),
        ("sft.data=[a", "sft.data='[a' (override 'sft.data=[a'): must be a list"),
        ("sft.peft={r}", "sft.peft={r}: Hydra can't read this value; a text is written"),
        ("+data.seed.where.语言=zh", "the key of an override holds letters from a to z"),
        ("数=1", "the key of an override holds letters from a to z"),
        ("sft.peft={r: 4, r: 8}", "'r' stands twice, and one value would be lost"),
        ("seed=???", "seed has no value"),
        ("name=${nope}", "name (override 'name=${nope}'): Interpolation key 'nope' not found"),
        ("+experiment=smoke", "experiment is named already; write experiment=smoke, without a +"),
        ("+evaluate.suites={../x: {kind: benign, prompts: {data: [seed]}}}", "suites.../x='../x'"),
        ("experiment=1e5", "experiment=1e5: there is no conf/experiment/1e5.yaml"),
        ("model=数", "model=数: there is no conf/model/数.yaml"),
        ("constitution=${", "${...} takes the value of another setting"),
        ("engine.server.retries=1", "is not in this configuration; 'engine=openai' has it"),
        (
            "revise.engine.model=x",
            "revise.engine is null; set it whole, with 'revise.engine={...}'",
        ),
        ("data.sead.path=x", "unknown key 'data.sead' (override 'data.sead.path=x'); did you mean"),
        ("+data.seed.where.meta.lang=en", "a column within another has a dot in its name: {meta."),
        ("model=null", "model=null: a group of files can't be null; name a file (known: gemma-"),
        ("engine=NULL", "engine=NULL: a group of files can't be null"),
        ("dpo=null", "To leave a stage out, name the others in 'stages=[...]'"),
        ("sft@sl_cai=null", "(known: instructions, revisions), or take the override away. To"),
        ("hydra/launcher=null", "hydra/launcher=null: a group of files can't be null"),
        ("+engine@label.engine=null", "a file of engine/ can't be null; write label.engine=null"),
        ("++model=path", "++model=...: a file is named without ++; write model=..."),
        ("~data", "~data: no defaults list names this; take the override away"),
        ("seed=null", "seed=null (override 'seed=null'): can't be null: it must be a whole number"),
        ("sft.data=null", "can't be null: it must be a list, e.g. [a, b]"),
        ("data.seed=null", "data.seed=null (override 'data.seed=null'): can't be null: it must"),
        ("sft.args.learning_rate=null", "sft.args.learning_rate=null (override"),
    ],
)
def test_what_can_not_be_read_is_one_clear_line(override: str, message: str):
    with pytest.raises(UsageError) as caught:
        compose([override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_of_two_values_for_one_setting_the_last_is_said_to_hold():
    words = ["seed=1", "+seed=2", "model=path", "model.path=x", "name=a,b", "rounds=1", "rounds=1"]
    assert repeated(words) == ["seed is set twice: seed=2 holds, and seed=1 does not"]
    assert compose(["experiment=smoke", "seed=1", "seed=2"]).seed == 2
    mappings = ["sft.args={max_steps: 2}", "sft.args={learning_rate: 1}"]
    assert repeated(mappings) == []
    args = compose(["experiment=smoke", *mappings]).sft.args
    assert args["max_steps"] == 2 and args["learning_rate"] == 1


def test_a_number_for_what_may_be_text_stays_as_typed():
    config = compose(["model.template_args={date_string: 2026_11_29, code: 017, n: 10, x: 1e3}"])
    assert config.model.template_args == {
        "date_string": "2026_11_29",
        "code": "017",
        "n": 10,
        "x": 1e3,
    }


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    words = ["outputs=~/runs", "constitution=~/mine.yaml", "data.seed.path=~/a.jsonl"]
    words += ["engine=vllm", "engine.python=~/vllm/bin/python", "model=path", "model.path=~/m"]
    config = compose(words)
    assert (config.outputs, config.constitution) == ("/home/me/runs", "/home/me/mine.yaml")
    assert config.data["seed"].path == "/home/me/a.jsonl" and config.model.path == "/home/me/m"
    assert config.engine.python == "/home/me/vllm/bin/python"


def test_a_librarys_arguments_are_replaced_and_extended_without_a_plus():
    overrides = ["experiment=quickstart", "sft.peft={r: 4, modules_to_save: [lm_head]}"]
    config = compose([*overrides, "sft.args.max_grad_norm=2.0", "+dpo.args.beta=0.2"])
    assert config.sft.peft == {
        "r": 4,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "target_modules": "all-linear",
        "modules_to_save": ["lm_head"],
    }
    assert config.sft.args["max_grad_norm"] == 2.0 and config.dpo.args["beta"] == 0.2
    assert compose([*overrides[:1], "~sft.peft", "+sft.peft={r: 3}"]).sft.peft == {"r": 3}
    engine = compose(["engine=vllm", "engine.options={max_model_len: 32}"]).engine
    assert engine.options == {"max_model_len": 32}


FILES = {
    "experiment/2026_11_29.yaml": """\
# @package _global_
defaults:
  - quickstart
  - override /model: 1e5
name: 2026_11_29
constitution: no
stages: [sft, 1e5]
sft:
  args: {run_name: 1e5, learning_rate: 2e-5}
data:
  donotanswer:
    where:
      yes: no
      1_0: "0x1F"
""",
    "model/1e5.yaml": """\
name: 12:30
kind: hub
path: a/b
revision: 123e456
license: null
template_args: {n: 10, think: no}
""",
    "experiment/odd.yaml": """\
\ufeff# @package _global_
seed: 017
revise: {rounds: 1_0}
model:
  template_args: {date_string: 2026_11_29, think: 1:30}
hydra:
  sweeper:
    params:
      name: 2026_11_29,b
      sft.args.run_name: 1e5
""",
    "experiment/sexagesimal.yaml": "# @package _global_\nseed: 1:30\n",
    "experiment/open.yaml": "# @package _global_\nseed: ???\n",
    "experiment/no_package.yaml": "name: x\n",
    "experiment/range.yaml": "# @package _global_\nrevise:\n  rounds: 99\n",
    "experiment/typo.yaml": "# @package _global_\nsft:\n  roundz: 3\n",
    "experiment/nothing.yaml": "# @package _global_\nsft: null\n",
    "experiment/set.yaml": "# @package _global_\nname: !!set {a, b}\n",
    "experiment/list.yaml": "# @package _global_\nsft: [seed]\n",
    "experiment/parent.yaml": "# @package _global_\ndefaults: [quikstart]\n",
    "experiment/group.yaml": "# @package _global_\ndefaults: [override /modle: path]\n",
    "experiment/broken.yaml": "name: [\n",
    "experiment/text.yaml": "just text\n",
    "experiment/abc.yaml": "# @package _global_\nsft:\n  args:\n    learning_rate: abc\n",
}


@pytest.fixture(scope="module")
def own_files(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("mine")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "experiment/latin.yaml").write_bytes(b"# @package _global_\nname: caf\xe9\n")
    return str(folder)


def test_text_in_yaml_stays_as_typed(own_files: str):
    config = compose(["experiment=2026_11_29", "+model@label.model=1e5"], own_files)
    assert (config.name, config.constitution) == ("2026_11_29", "no")
    assert config.stages == ["sft", "1e5"]
    assert config.sft.args["run_name"] == "1e5" and config.sft.args["learning_rate"] == 2e-5
    where = config.data["donotanswer"].where
    assert where["yes"] == "no" and where["1_0"] == "0x1F"
    for model in (config.model, config.label.model):
        assert model and (model.name, model.revision, model.license) == ("12:30", "123e456", None)
        assert model.template_args == {"n": 10, "think": False}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "experiment/broken.yaml:2:1: expected the node content"),
        ("text", "experiment/text.yaml: holds no settings"),
        ("latin", "experiment/latin.yaml: not UTF-8 at byte 30; convert it, e.g. with `iconv"),
        (
            "2026",
            "experiment=2026: there is no conf/experiment/2026.yaml; did you mean '2026_11_29'",
        ),
    ],
)
def test_a_wrong_file_is_one_clear_line(own_files: str, name: str, message: str):
    with pytest.raises(UsageError) as caught:
        compose([f"experiment={name}"], own_files)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_that_yaml_misreads_stay_as_typed(own_files: str):
    file = TypedFileSource("own", f"file://{own_files}").load_config("experiment/odd").config
    assert OmegaConf.select(file, "hydra.sweeper.params") == {
        "name": "'2026_11_29','b'",
        "++sft.args.run_name": "'1e5'",
    }
    config = compose(["experiment=odd"], own_files)
    assert (config.seed, config.revise.rounds) == (17, 10)
    assert config.model.template_args == {"date_string": "2026_11_29", "think": "1:30"}


def test_an_open_value_of_a_file_may_be_filled_in(own_files: str):
    assert compose(["experiment=open", "seed=3"], own_files).seed == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sexagesimal", "seed='1:30' ({file}:2): must be a whole number"),
        ("open", "seed has no value (??? in {file}:2); set it with seed=..."),
        ("no_package", "{file}: what it sets would stand below 'experiment', which is no setting"),
        ("range", "revise.rounds=99 ({file}:3): must be between 1 and 64"),
        ("typo", "unknown key 'sft.roundz' ({file}:3)"),
        ("nothing", "sft=null ({file}:2): can't be null: it must be a mapping of settings"),
        ("set", "{file}: name: Value 'set' is not a supported primitive type"),
        ("list", "{file}: "),
        ("parent", "{file}: experiment=quikstart: there is no conf/experiment/quikstart.yaml; did"),
        ("group", "a defaults list overrides 'modle', which no defaults list before it names"),
        ("abc", "sft.args.learning_rate='abc' ({file}:4): trl.SFTConfig takes a number here"),
    ],
)
def test_what_is_wrong_in_a_persons_file_names_the_file(own_files: str, name: str, message: str):
    with pytest.raises(UsageError) as caught:
        compose([f"experiment={name}"], own_files)
    text = str(caught.value)
    assert text.startswith(message.format(file=f"{own_files}/experiment/{name}.yaml"))
    assert "\n" not in text


def test_a_folder_of_files_must_be_there(tmp_path: Path):
    with pytest.raises(UsageError, match="there is no such folder"):
        compose([], str(tmp_path / "nowhere"))


def test_every_setting_of_conf_keeps_its_value():
    """What conf/ has is read as YAML reads it, but for text."""
    config = compose(["experiment=quickstart"])
    assert lookup(config, "sft.args.eval_steps") == 0.5 and config.build.target == 24
    assert lookup(config, "sft.peft.r") == 16 and config.stages is None
