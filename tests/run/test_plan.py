"""Keys and plans: change this, and exactly these stages run."""

import json
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml

from cai.config.compose import compose
from cai.config.schema import Config
from cai.errors import UsageError
from cai.method.constitution import Constitution
from cai.models.chat_template import INST
from cai.paths import shipped
from cai.run import plan as planning
from cai.run import runner
from cai.run.plan import STAGES, ingredients, inputs_of, plan_run
from cai.stages.base import Stage
from cai.store.run_folder import Run
from tests.configs import smoke

NAMES = [
    stage.name for stage in STAGES if stage.name not in ("build", "probe")
]  # what runs by default


def finish(config: Config, run: Run) -> None:
    """Publishes a stand-in output for every stage that would run.

    Keys depend on digests, not on what is in the outputs."""
    for name in [stage.name for stage in planning.stages(config)]:
        step = next(step for step in plan_run(config, run) if step.stage.name == name)
        if step.manifest is None:
            assert step.key is not None
            work, _ = run.begin(name, step.key)
            (work / "output").write_text(step.key)
            run.publish(name, 1, step.key, step.ingredients, {}, time.time())


def data_of(stage: Stage, config: Config) -> list[str]:
    return list(stage.data(config, stage.round))


def to_run(config: Config, run: Run) -> list[str]:
    return [step.stage.name for step in plan_run(config, run) if step.state != "done"]


Finished = Callable[..., Run]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The smoke experiment's run, and one that has gone on from there with other overrides."""

    @cache
    def run_with(*overrides: str) -> Run:
        made = Run(tmp_path_factory.mktemp("finished") / "run")
        if overrides:
            shutil.copytree(run_with().root, made.root, symlinks=True)
        finish(smoke(*overrides), made)
        return made

    return run_with


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> Run:
    """A copy that a test may change."""
    shutil.copytree(finished().root, tmp_path / "run", symlinks=True)
    return Run(tmp_path / "run")


FROM = {name: NAMES[NAMES.index(name) :] for name in NAMES}
CHANGES = [
    ([], []),
    (["engine.batch_rows=3"], []),  # how, not what
    (["launcher=process"], []),
    (["name=smoke2", "outputs=elsewhere"], []),
    (["report.records=7"], ["report"]),
    (["evaluate.sampling.temperature=0.5"], ["evaluate", "report"]),
    (["evaluate.suites.held_out.shots=[0]"], ["evaluate", "report"]),
    (["evaluate.suites.red_team.attacks=[prefill]"], ["evaluate", "report"]),
    (["evaluate.in_context=true"], ["evaluate", "report"]),
    (["evaluate.adherence={data: []}"], ["evaluate", "report"]),
    (["evaluate.adherence={data: [ordinary_dev]}"], NAMES),  # nothing is trained on its prompts
    (["system_prompt=Be kind."], NAMES),
    (
        ["evaluate.suites.held_out.examples=[demonstrations]"],
        ["evaluate", "report"],
    ),  # it holds nothing out
    (["dpo.args.beta=0.3"], FROM["dpo"]),
    (["label.min_margin=0.05"], FROM["label"]),
    (["label.require_judge=true"], []),
    (["label.kind=mixed"], FROM["label"]),
    (["label.kind=rule", "label.benign={data: [seed]}"], FROM["label"]),
    (["label.calibrate={data: [seed]}"], FROM["label"]),
    (["label.human={data: [seed]}"], FROM["label"]),
    (["label.demonstrations={data: [seed]}"], FROM["label"]),
    (["label.model={name: tiny, kind: path, path: {tiny_model}}"], FROM["label"]),
    (["dpo.loss=trl"], FROM["dpo"]),
    (["dpo.reference=first"], []),  # in the only round the policy is the first
    (["rounds=2"], ["label2", "dpo2", *FROM["evaluate"]]),
    (
        ["rounds=3", "label.limit=5"],
        [*FROM["label"][:2], "label2", "dpo2", "label3", "dpo3", *FROM["evaluate"]],
    ),
    (["dpo=continued"], FROM["dpo"]),
    (["sl_cai.args.learning_rate=1e-6"], FROM["sl_cai"]),
    (["revise.rounds=3"], FROM["revise"]),
    (["sft.args.learning_rate=1e-6"], FROM["sft"]),
    (["build.target=7"], []),  # nothing is trained on it
    (["sft.data=[seed,built]"], ["build", *NAMES]),
    (["sl_cai.data=[built]"], ["build", *FROM["sl_cai"]]),
    (
        [
            "sl_cai.data=[built]",
            "sl_cai.helpful=sampled",
            "revise.helpful={prompts: {data: [seed]}}",
        ],
        FROM["revise"],
    ),
    (["+engine@revise.engine=openai", "revise.engine.model=large"], FROM["revise"]),
    (["+engine@label.engine=openai", "label.engine.model=large"], FROM["label"]),
    (["seed=1"], NAMES),
    (["model=path", "model.path={tiny_model}"], NAMES),
    (["model.template=inst"], NAMES),
    (["model.template=null"], []),
    (["constitution=helpfulness"], FROM["revise"]),
    # what is evaluated is never trained on, so other evaluation prompts are another training set
    (
        [
            "evaluate.suites.red_team.prompts.data=[overrefusal]",
            "evaluate.suites.benign.prompts.data=[harmbench]",
        ],
        FROM["evaluate"],
    ),
    (["evaluate.suites.red_team.prompts.data=[overrefusal]"], NAMES),
]


