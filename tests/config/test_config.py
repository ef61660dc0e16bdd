"""Every file under conf/ composes.

Every wrong key or value is an error that says which, where, and what was meant."""

import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from cai.config.compose import compose
from cai.config.schema import Config, EngineConfig, Harmless
from cai.config.types import Gate, is_runtime, lookup, without_runtime
from cai.errors import UsageError
from cai.method import gates
from cai.paths import shipped
from cai.run import plan as planning
from cai.store.run_folder import Run

FILES = sorted(path.relative_to(shipped("conf")) for path in shipped("conf").glob("*/*.yaml"))
GIVEN = {
    "model=gemma-270m": ["model.accept_license=true"],
    "model=qwen2.5-72b": ["model.accept_license=true"],
    "model=path": ["model.path=somewhere"],
    "experiment=gpu-70b": ["model.accept_license=true"],
    "dpo=continued": ["sl_cai.peft={r: 4}"],
}  # what a file leaves to the person


def overrides_for(file: Path) -> list[str]:
    group, name = file.parent.as_posix(), file.stem
    if group == "data":
        return [f"data=[seed,seed_heldout,donotanswer,harmbench,overrefusal,{name}]"]
    if group == "sft":
        return [f"sft@sl_cai={name}"] if name == "revisions" else [f"sft={name}"]
    return [f"{group}={name}", *GIVEN.get(f"{group}={name}", [])]


@functools.cache
def quickstart() -> Config:
    return compose(["experiment=quickstart"])


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_under_conf_composes(file: Path):
    config = compose(overrides_for(file))
    if file.parent.name == "data":
        assert file.stem in config.data
    elif file.parent.name == "experiment":
        assert config.name == file.stem


class UnreadOverrides(list[str]):
    """What set a setting is looked for among the overrides, the last first."""

    def __reversed__(self) -> Iterator[str]:
        raise AssertionError("nothing is wrong, so what set a setting is not looked up")


def test_what_set_a_setting_is_looked_up_for_messages_alone():
    """It parses files of conf/ once more: a sixth of the time of composing."""
    assert compose(UnreadOverrides(["experiment=smoke"])).name == "smoke"


