"""The dpo stage on the tiny model.

Pairs of both kinds go in; a model, its adapter, its curve and figures come out."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai.config.schema import DataConfig
from cai.data.parquet import read_rows, write_rows
from cai.errors import CaiError
from cai.stages import dpo, sft
from cai.stages.base import Context, Input
from cai.training import trainer as training
from tests.configs import smoke


@pytest.fixture
def context(tmp_path: Path, tiny_model: Path, make_context: Callable[..., Context]) -> Context:
    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = [
        {
            "prompt": turn("user", f"Is {n} even?"),
            "chosen": turn("assistant", "Yes."),
            "principles": ["p"],
        }
        | {"rejected": turn("assistant", "No, it is not."), "probability": 0.6 if n % 2 else 1.0}
        | {"chosen_ended": True, "rejected_ended": True}
        | {"kind": "feedback" if n % 2 else "revision", "orders": [0.7, 0.5] if n % 2 else []}
        for n in range(10)
    ]
    (tmp_path / "label").mkdir()
    write_rows(tmp_path / "label" / "pairs.parquet", rows)
    (tmp_path / "sl_cai").mkdir()
    (tmp_path / "sl_cai" / "model").symlink_to(tiny_model)
    return make_context(
        "dpo",
        scratch=tmp_path / "scratch",
        inputs={name: Input(str(tmp_path / name), name) for name in ("sl_cai", "label")},
    )


SHORT = "dpo.guards.new_tokens=8"  # the answers at each evaluation take longest to make
LONG = "dpo.guards.new_tokens=128"


def run(context: Context, name: str, *words: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    work = context.root / name
    work.mkdir()
    apart = dataclasses.replace(
        context, scratch=context.root / f"scratch-{name}"
    )  # checkpoints are another run's
    summary = dpo.run(smoke(SHORT, *words).dpo, work, apart)
    flat = dataclasses.asdict(summary) | summary.metrics
    return flat, json.loads((work / "history.json").read_text())


def test_the_curve_has_margins_and_kl_of_training_and_held_out_pairs(context: Context):
    summary, log = run(context, "soft", LONG, "dpo.validation=0.2", "dpo.guards.chosen_floor=100")
    assert (summary["pairs"], summary["dropped"], summary["held_out_rows"]) == (10, 0, 2)
    names = {name for entry in log for name in entry}
    assert {"rewards/margins", "kl", "probability", "eval_rewards/margins", "eval_kl"} <= names
    assert any(
        0.6 < entry["probability"] < 1 for entry in log if "probability" in entry
    )  # both kinds in a batch
    assert len(summary["guards"]) == 1 and summary["guards"][0].startswith("At step 2 ")
    hard, _ = run(context, "hard", LONG, "dpo.validation=0.2", "dpo.loss=trl")
    assert hard["rewards/margins"] != summary["rewards/margins"] and hard["guards"] == []
    blind, _ = run(context, "blind", "dpo.validation=0")
    assert blind["guards"] == [
        "The guards see no growing, shrinking or repetitive answers, "
        "since no pair is held out (dpo.validation)."
    ]


def test_the_pairs_of_a_prompt_are_all_held_out_or_all_trained_on(
    context: Context, monkeypatch: pytest.MonkeyPatch
):
    path = context.root / "label" / "pairs.parquet"
    write_rows(path, [row for row in read_rows(path)[:5] for _ in range(2)])
    seen: list[list[str]] = []

    def note(config: object, context: object, rows: Any, held_out: int, tokenizer: object) -> None:
        prompts = [prompt[0]["content"] for prompt in rows["prompt"]]
        seen.extend([prompts[:held_out], prompts[held_out:]])
        raise InterruptedError

    monkeypatch.setattr("cai.stages.dpo_trainer.open_trainer", note)
    with pytest.raises(InterruptedError):
        run(context, "split", "dpo.validation=0.3")
    assert len(seen[0]) == 2 and len(seen[1]) == 8 and not set(seen[0]) & set(seen[1])


def test_answers_to_held_out_prompts_are_in_the_curve(context: Context):
    words = (LONG, "dpo.validation=0.3", "dpo.guards.prompts=2", "dpo.args.learning_rate=0.02")
    _, log = run(context, "guarded", *words)
    found = [entry for entry in log if "answers/tokens" in entry]
    evaluated = [entry["step"] for entry in log if "eval_loss" in entry]
    assert [entry["step"] for entry in found] == [0, *evaluated] and len(evaluated) > 1
    assert (
        len({entry["answers/tokens"] for entry in found}) > 1
    )  # they are the trained model's, not the first's
    _, plain = run(context, "plain", *words, "dpo.guards.prompts=0")
    assert plain == [
        entry for entry in log if entry not in found
    ]  # and training does not feel them


def test_a_sweep_finds_the_references_in_the_runs_folder(context: Context):
    plain, _ = run(context, "plain")
    made, _ = run(context, "made", "dpo.args.precompute_ref_log_probs=true")
    folder = context.root / "references"
    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(written) == 2  # of training and of held-out pairs
    found, _ = run(context, "found", "dpo.args.precompute_ref_log_probs=true")
    swept, _ = run(context, "swept", "dpo.args.precompute_ref_log_probs=true", "dpo.args.beta=0.3")
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == written
    assert made == found != swept
    assert made["rewards/margins"] == pytest.approx(plain["rewards/margins"], abs=1e-5)
    inputs = {**context.inputs, "sl_cai": Input(context.inputs["sl_cai"].path, "another")}
    other = dataclasses.replace(context, inputs=inputs)
    run(other, "other", "dpo.args.precompute_ref_log_probs=true")
    assert len(list(folder.iterdir())) == 4  # another reference model's are its own


def test_pairs_that_do_not_fit_are_counted_and_none_left_is_an_error(context: Context):
    with pytest.raises(CaiError, match=r"each of 10 prompts fills dpo\.args\.max_length"):
        run(context, "short", "dpo.args.max_length=8")


def later(context: Context, tiny_model: Path) -> Context:
    """A second round: its policy is another model than sl_cai."""
    import torch

    from cai.models.load import load_model, load_tokenizer

    model = load_model(str(tiny_model), "float32", "cpu")
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    model.save_pretrained(context.root / "dpo" / "model")
    load_tokenizer(str(tiny_model)).save_pretrained(context.root / "dpo" / "model")
    inputs = {
        **context.inputs,
        "dpo": Input(str(context.root / "dpo"), "dpo"),
        "label2": context.inputs["label"],
    }
    return dataclasses.replace(context, inputs=inputs, round=2)


@pytest.mark.parametrize(
    "words", [["dpo=lora"], ["dpo=full"], ["dpo.args.precompute_ref_log_probs=true"]]
)
def test_rewards_of_a_later_round_are_against_the_reference_that_is_asked_for(
    words: list[str], context: Context, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    """Before the first step: 0 against the policy.

    Against the first model: beta times what the policy is above it."""
    seen: dict[str, dict[str, float]] = {}
    monkeypatch.setattr(
        training, "run_training", lambda trainer, *_: seen.update({"now": trainer.evaluate()})
    )

    def at_the_start(where: Context, *more: str) -> dict[str, float]:
        run(where, f"run{len(list(where.root.glob('run*')))}", "dpo.validation=0.3", *words, *more)
        return seen.pop("now")

    second = later(context, tiny_model)
    first = at_the_start(context, "dpo.reference=first")
    policy, against_first = at_the_start(second), at_the_start(second, "dpo.reference=first")
    for answer in ("chosen", "rejected"):
        assert first[f"eval_rewards/{answer}"] == policy[f"eval_rewards/{answer}"] == 0
        above = policy[f"eval_logps/{answer}"] - first[f"eval_logps/{answer}"]
        assert abs(above) > 0.1
        assert against_first[f"eval_rewards/{answer}"] == pytest.approx(0.1 * above, abs=1e-4)
        assert against_first[f"eval_logps/{answer}"] == policy[f"eval_logps/{answer}"]


def tune(context: Context, stage: str, start: str, *words: str) -> Context:
    """The same with a published model of `stage`, by an adapter on `start`."""
    asked = [
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": f"{stage} says the Rhine."},
    ]
    folder = context.root / f"{stage}-on-{start}"
    folder.mkdir()
    (folder / "rows.jsonl").write_text(json.dumps({"messages": asked}))
    write_rows(folder / "training.parquet", [{"id": "1", "messages": asked, "last": True}] * 4)
    fast = [
        f"{stage}.validation=0",
        f"{stage}.args.learning_rate=0.02",
        f"{stage}.args.num_train_epochs=4",
    ]
    config = smoke(*fast, f"sl_cai.start={start}", *words)
    apart = dataclasses.replace(
        context,
        stage=stage,
        scratch=folder / "scratch",
        data={"seed": DataConfig("file", str(folder / "rows.jsonl"))},
        inputs={**context.inputs, "revise": Input(str(folder), "revise")},
    )
    sft.run(getattr(config, stage), folder, apart)
    return dataclasses.replace(
        context, inputs={**context.inputs, stage: Input(str(folder), folder.name)}
    )


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(torch.arange(40, 90)[None]).logits


def loaded(folder: Path | str, adapter: Path | None = None) -> Any:
    """Plain transformers and peft."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    return logits(PeftModel.from_pretrained(model, str(adapter)) if adapter else model)