@pytest.mark.parametrize(
    ("overrides", "expected"), CHANGES, ids=lambda value: " ".join(value) or "nothing"
)
def test_a_change_runs_exactly_the_stages_that_it_affects(
    finished: Finished, tiny_model: Path, overrides: list[str], expected: list[str]
):
    words = [word.replace("{tiny_model}", str(tiny_model)) for word in overrides]
    assert to_run(smoke(*words), finished()) == expected


SAID: dict[str, object] = {
    "kind": "revision",
    "id": "1",
    "prompt": [{"role": "user", "content": "Hi"}],
    "revision": "Bad.",
    "verdict": "bad",
    "reviewer": "ann",
}


def test_what_people_say_runs_the_stages_that_heed_it(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A file of verdicts is an input like any other: each new line in it is another input."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "verdicts" / "smoke.jsonl"
    words = ["experiment=smoke", "verdicts=[verdicts]"]
    with pytest.raises(
        UsageError, match=r"data\.verdicts\.path: no file verdicts/smoke.jsonl; `cai"
    ):
        plan_run(compose(words), finished())
    file.parent.mkdir()
    file.write_text("")
    assert to_run(compose(words), finished()) == FROM["sl_cai"]
    run = Run(tmp_path / "run")
    finish(compose(words), run)
    assert to_run(compose(words), run) == []
    file.write_text(json.dumps(SAID) + "\n")
    (step,) = [step for step in plan_run(compose(words), run) if step.stage.name == "sl_cai"]
    assert (step.state, step.why) == ("run", "stale: data verdicts changed")
    pairs = ["experiment=smoke", "label.human={data: [verdicts]}"]
    assert to_run(compose(pairs), finished()) == FROM["label"]
    revisions = ["label.kind=revision", "stages=null"]
    label = next(stage for stage in STAGES if stage.name == "label")
    assert "verdicts" in data_of(label, compose([*words, *revisions]))
    assert "verdicts" not in data_of(label, compose(words))
    # the same file for pairs alone, and for revisions too
    mixed = ["experiment=smoke", "label.kind=mixed", "label.human={data: [verdicts]}"]
    keys = [
        ingredients(label, compose([*mixed, *more]), Constitution.load("harmlessness"))
        for more in ([], ["verdicts=[verdicts]"])
    ]
    assert keys[0] != keys[1]


BUILT = "sft.data=[seed,built]"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], []),
        (["build.target=7"], ["build", *NAMES]),
        (["+engine@build.engine=openai", "build.engine.model=large"], ["build", *NAMES]),
        (["build.model={name: tiny, kind: path, path: {tiny_model}}"], ["build", *NAMES]),
        (["sl_cai.data=[built]"], FROM["sl_cai"]),  # build itself stays
        (["sft.data=[seed]"], []),  # and back
    ],
    ids=lambda value: " ".join(value) or "nothing",
)
def test_where_built_rows_are_trained_on_build_decides_what_runs(
    finished: Finished, tiny_model: Path, overrides: list[str], expected: list[str]
):
    words = [word.replace("{tiny_model}", str(tiny_model)) for word in overrides]
    assert to_run(smoke(BUILT, *words), finished(BUILT)) == expected