def test_every_group_is_covered():
    assert {file.parent.name for file in FILES} >= {
        "model",
        "engine",
        "data",
        "launcher",
        "sft",
        "dpo",
        "experiment",
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=gemma-270m", "model.accept_license=true says that you accept it"),
        (
            "report_to=[wandbb]",
            "report_to=wandbb (override 'report_to=[wandbb]'): must be one of tensorboard, wandb",
        ),
        (
            "sft.quantization={load_in_4bit: true}",
            "quantised weights can't be tuned themselves; set sft.peft",
        ),
        (
            "+sl_cai.args.packing_strategy=wrapped",
            "wrapped joins rows that then see each other; use bfd",
        ),
        ("+model@label.model=gemma-270m", "label.model: Gemma-3-270m is not free software"),
        (
            "revise.round=3",
            "unknown key 'revise.round' (override 'revise.round=3'); did you mean 'rounds'?",
        ),
        (
            "dpo.args.bata=1",
            "dpo.args.bata (override 'dpo.args.bata=1'): trl.DPOConfig has no such argument; "
            "did you mean 'beta'?",
        ),
        ("+foo=1", "unknown key 'foo' (override '+foo=1')"),
        ("+sede=1", "unknown key 'sede' (override '+sede=1'); did you mean 'seed'?"),
        (
            "+label.prompts.lmit=1",
            "unknown key 'label.prompts.lmit' (override '+label.prompts.lmit=1')",
        ),
        ("engine=vlm", "engine=vlm: there is no conf/engine/vlm.yaml; did you mean 'vllm'?"),
        (
            "experiment=quikstart",
            "there is no conf/experiment/quikstart.yaml; did you mean 'quickstart'?",
        ),
        ("data=[sead]", "sead"),
        (
            "revise.rounds=many",
            "revise.rounds='many' (override 'revise.rounds=many'): must be a whole number",
        ),
        (
            "sft.data=seed",
            "sft.data='seed' (override 'sft.data=seed'): must be a list",
        ),
        (
            "sft.data=[sead]",
            "sft.data (override 'sft.data=[sead]') names the data set 'sead', which is not there",
        ),
        ("sft.data=[sead]", "did you mean 'seed'?"),
        (
            "revise.rounds=0",
            "revise.rounds=0 (override 'revise.rounds=0'): must be between 1 and 64",
        ),
        (
            "label.min_margin=nan",
            "label.min_margin=nan (override 'label.min_margin=nan'): "
            "input should be a finite number",
        ),
        (
            "system_prompt=a\ud800b",
            "system_prompt (override 'system_prompt=a\ufffdb'): holds half a surrogate pair",
        ),
        ("+data.seed.system=\udc80", "data.seed.system (override '+data.seed.system=\ufffd')"),
        (
            "label.sampling.top_p=0",
            "label.sampling.top_p=0 (override 'label.sampling.top_p=0'): "
            "must be above 0 and at most 1",
        ),
        ("revise.sampling.answer.temperature=-1", "temperature=-1'): must be at least 0"),
        (
            "revise.draw=cicle",
            "revise.draw=cicle (override 'revise.draw=cicle'): must be one of random, cycle, all",
        ),
        ("revise.draw=cicle", "did you mean 'cycle'?"),
        (
            "+sft.weights.sead=1",
            "sft.weights.sead (override '+sft.weights.sead=1'): sft.data has no such set",
        ),
        (
            "+sft.weights.seed=-1",
            "sft.weights.seed=-1 (override '+sft.weights.seed=-1'): must be at least 0",
        ),
        ("+sl_cai.weights.seed=0", "sl_cai.weights: every share is 0"),
        (
            "sft.mixing_temperature=0.5",
            "sft.mixing_temperature=0.5 (override 'sft.mixing_temperature=0.5'): must be",
        ),
        (
            "sl_cai.helpful=sampled",
            "sl_cai.helpful=sampled: nothing is sampled; say from which prompts",
        ),
        (
            "+engine.server.retries=-1",
            "engine.server.retries=-1 (override '+engine.server.retries=-1'): must be between",
        ),
        (
            "label.kind=revisions",
            "label.kind=revisions (override 'label.kind=revisions'): must be one of feedback,",
        ),
        (
            "label.ratio=1",
            "label.ratio=1 (override 'label.ratio=1'): must be between 0.01 and 0.99",
        ),
        ("label.thought.temperature=-1", "label.thought.temperature=-1 (override"),
        (
            "label.calibrate={data: [sead]}",
            "names the data set 'sead', which is not there; did you mean 'seed'?",
        ),
        ("label.calibrate={data: [seed], limit: 0}", "label.calibrate.limit=0"),
        (
            "build.target=0",
            "build.target=0 (override 'build.target=0'): "
            "nothing would be built; name prompts to answer",
        ),
        (
            "build.max_similarity=0",
            "build.max_similarity=0 (override 'build.max_similarity=0'): must be between",
        ),
        ("build.prompts={data: [seed], limit: 0}", "build.prompts.limit=0"),
        ("build.sampling.answer.top_p=0", "build.sampling.answer.top_p=0 (override"),
        (
            "+data.built={kind: file, path: x}",
            "data.built: this name stands for what the stage build has made",
        ),
        (
            "+data.probe_test={kind: file, path: x}",
            "data.probe_test: this name stands for what the stage probe has made",
        ),
        (
            "revise.prompts.data=[probe_test]",
            "names 'probe_test', whose prompts are evaluated on, and nothing is both; "
            "take probe or probe_benign",
        ),
        (
            "evaluate.suites.red_team.prompts.data=[probe]",
            "names 'probe', whose prompts are trained on, and nothing is both; take probe_test or",
        ),
        (
            "sft.data=[probe]",
            "sft.data (override 'sft.data=[probe]') names 'probe', which are prompts without",
        ),
        (
            "label.calibrate={data: [probe_test]}",
            "names 'probe_test', which are prompts without answers",
        ),
        ("revise.prompts.data=[prob]", "is not there"),
        ("revise.prompts.data=[built]", "names the data set 'built', which is not there"),
        ("evaluate.suites.held_out.shots=[]", "evaluate.suites.held_out.shots=[] (override"),
        ("evaluate.suites.held_out.shots=[2,2]", "must be different numbers between 0 and 64"),
        ("evaluate.suites.held_out.shots=[65]", "must be different numbers between 0 and 64"),
        ("+evaluate.suites.benign.attacks=[prefill]", "only a suite of kind: red_team is attacked"),
        ("evaluate.suites.red_team.attacks=[base64,base64]", "name each attack once"),
        (
            "evaluate.suites.held_out.examples=[]",
            "examples of what? Name training data in evaluate.suites.held_out.ex",
        ),
        (
            "evaluate.suites.held_out.examples=[sead]",
            "names the data set 'sead', which is not there; did you mean",
        ),
        (
            "+evaluate.suites.benign.shots=[2]",
            "only a suite of kind: instructions is asked with examples",
        ),
        (
            "label.human={data: [sead]}",
            "label.human.data (override 'label.human={data: [sead]}') names the data set",
        ),
        ("label.demonstrations={data: [sead]}", "names the data set 'sead', which is not there"),
        ("label.demonstrations={data: [seed], limit: 0}", "label.demonstrations.limit=0"),
        ("label.human={data: [seed], offset: -1}", "label.human.offset=-1"),
        ("label.human={data: [seed], probability: 0.4}", "label.human.probability=0.4"),
        ("label.model={name: x, kind: pth, path: y}", "label.model.kind=pth"),
        (
            "dpo.loss=sift",
            "dpo.loss=sift (override 'dpo.loss=sift'): "
            "must be one of soft, trl; did you mean 'soft'?",
        ),
        (
            "dpo=continued",
            "dpo.adapter=continued (override 'dpo=continued'): "
            "sl_cai tunes every weight, so it leaves no",
        ),
        ("rounds=0", "rounds=0 (override 'rounds=0'): must be between 1 and 99"),
        (
            "rounds=2",
            "rounds=2 (override 'rounds=2'): "
            "each takes the next label.prompts.limit prompts, and it is null",
        ),
        (
            "evaluate.models=[dpo,dpo2]",
            "evaluate.models (override 'evaluate.models=[dpo,dpo2]'): 'dpo2' is no model",
        ),
        ("sft.start=sft", "sft.start=sft (override 'sft.start=sft'): must be one of base"),
        ("sl_cai.revisions=none", "must be one of last, all"),
        (
            "evaluate.judge.name=dpo2",
            "evaluate.judge.name=dpo2 (override 'evaluate.judge.name=dpo2')",
        ),
        ("+dpo.args.max_grad_norm=nan", "dpo.args.max_grad_norm=nan (override"),
        (
            "label.model={name: x, kind: hub, pth: y, path: y}",
            "unknown key 'label.model.pth' "
            "(override 'label.model={name: x, kind: hub, pth: y, path: y}'); "
            "did you mean 'path'?",
        ),
        ("+data.seed.where={null: x}", "data.seed.where"),
        ("+sft.weights={null: 1}", "sft.weights"),
        ("model.path=???", "model.path has no value"),
        ("model=path", "model.path"),
        ("dpo.args.beta=${foo}", "Interpolation key 'foo' not found; ${...} takes the value"),
        (
            "verdicts=[seed]",
            "verdicts (override 'verdicts=[seed]'): the data set 'seed' holds no verdicts; name "
            "one that `cai review` has written, or set data.seed.format=verdicts",
        ),
        (
            "sl_cai.data=[verdicts]",
            "the data set 'verdicts' holds people's verdicts, which only verdicts, "
            "label.human.data, label.calibrate.data take",
        ),
        ("verdicts=[verdict]", "names the data set 'verdict', which is not there; did you mean"),
        ("name=a/b", "name='a/b' (override 'name=a/b'): use letters, digits"),
    ],
)
def test_a_wrong_override_is_one_clear_line(override: str, message: str):
    with pytest.raises(UsageError) as caught:
        compose([override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["label.benign={data: [sead]}"],
            "label.benign.data (override 'label.benign={data: [sead]}') names the data set",
        ),
        (["label.benign={data: [seed], limit: 0}"], "label.benign.limit=0"),
        (
            ["label.kind=mixed"],
            "only label.kind=rule and contrast ask harmless prompts, and it is mixed; "
            "take label.benign=null",
        ),
        (
            ["label.benign={data: [seed, donotanswer]}"],
            "label.prompts both name donotanswer, "
            "and a prompt is either harmless or harmful; take different sets",
        ),
        (
            ["label.benign=null", "label.harmless_share=0.5"],
            "label.harmless_share (override 'label.harmless_share=0.5'): the share is of pairs of "
            "label.kind=rule with label.benign",
        ),
        (
            ["rounds=2", "label.prompts.limit=9"],
            "rounds=2 (override 'rounds=2'): "
            "each takes the next label.benign.limit prompts, and it is null",
        ),
        (
            ["rounds=2", "label.benign.limit=9"],
            "each takes the next label.prompts.limit prompts, and it is null",
        ),
    ],
)
def test_harmless_prompts_to_label_are_a_rules_alone(overrides: list[str], message: str):
    rule = ["label.kind=rule", "label.benign={data: [seed], limit: null}"]
    assert compose(rule).label.benign == Harmless(["seed"])
    assert compose([*rule, "rounds=2", "label.benign.limit=9", "label.prompts.limit=9"]).rounds == 2
    with pytest.raises(UsageError) as caught:
        compose([*rule, *overrides])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_other_data_may_be_put_in_place_of_an_experiments():
    assert compose(["experiment=quickstart", "sft.data=[seed]"]).sft.data == ["seed"]
    with pytest.raises(
        UsageError, match=r"sft\.weights\.harmbench \(override .*sft\.data has no such set"
    ):
        compose(["experiment=quickstart", "+sft.weights.harmbench=1"])