def apart(one: Any, other: Any) -> float:
    return (one - other).abs().max().item()


LEARN = ("dpo.args.learning_rate=0.02", "dpo.validation=0.2")


@pytest.mark.parametrize(
    ("start", "words"),
    [("sft", ()), ("sft", ("dpo=continued",)), ("base", ("dpo=continued",))],
    ids=["fresh", "continued on sft", "continued on base"],
)
def test_what_is_published_is_what_was_trained(
    start: str,
    words: tuple[str, ...],
    context: Context,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """The folders, loaded as anyone would, give the logits of the trainer's model.

    The reference is sl_cai."""
    trained, before, reference = [], [], []
    save, train = training.save_result, training.run_training

    def seen_training(trainer: Any, *rest: Any) -> None:
        before.append(trainer.evaluate() if trainer.eval_dataset else {})
        train(trainer, *rest)

    def seen_saving(trainer: Any, *rest: Any) -> None:
        from trl.trainer.utils import use_adapter

        trained.append(logits(trainer.model))
        with use_adapter(trainer.model, "ref" if "ref" in trainer.model.peft_config else None):
            reference.append(logits(trainer.model))
        save(trainer, *rest)

    monkeypatch.setattr(training, "run_training", seen_training)
    monkeypatch.setattr(training, "save_result", seen_saving)
    context = tune(context, "sft", "base")
    context = tune(context, "sl_cai", start)
    given = {
        name: one for name, one in context.inputs.items() if name != "sft" or start == "sft"
    }  # as pipeline does
    run(dataclasses.replace(context, inputs=given), "out", *LEARN, *words)
    models = {"base": tiny_model, "out": context.root / "out" / "model"}
    models |= {name: Path(context.inputs[name].path) / "model" for name in ("sft", "sl_cai")}
    published = {name: loaded(folder) for name, folder in models.items()}
    assert all(
        apart(published[a], published[b]) > 0.01 for a, b in [("base", "sft"), (start, "sl_cai")]
    )
    # the stage before: its adapter is on the model that it started from
    adapter = Path(context.inputs["sl_cai"].path) / "adapter"
    assert (
        apart(trained[1], published["sl_cai"])
        < 1e-4
        > apart(trained[1], loaded(models[start], adapter))
    )
    # dpo: a fresh adapter is on the sl_cai model, a continued one on the model below that
    below = models[start] if words else models["sl_cai"]
    assert (
        apart(trained[2], published["out"])
        < 1e-4
        > apart(trained[2], loaded(below, context.root / "out/adapter"))
    )
    assert not (context.root / "out" / "adapter" / "ref").exists()
    assert apart(published["out"], published["sl_cai"]) > 0.01  # something was learned
    assert apart(reference[2], published["sl_cai"]) < 1e-4  # and the reference has not moved
    assert before[2]["eval_loss"] == pytest.approx(0.693147, abs=1e-5)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "kl"):
        assert before[2][f"eval_{name}"] == 0