LATER = ["rounds=2", "label.human={data: [seed], limit: 2}"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], []),
        (["rounds=1"], FROM["evaluate"]),  # which the last round's model leaves
        (["rounds=3"], ["label3", "dpo3", *FROM["evaluate"]]),
        (["dpo.reference=first"], ["dpo2", *FROM["evaluate"]]),
        (["dpo.args.beta=0.3"], ["dpo", "label2", "dpo2", *FROM["evaluate"]]),
        (["label.human.limit=3"], ["label", "dpo", "label2", "dpo2", *FROM["evaluate"]]),
    ],
    ids=lambda value: " ".join(value) or "nothing",
)
def test_a_round_is_made_from_those_before_it(
    finished: Finished, overrides: list[str], expected: list[str]
):
    config = smoke(*LATER, *overrides)
    assert to_run(config, finished(*LATER)) == expected


def test_later_rounds_take_the_next_prompts_and_the_newest_model():
    config = smoke(*LATER, "rounds=3", "dpo.reference=first")
    found = {stage.name: stage for stage in planning.stages(config)}
    assert [*found] == [*NAMES[:5], "label2", "dpo2", "label3", "dpo3", *FROM["evaluate"]]
    labels = [found[name].section(config) for name in ("label", "label2", "label3")]
    assert [(one.prompts.offset, one.prompts.limit) for one in labels] == [(6, 8), (14, 8), (22, 8)]
    assert [one.human is None for one in labels] == [False, True, True]
    assert [list(data_of(found[name], config)) for name in ("label", "label2")] == [
        ["donotanswer", "seed"],
        ["donotanswer"],
    ]
    inputs = {
        name: inputs_of(found[name], config)
        for name in ("label2", "dpo2", "label3", "dpo3", "evaluate")
    }
    assert inputs == {
        "label2": ["dpo", "sft"],
        "dpo2": ["sl_cai", "dpo", "label2"],
        "label3": ["dpo2", "sft"],
        "dpo3": ["sl_cai", "dpo2", "label3"],
        "evaluate": ["sft", "sl_cai", "dpo", "dpo3"],
    }
    rule = compose(
        [
            "experiment=smoke",
            *LATER,
            "rounds=3",
            "label.kind=rule",
            "label.benign={data: [seed], limit: 5, offset: 2}",
        ]
    )
    found = {stage.name: stage for stage in planning.stages(rule)}
    labels = [found[name].section(rule) for name in ("label", "label2", "label3")]
    assert [one.benign and (one.benign.offset, one.benign.limit) for one in labels] == [
        (2, 5),
        (7, 5),
        (12, 5),
    ]
    assert inputs_of(found["label3"], rule) == ["dpo2"] and data_of(found["label3"], rule) == [
        "donotanswer",
        "seed",
    ]
    named = compose(["experiment=smoke", *LATER, "rounds=3", "evaluate.models=[dpo,dpo2]"])
    assert inputs_of(found["evaluate"], named) == ["dpo", "dpo2"]


def test_build_is_a_stage_of_runs_that_ask_for_it(tmp_path: Path):
    made = Run(tmp_path / "run")

    def shown(*overrides: str) -> list[str]:
        return [step.stage.name for step in plan_run(smoke(*overrides), made)]

    assert shown() == NAMES and shown("stages=[sft]") == NAMES
    assert shown("stages=[build]") == shown("sft.data=[built]") == ["build", *NAMES]
    assert shown("sl_cai.data=[built]") == ["build", *NAMES]
    config = compose(
        [
            "experiment=smoke",
            "stages=[sft]",
            "sft.data=[built]",
            "build.target=7",
            f"outputs={tmp_path}",
        ]
    )
    with pytest.raises(UsageError, match=r"stage 'sft' needs build.*stages=\[build,sft\]"):
        runner.run_stages(config, lambda line: None)


PROBED = "revise.prompts={data: [probe], limit: null, offset: 0}"
MEASURED = "evaluate.suites.red_team.prompts={data: [probe_test], limit: null, offset: 0}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], []),
        (["probe.target=7"], ["probe", *FROM["revise"]]),
        (["probe.test=0.5"], ["probe", *FROM["revise"]]),
        (["+engine@probe.engine=openai", "probe.engine.model=large"], ["probe", *FROM["revise"]]),
        (["probe.model={name: tiny, kind: path, path: {tiny_model}}"], ["probe", *FROM["revise"]]),
        (["constitution=helpfulness"], ["probe", *FROM["revise"]]),
        (["evaluate.suites.red_team.prompts.data=[probe_test_red_team]"], FROM["evaluate"]),
        (["revise.prompts.data=[donotanswer]"], FROM["revise"]),  # probe itself stays
        (["label.kind=rule", "label.benign={data: [probe_benign]}"], FROM["label"]),
    ],
    ids=lambda value: " ".join(value) or "nothing",
)
def test_where_probes_are_read_they_decide_what_runs(
    finished: Finished, tiny_model: Path, overrides: list[str], expected: list[str]
):
    words = [word.replace("{tiny_model}", str(tiny_model)) for word in overrides]
    config = compose(["experiment=smoke", PROBED, MEASURED, *words])
    assert to_run(config, finished(PROBED, MEASURED)) == expected