@pytest.mark.parametrize("used", ["stages=[build]", "sft.data=[built]", "sl_cai.data=[built]"])
@pytest.mark.parametrize("key", ["build.data=[sead]", "build.prompts={data: [sead]}"])
def test_data_of_build_matters_where_it_is_a_stage_of_the_run(used: str, key: str):
    compose([key])
    with pytest.raises(
        UsageError,
        match=r"build.* names the data set 'sead', which is not there; did you mean 'seed'",
    ):
        compose([key, used])


def test_shares_by_weight_and_by_size_exclude_each_other():
    with pytest.raises(
        UsageError,
        match=r"sft\.weights .* sets the shares, so sft\.mixing_temperature and mixing_cap",
    ):
        compose(["+sft.weights.seed=1", "sft.mixing_cap=5"])


ROWS = {  # of `human` and of `calibrate`
    "{data: [seed]}": ("{data: [seed]}", False),
    "{data: [seed], limit: 5}": ("{data: [seed], limit: 9, offset: 4}", False),
    "{data: [seed], offset: 5}": ("{data: [seed], limit: 5}", True),
    "{data: [seed, human_harm], limit: 5}": (
        "{data: [seed], offset: 5}",
        False,
    ),  # shuffled apart from each other
    "{data: [human_harm]}": ("{data: [seed]}", True),
}