def test_a_later_round_trains_the_continued_adapter_further(
    context: Context, monkeypatch: pytest.MonkeyPatch
):
    """That of the first round, which belongs to the model below sl_cai.

    Before a step both are that round's model."""
    context = tune(context, "sl_cai", "base")
    run(context, "dpo", "dpo=continued", *LEARN)
    seen: list[dict[str, float]] = []
    monkeypatch.setattr(
        training, "run_training", lambda trainer, *_: seen.append(trainer.evaluate())
    )
    inputs = {
        **context.inputs,
        "dpo": Input(str(context.root / "dpo"), "dpo"),
        "label2": context.inputs["label"],
    }
    second = dataclasses.replace(context, inputs=inputs, round=2)
    for reference in ("policy", "first"):
        run(second, reference, "dpo=continued", "dpo.validation=0.3", f"dpo.reference={reference}")
    first, last = (
        loaded(Path(context.inputs["sl_cai"].path) / "model"),
        loaded(context.root / "dpo" / "model"),
    )
    assert (
        apart(loaded(context.root / "policy" / "model"), last) < 1e-4 and apart(first, last) > 0.01
    )
    assert seen[0]["eval_rewards/chosen"] == 0 and abs(seen[1]["eval_rewards/chosen"]) > 0.01
    assert seen[0]["eval_logps/chosen"] == pytest.approx(seen[1]["eval_logps/chosen"])


def test_an_adapter_of_another_base_is_refused(context: Context):
    context = tune(tune(context, "sft", "base"), "sl_cai", "base")
    with pytest.raises(
        CaiError,
        match=r"sft with sl_cai's adapter is not the sl_cai model \(their scores differ by",
    ):
        run(
            context, "out", "dpo=continued"
        )  # `sft` is among the inputs, so sl_cai should have started there


def test_a_continued_adapter_resumes_with_its_reference(
    context: Context, monkeypatch: pytest.MonkeyPatch
):
    from transformers import TrainerCallback

    context = tune(context, "sl_cai", "base")
    words = ("dpo=continued", *LEARN)
    whole = run(context, "whole", *words)
    train = training.run_training

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    def killed(trainer: Any, *rest: Any) -> None:
        trainer.add_callback(Kill())
        train(trainer, *rest)

    monkeypatch.setattr(training, "run_training", killed)
    with pytest.raises(KeyboardInterrupt):
        run(context, "killed", *words)
    assert (context.root / "scratch-killed/checkpoints/checkpoint-2/ref").is_dir()
    monkeypatch.setattr(training, "run_training", train)
    (context.root / "killed").rmdir()
    assert run(context, "killed", *words) == whole
    assert apart(loaded(context.root / "killed/model"), loaded(context.root / "whole/model")) < 1e-5