def test_probe_is_a_stage_of_runs_that_read_it(tmp_path: Path):
    made = Run(tmp_path / "run")

    def inputs(*overrides: str) -> list[str]:
        """The stages that read what probe has made."""
        config = compose(["experiment=smoke", *overrides])
        steps = plan_run(config, made)
        assert [step.stage.name for step in steps] == ["probe", *NAMES]
        return [step.stage.name for step in steps if "probe" in inputs_of(step.stage, config)]

    assert inputs("stages=[probe]") == []
    assert inputs(PROBED) == ["revise", "report"]
    assert inputs("label.prompts.data=[probe]") == ["label", "report"]
    # nothing that knows the principles is trained on what is measured
    assert inputs(MEASURED) == ["revise", "label", "evaluate", "report"]


def test_changing_it_back_runs_nothing(run: Run):
    finish(smoke("dpo.args.beta=0.3"), run)
    assert to_run(smoke(), run) == []
    assert len(list((run.root / "dpo").iterdir())) == 2  # both results stand side by side


@pytest.mark.parametrize(
    ("field", "expected"), [("critique", FROM["revise"]), ("comparison", FROM["label"])]
)
def test_an_edited_principle_runs_from_where_it_is_read(
    run: Run, tmp_path: Path, field: str, expected: list[str]
):
    rules = yaml.safe_load((shipped("principles") / "harmlessness.yaml").read_text())
    edited = rules["principles"][2]
    edited[field] += " Be brief."
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(rules))
    steps = plan_run(smoke(f"constitution={tmp_path / 'mine.yaml'}"), run)
    assert [step.stage.name for step in steps if step.state != "done"] == expected
    first = next(step for step in steps if step.state != "done")
    assert f"principle {edited['id']} changed" in first.why


def test_a_changed_sentence_or_draft_runs_from_where_it_is_read(run: Run, tmp_path: Path):
    file = tmp_path / "mine.md"
    file.write_text("- Be kind.\n- Be brief.\n")
    words = ["experiment=smoke", f"constitution={file}"]
    finish(compose(words), run)
    assert to_run(compose(words), run) == []
    drafts = "- sentence: Be kind.\n  comparison: Which is kinder?\n"
    (tmp_path / "mine.drafts.yaml").write_text(drafts)
    assert to_run(compose(words), run) == FROM["label"]
    file.write_text("- Be kind.\n- Be very brief.\n")
    assert to_run(compose(words), run) == FROM["revise"]


def test_a_template_changes_a_keys_part_of_the_model_and_nothing_else(tmp_path: Path):
    rules = Constitution.load("harmlessness")
    (tmp_path / "mine.jinja").write_text(INST)
    configs = [
        smoke(f"model.template={name}") for name in ("null", "inst", tmp_path / "mine.jinja")
    ]
    for stage in STAGES:
        own, inst, mine = (ingredients(stage, config, rules) for config in configs)
        assert mine == inst  # its text decides, not its name
        assert stage.name == "report" or inst["model"].pop("template")
        assert own == inst


def test_the_plan_says_why(run: Run):
    steps = plan_run(smoke("dpo.args.beta=0.3"), run)
    assert next(s.why for s in steps if s.stage.name == "dpo") == "stale: dpo.args.beta 0.1 -> 0.3"


def test_a_model_is_named_and_what_is_long_is_cut(run: Run):
    steps = plan_run(smoke("+model@revise.model=qwen2.5-coder-1.5b"), run)
    why = next(step.why for step in steps if step.stage.name == "revise")
    assert 'revise.model null -> "Qwen2.5-Coder-1.5B-Instruct"' in why
    assert len(why) < 300  # its 22 wheels are no news


@pytest.mark.parametrize(
    ("override", "stage", "why"),
    [
        ("dpo=continued", "dpo", "it reads sft"),
        ("label.judge=base", "label", "it no longer reads sft"),
    ],
)
def test_the_plan_tells_another_input_from_other_output(
    run: Run, override: str, stage: str, why: str
):
    step = next(step for step in plan_run(smoke(override), run) if step.stage.name == stage)
    assert step.why.endswith(f"; {why}")