@pytest.mark.parametrize("human", ROWS)
@pytest.mark.parametrize("turned", [False, True])
def test_no_labelled_pair_is_trained_on_and_measured_on(human: str, turned: bool):
    calibrate, good = ROWS[human]
    words = [
        f"label.human={calibrate if turned else human}",
        f"label.calibrate={human if turned else calibrate}",
    ]
    if good:
        assert compose(words).label.human is not None
    else:
        with pytest.raises(
            UsageError, match=r"label\.human .* and label\.calibrate hold the same labelled pairs"
        ):
            compose(words)


def test_the_verdicts_of_a_run_lie_where_review_writes_them():
    config = compose(["name=mine", "verdicts=[verdicts]", "label.human={data: [verdicts]}"])
    assert config.data["verdicts"].path == "verdicts/mine.jsonl"


def test_a_continued_adapter_is_described_once():
    with pytest.raises(UsageError, match=r"dpo\.peft \(.*\): with dpo\.adapter=continued"):
        compose(["experiment=quickstart", "dpo.adapter=continued"])


def test_a_value_of_conf_is_blamed_on_its_file_and_line():
    with pytest.raises(UsageError) as caught:
        compose(["data=[seed]"])
    assert re.search(r"revise\.prompts\.data \(conf/revise/default\.yaml:\d+\)", str(caught.value))


def test_every_gate_can_be_switched_on():
    assert get_args(Gate) == tuple(gates.GATES)


def runtime_keys(kind: Any, above: str = "") -> list[str]:
    found = []
    for field in dataclasses.fields(kind):
        value = getattr(kind, field.name)
        found += [above + field.name] if is_runtime(field) else []
        found += (
            runtime_keys(value, f"{above}{field.name}.") if dataclasses.is_dataclass(value) else []
        )
    return found


CHANGED = {
    "engine.device": "engine.device=cpu",
    "engine.attention": "+engine.attention=sdpa",
    "model.accept_license": "+model.accept_license=true",
    "model.shape": "+model.shape={hidden_size: 8}",
    "engine.batch_rows": "engine.batch_rows=3",
    "engine.batch_tokens": "engine.batch_tokens=99",
    "label.require_judge": "label.require_judge=true",
    "engine.python": "+engine.python=python3",
    "engine.server": "+engine.server.urls=[http://127.0.0.1:8000/v1]",
    "engine.max_failures": "+engine.max_failures=0.2",
    "sft.max_lost": "sft.max_lost=0.1",
    "sl_cai.max_lost": "sl_cai.max_lost=0.1",
}


def test_every_runtime_field_has_a_case():
    assert set(runtime_keys(quickstart())) == set(CHANGED)


