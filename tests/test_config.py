"""Every file under conf/ composes; every wrong key or value is an error that says which, where, and what was meant."""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import pytest

from cai import gates
from cai.checks import CHOICES, GATES, RANGES
from cai.composing import compose
from cai.config import Config, lookup, without_runtime
from cai.errors import UsageError
from cai.paths import shipped

FILES = sorted(path.relative_to(shipped("conf")) for path in shipped("conf").glob("*/*.yaml"))
GIVEN = {"model=path": ["model.path=somewhere"]}  # what a file leaves to the person


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


def test_every_group_is_covered():
    assert {file.parent.name for file in FILES} >= {"model", "engine", "data", "launcher", "sft", "dpo", "experiment"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("revise.round=3", "unknown key 'revise.round' (override 'revise.round=3'); did you mean 'rounds'?"),
        ("dpo.args.bata=1", "unknown key 'dpo.args.bata' (override 'dpo.args.bata=1'); did you mean 'beta'?"),
        ("+foo=1", "unknown key 'foo' (override '+foo=1')"),
        ("+sede=1", "unknown key 'sede' (override '+sede=1'); did you mean 'seed'?"),
        ("+label.prompts.lmit=1", "unknown key 'label.prompts.lmit' (override '+label.prompts.lmit=1')"),
        ("engine=vlm", "engine=vlm: there is no conf/engine/vlm.yaml; did you mean 'vllm'?"),
        ("experiment=quikstart", "there is no conf/experiment/quikstart.yaml; did you mean 'quickstart'?"),
        ("data=[sead]", "sead"),
        ("revise.rounds=many", "revise.rounds='many' (override 'revise.rounds=many'): input should be a valid integer"),
        ("sft.data=seed", "sft.data='seed' (override 'sft.data=seed'): input should be a valid list"),
        ("sft.data=[sead]", "sft.data (override 'sft.data=[sead]') names the data set 'sead', which is not there"),
        ("sft.data=[sead]", "did you mean 'seed'?"),
        ("revise.rounds=0", "revise.rounds=0 (override 'revise.rounds=0'): must be between 1 and 64"),
        ("label.min_margin=nan", "label.min_margin=nan (override 'label.min_margin=nan'): must be between 0 and 0.5"),
        ("label.sampling.top_p=0", "label.sampling.top_p=0.0 (override 'label.sampling.top_p=0'): must be above 0"),
        ("revise.sampling.answer.temperature=-1", "revise.sampling.answer.temperature=-1.0"),
        ("revise.draw=cicle", "revise.draw=cicle (override 'revise.draw=cicle'): must be one of random, cycle, all"),
        ("revise.draw=cicle", "did you mean 'cycle'?"),
        ("label.kind=revisions", "label.kind=revisions (override 'label.kind=revisions'): must be one of feedback,"),
        ("label.ratio=1", "label.ratio=1.0 (override 'label.ratio=1'): must be between 0.01 and 0.99"),
        ("label.thought.temperature=-1", "label.thought.temperature=-1.0"),
        ("label.calibrate={data: [sead]}", "names the data set 'sead', which is not there; did you mean 'seed'?"),
        ("label.calibrate={data: [seed], limit: 0}", "label.calibrate.limit=0"),
        ("label.model={name: x, kind: pth, path: y}", "label.model.kind=pth"),
        ("dpo.loss=sift", "dpo.loss=sift (override 'dpo.loss=sift'): must be one of soft, trl; did you mean 'soft'?"),
        ("model.path=???", "model.path has no value; set it with model.path=..."),
        ("model=path", "model.path"),
        ("dpo.args.beta=${foo}", "dpo.args.beta: Interpolation key 'foo' not found"),
        ("name=a/b", "name='a/b': use letters, digits"),
    ],
)
def test_a_wrong_override_is_one_clear_line(override: str, message: str):
    with pytest.raises(UsageError) as caught:
        compose([override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_value_of_conf_is_blamed_on_its_file_and_line():
    with pytest.raises(UsageError) as caught:
        compose(["data=[seed]"])
    assert re.search(r"revise\.prompts\.data \(conf/revise/default\.yaml:\d+\)", str(caught.value))


def test_a_choice_and_a_range_stand_for_every_key():
    for key, allowed in CHOICES.items():
        value = lookup(quickstart(), key)
        assert set(value if isinstance(value, list) else [value]) <= set(allowed)
    assert all(low <= (lookup(quickstart(), key) or low) <= high for key, (low, high) in RANGES.items())
    assert tuple(gates.GATES) == GATES


def runtime_keys(kind: Any, above: str = "") -> list[str]:
    found = []
    for field in dataclasses.fields(kind):
        value = getattr(kind, field.name)
        found += [above + field.name] if field.metadata.get("runtime") else []
        found += runtime_keys(value, f"{above}{field.name}.") if dataclasses.is_dataclass(value) else []
    return found


CHANGED = {
    "engine.device": "engine.device=cpu",
    "engine.batch_rows": "engine.batch_rows=3",
    "engine.batch_tokens": "engine.batch_tokens=99",
    "label.require_judge": "label.require_judge=true",
    "engine.options": "+engine.options.tensor_parallel_size=2",
}


def test_every_runtime_field_has_a_case():
    assert set(runtime_keys(quickstart())) == set(CHANGED)


@pytest.mark.parametrize("key", CHANGED)
def test_how_to_run_changes_nothing_that_is_made(key: str):
    config = compose(["experiment=quickstart", CHANGED[key]])
    assert lookup(config, key) != lookup(quickstart(), key)
    assert without_runtime(config) == without_runtime(quickstart())


def test_what_is_made_changes_it():
    assert without_runtime(compose(["experiment=quickstart", "engine.dtype=float32"])) != without_runtime(quickstart())