def test_an_interrupted_stage_says_how_far_it_came(run: Run):
    config = smoke("dpo.args.beta=0.3")
    step = next(step for step in plan_run(config, run) if step.stage.name == "dpo")
    assert step.key is not None
    _, scratch = run.begin("dpo", step.key)
    (scratch / "progress.json").write_text('{"done": 3, "total": 40, "unit": "steps"}')
    step = next(step for step in plan_run(config, run) if step.stage.name == "dpo")
    assert (step.state, step.why) == ("partial", "3/40 steps")


def test_a_run_of_before_a_setting_was_there_is_stale(tmp_path: Path):
    config, run = smoke(), Run(tmp_path)
    step = plan_run(config, run)[0]
    older = {key: value for key, value in step.ingredients["sft"].items() if key != "quantization"}
    run.begin("sft", "0" * 64)
    run.publish("sft", 1, "0" * 64, step.ingredients | {"sft": older}, {}, time.time())
    assert (step.why, plan_run(config, run)[0].why) == (
        "not run yet",
        "stale: another version of cai has other settings for it",
    )


def test_the_same_output_upstream_stops_the_rerun(run: Run):
    """revise runs again under another constitution, but gives the same bytes.

    So nothing after it has to run."""
    config = smoke("revise.rounds=3")
    step = next(step for step in plan_run(config, run) if step.stage.name == "revise")
    before = run.latest("revise")
    assert step.key is not None and before is not None
    work, _ = run.begin("revise", step.key)
    (work / "output").write_text(before.key)
    run.publish("revise", 1, step.key, step.ingredients, {}, time.time())
    assert to_run(config, run) == []


@pytest.mark.parametrize(
    ("words", "inputs"),
    [
        ([], ["sft", "sl_cai"]),
        (["label.judge=base"], ["sl_cai"]),
        (["label.kind=mixed"], ["revise", "sft", "sl_cai"]),
        (["label.kind=revision"], ["revise"]),
        (["label.kind=rule"], ["sl_cai"]),
        (["label.model={name: other, kind: hub, path: some/model}"], ["sl_cai"]),
    ],
)
def test_labels_read_only_the_stages_that_they_need(words: list[str], inputs: list[str]):
    stage = next(stage for stage in planning.STAGES if stage.name == "label")
    assert inputs_of(stage, smoke(*words)) == inputs


@pytest.mark.parametrize(
    ("words", "inputs"),
    [
        ([], ["sl_cai", "label"]),
        (
            ["dpo=continued"],
            ["sft", "sl_cai", "label"],
        ),  # the smoke experiment's sl_cai starts at sft
        (["dpo=continued", "sl_cai.start=base"], ["sl_cai", "label"]),
    ],
)
def test_a_continued_adapter_needs_the_model_below_it(words: list[str], inputs: list[str]):
    stage = next(stage for stage in planning.STAGES if stage.name == "dpo")
    assert inputs_of(stage, smoke(*words)) == inputs


@pytest.mark.parametrize(
    ("kind", "reads"), [("feedback", True), ("mixed", True), ("revision", False), ("rule", False)]
)
def test_only_a_judge_reads_the_comparison_principles(kind: str, reads: bool):
    config = smoke(f"label.kind={kind}")
    stage = next(stage for stage in planning.STAGES if stage.name == "label")
    found = ingredients(stage, config, Constitution.load(config.constitution))
    assert ("constitution" in found) is reads


def test_a_constitution_that_is_read_anew_is_said():
    """evaluate reads it only where a judge compares answers."""
    assert planning._changes({"constitution": {"principles": {}}}, {}) == [
        "it no longer reads the constitution"
    ]
    assert planning._changes({}, {"constitution": {"principles": {}}}) == [
        "it reads the constitution"
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+engine.model=m"], "engine.model: only kind: openai has such a name"),
        (["engine=openai", "engine.server.urls=[]"], "engine.server.urls is empty; name a server"),
        (
            ["+engine@label.engine=vllm", "+label.engine.options.dtype=float32"],
            "label.engine.options.dtype: cai sets this option of vLLM's: set the engine's dtype",
        ),
    ],
    ids=str,
)
def test_an_engine_that_can_not_work_is_refused_before_the_plan(
    run: Run, overrides: list[str], message: str
):
    with pytest.raises(UsageError, match=message):
        plan_run(smoke(*overrides), run)