@pytest.mark.parametrize("key", CHANGED)
def test_how_to_run_changes_nothing_that_is_made(key: str):
    config = compose(["experiment=quickstart", CHANGED[key]])
    assert lookup(config, key) != lookup(quickstart(), key)
    assert without_runtime(config) == without_runtime(quickstart())


def test_what_is_made_changes_it():
    assert without_runtime(
        compose(["experiment=quickstart", "engine.dtype=float32"])
    ) != without_runtime(quickstart())


def test_of_vllms_options_those_that_may_change_a_text_are_in_the_key():
    """And where all are runtime settings, the key is that of no options."""
    plain = EngineConfig(kind="vllm")
    assert "options" not in without_runtime(plain)
    runtime = {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.5, "device_ids": "0,1"}
    assert without_runtime(dataclasses.replace(plain, options=runtime)) == without_runtime(plain)
    quantised = dataclasses.replace(plain, options=runtime | {"quantization": "fp8"})
    assert without_runtime(quantised)["options"] == {"quantization": "fp8"}


CRITIC_BESIDE = ["engine=vllm", "+engine@revise.engine=vllm", "+model@revise.model=smollm2-135m"]


def test_two_vllm_servers_at_once_must_fit_a_device():
    with pytest.raises(UsageError, match=re.escape("ask for 184% of a device's memory")):
        compose(CRITIC_BESIDE)
    with pytest.raises(UsageError, match="184%"):  # both by the same settings
        compose(["engine=vllm", "+model@revise.model=smollm2-135m"])
    more = "+revise.engine.options.gpu_memory_utilization=0.4"
    with pytest.raises(UsageError, match=re.escape(f"(override '{more}')")):
        compose([*CRITIC_BESIDE, more])
    with pytest.raises(UsageError, match="a share of the memory is a number from 0 to 1"):
        compose([*CRITIC_BESIDE, "revise.engine.options.gpu_memory_utilization=half"])


@pytest.mark.parametrize(
    "overrides",
    [
        [
            "+engine.options.gpu_memory_utilization=0.6",
            "+revise.engine.options.gpu_memory_utilization=0.4",
        ],
        ["+engine.options.device_ids='0,1'", "+revise.engine.options.device_ids='2'"],
        ["+engine.options.device_ids=0", "+revise.engine.options.device_ids=1"],
        ["+engine.options.kv_cache_memory_bytes=1G"],
        ["engine=transformers"],
    ],
    ids=str,
)
def test_two_vllm_servers_at_once_may_share_or_have_devices_of_their_own(overrides: list[str]):
    compose([*CRITIC_BESIDE, *overrides])


CRITIC = ["+engine@revise.engine=openai", "revise.engine.model=large"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["engine=openai", "engine.server.urls=[here:8000]"],
            "engine.server.urls: write http://host:port/v1",
        ),
        (
            [*CRITIC, "revise.engine.server.urls=['https://me:secret@host/v1']"],
            "revise.engine.server.urls: write http",
        ),
        (
            [*CRITIC, "revise.engine.server.key=sk-secret"],
            "revise.engine.server.key: write the NAME of the environment",
        ),
        (
            [*CRITIC, "revise.engine.kind=opnai"],
            "revise.engine.kind=opnai (override 'revise.engine.kind=opnai'): must",
        ),
        ([*CRITIC, "revise.engine.max_failures=2"], "revise.engine.max_failures=2 (override"),
        (
            [*CRITIC, "+model@revise.model=qwen2.5-7b"],
            "revise.model: a server's model is named by revise.engine.model",
        ),
    ],
    ids=str,
)
def test_a_wrong_server_is_one_clear_line_without_a_key(overrides: list[str], message: str):
    with pytest.raises(UsageError) as caught:
        compose(overrides)
    assert (
        message in str(caught.value)
        and "\n" not in str(caught.value)
        and "secret" not in str(caught.value)
    )


def test_a_critic_and_a_judge_may_have_engines_of_their_own():
    config = compose(
        [
            *CRITIC,
            "+engine@label.engine=openai",
            "label.engine.server.urls=[http://a:1/v1,http://b:1/v1]",
        ]
    )
    assert config.revise.engine is not None and config.label.engine is not None
    assert config.engine.kind == "transformers" and config.revise.engine.model == "large"
    assert config.label.engine.model is None and len(config.label.engine.server.urls) == 2
    moved = compose([*CRITIC, "revise.engine.server.urls=[http://elsewhere:1/v1]"])
    assert without_runtime(moved.revise) == without_runtime(config.revise)
    other = compose(["+engine@revise.engine=openai", "revise.engine.model=small"])
    assert without_runtime(other.revise) != without_runtime(config.revise)


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
