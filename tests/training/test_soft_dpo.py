"""Soft labels: the loss by hand, trl's own for certain labels, and no pull by a coin's label."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.config.compose import compose
from cai.config.schema import Guards
from cai.errors import UsageError
from cai.models.load import load_model, load_tokenizer
from cai.observe.progress import Progress
from cai.training.arguments import dpo_arguments, lora_config
from cai.training.guards import GuardCallback
from cai.training.soft_dpo import open_trainer, preference_loss
from cai.training.trainer import run_training
from tests.configs import smoke

SHARES = st.floats(0, 1)


def loss(d: float, p: float, beta: float = 0.1, smoothing: float = 0.0) -> float:
    import torch

    difference, probability = torch.tensor([[d], [p]], dtype=torch.float64)
    return preference_loss(difference, probability, beta, smoothing).item()


def test_a_value_by_hand():
    """d = 3, beta = 0.5, p = 0.8: sigmoid(1.5) = 0.817574; L = 0.8 * 0.201413 + 0.2 * 1.701413."""
    assert loss(3, 0.8, 0.5) == pytest.approx(0.501413, abs=1e-6)


@given(st.floats(-50, 50), SHARES, st.floats(0, 0.49))
def test_it_is_the_cross_entropy_of_both_outcomes(d: float, p: float, smoothing: float):
    soft = (1 - smoothing) * p + smoothing * (1 - p)
    expected = soft * math.log1p(math.exp(-0.5 * d)) + (1 - soft) * math.log1p(math.exp(0.5 * d))
    assert loss(d, p, 0.5, smoothing) == pytest.approx(expected, abs=1e-9)


@given(SHARES, st.floats(-5, 5))
def test_the_order_of_the_answers_does_not_matter(p: float, d: float):
    assert loss(d, p) == pytest.approx(loss(-d, 1 - p))


@pytest.mark.parametrize(
    ("p", "d", "slope"), [(0.5, 0.0, 0.0), (0.8, math.log(4) / 0.5, 0.0), (1.0, 0.0, -0.25)]
)
def test_the_gradient_ends_where_the_model_is_as_sure_as_the_label(
    p: float, d: float, slope: float
):
    import torch

    difference = torch.tensor([d], dtype=torch.float64, requires_grad=True)
    preference_loss(difference, torch.tensor([p], dtype=torch.float64), 0.5).sum().backward()
    assert difference.grad is not None
    assert difference.grad.item() == pytest.approx(slope, abs=1e-12)


def rows(*probabilities: float) -> Any:
    from datasets import Dataset

    answers = [
        ("Yes, gladly.", "No."),
        ("Ask a friend, then write to us.", "I won't."),
        ("The Rhine.", "A lake, or"),
    ]
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"Is {number} even?"}],
                "chosen": [{"role": "assistant", "content": answers[number % 3][0]}],
                "rejected": [{"role": "assistant", "content": answers[number % 3][1]}],
                "probability": probability,
            }
            for number, probability in enumerate(probabilities)
        ]
    )


def trainer(model: Path, folder: Path, data: Any, *overrides: str) -> Any:
    words = [
        "experiment=smoke",
        "dpo.args.per_device_train_batch_size=3",
        "dpo.args.learning_rate=1e-2",
        *overrides,
    ]
    config = compose(words).dpo
    return open_trainer(
        config,
        reference_folder=folder / "references",
        reference_digest="tiny",
        model=load_model(str(model), "float32", "cpu"),
        args=dpo_arguments(config, 0, str(folder), "cpu", held_out=True),
        train_dataset=data,
        eval_dataset=data,
        processing_class=load_tokenizer(str(model)),
        peft_config=lora_config("dpo.peft", config.peft) if config.peft else None,
    )


@pytest.mark.parametrize("group", ["lora", "full"])
@pytest.mark.parametrize("precomputed", [False, True])
def test_certain_labels_train_as_trls_own_loss(
    group: str, precomputed: bool, tiny_model: Path, tmp_path: Path
):
    """Three steps through both trainers on the same batches: losses, metrics and weights agree."""
    data, words = (
        rows(*[1.0] * 9),
        [f"dpo={group}", f"++dpo.args.precompute_ref_log_probs={precomputed}"],
    )
    soft = trainer(tiny_model, tmp_path / "soft", data, *words)
    hard = trainer(tiny_model, tmp_path / "hard", data, *words, "dpo.loss=trl")
    assert type(soft)._compute_loss is not type(hard)._compute_loss
    for one in (soft, hard):
        one.train()
        one.evaluate()
    assert soft.state.global_step == hard.state.global_step == 3
    shared = {
        "loss",
        "kl",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
    }
    shared |= {"logps/chosen", "logps/rejected"}
    shared |= {f"eval_{name}" for name in shared}
    compared = set()
    for ours, theirs in zip(soft.state.log_history, hard.state.log_history, strict=True):
        for name in shared & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], abs=1e-6, rel=1e-5), name
            compared.add(name)
    assert compared == shared
    assert hard.state.log_history[-1]["eval_rewards/margins"] > 0.01  # something was learned
    for mine, other in zip(soft.model.parameters(), hard.model.parameters(), strict=True):
        assert mine.detach().numpy() == pytest.approx(other.detach().numpy(), abs=1e-5)


def test_the_reference_is_asked_once_for_a_sweep(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another beta or loss finds the log-probabilities; other pairs, or other cuts, do not."""
    from trl.trainer.dpo_trainer import DPOTrainer

    asked, real = [], DPOTrainer.compute_ref_log_probs

    def counted(self: Any, *arguments: Any) -> Any:
        asked.append(1)
        return real(self, *arguments)

    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", counted)

    def batches(data: Any, *words: str) -> tuple[int, Any]:
        before = len(asked)
        one = trainer(
            tiny_model, tmp_path, data, "dpo=full", "dpo.args.precompute_ref_log_probs=true", *words
        )
        assert one.ref_model is None
        assert one.evaluate()["eval_rewards/margins"] == pytest.approx(0, abs=1e-5)
        return len(asked) - before, one

    first, one = batches(rows(0.9, 0.6, 0.7))
    again, other = batches(rows(0.9, 0.6, 0.8), "dpo.args.beta=0.3", "dpo.loss=trl")
    assert (first, again) == (1, 0)  # the held-out rows are the training rows, and found already
    assert one.train_dataset["ref_chosen_logps"][:] == other.train_dataset["ref_chosen_logps"][:]
    assert batches(rows(0.9, 0.6, 0.7, 0.8))[0] > 0
    assert batches(rows(0.9, 0.6, 0.7), "dpo.args.max_length=48")[0] > 0


def test_pairs_of_like_length_share_a_batch_where_asked(tiny_model: Path, tmp_path: Path):
    """The longer half counts, up to max_length. trl's datasets have no length of their own."""
    words = [
        "dpo=full",
        "++dpo.args.train_sampling_strategy=group_by_length",
        "dpo.args.max_length=36",
    ]
    one = trainer(tiny_model, tmp_path, rows(*[1.0] * 24), *words)
    batches = list(one.get_train_dataloader())
    halves = [batch["attention_mask"].sum(1).view(2, -1).amax(0).tolist() for batch in batches]
    order = [length for half in halves for length in half]
    assert sorted(order) == sorted(one.train_dataset["length"][:]) and max(order) == 36
    for place in range(0, 24, 6):  # transformers sorts so many of 24 rows
        assert order[place : place + 6] == sorted(order[place : place + 6], reverse=True)
    assert all("length" not in batch for batch in batches)


@pytest.mark.parametrize("group", ["lora", "full"])
def test_at_step_0_policy_and_reference_are_one(group: str, tiny_model: Path, tmp_path: Path):
    one = trainer(tiny_model, tmp_path, rows(0.9, 0.6, 1.0), f"dpo={group}")
    found = one.evaluate()
    assert found["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    for name in (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "kl",
    ):
        assert found[f"eval_{name}"] == 0


def test_a_coins_label_moves_nothing(tiny_model: Path, tmp_path: Path):
    one = trainer(tiny_model, tmp_path, rows(0.5, 0.5, 0.5), "dpo=full")
    before = [p.detach().clone() for p in one.model.parameters()]
    one.train()
    assert one.state.log_history[0]["grad_norm"] == pytest.approx(0, abs=1e-6)
    assert all(bool((a == b).all()) for a, b in zip(before, one.model.parameters(), strict=True))


def test_every_pair_is_trained_with_its_own_label(tiny_model: Path, tmp_path: Path):
    """The batch's loss is that of its rows' own probabilities, capped by max_probability."""
    import torch

    probabilities = (0.9, 0.5, 0.7)
    one = trainer(tiny_model, tmp_path, rows(*probabilities), "dpo=full", "dpo.max_probability=0.8")
    with torch.no_grad():
        for weight in one.model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))  # away from the reference
        batch = next(iter(one.get_train_dataloader()))
        order = [round(float(p), 4) for p in batch["probability"]]
        assert sorted(order) == sorted(probabilities)
        found = one.compute_loss(one.model, batch).item()
        mask = batch["completion_mask"][:, 1:]

        def logps(model: Any) -> Any:
            scores = (
                model(batch["input_ids"], attention_mask=batch["attention_mask"])
                .logits[:, :-1]
                .log_softmax(-1)
            )
            return (scores.gather(-1, batch["input_ids"][:, 1:, None])[..., 0] * mask).sum(1)

        ratios = logps(one.model) - logps(one.ref_model)
        d = (ratios[:3] - ratios[3:]).tolist()
    wanted = [loss(x, min(p, 0.8)) for x, p in zip(d, order, strict=True)]
    assert max(map(abs, d)) > 0.1
    assert found == pytest.approx(sum(wanted) / 3, abs=1e-5)


@pytest.mark.parametrize(
    "override",
    ["dpo.args.loss_type=[ipo]", "+dpo.args.ld_alpha=0.5", "dpo.args.label_smoothing=0.5"],
)
def test_what_the_soft_loss_does_not_have_is_refused(override: str):
    config = smoke(override).dpo
    with pytest.raises(UsageError, match=override.split("=")[0].lstrip("+").replace(".", r"\.")):
        dpo_arguments(config, 0, "unused", "cpu", held_out=False)


def test_a_router_loss_is_not_lost_in_silence(tiny_model: Path, tmp_path: Path):
    from transformers import MixtralConfig, MixtralForCausalLM

    size: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_local_experts": 2,
    }
    model = MixtralForCausalLM(
        MixtralConfig(vocab_size=400, num_attention_heads=2, num_key_value_heads=1, **size)
    )
    model.save_pretrained(tmp_path / "experts")
    load_tokenizer(str(tiny_model)).save_pretrained(tmp_path / "experts")
    with pytest.raises(UsageError, match="router_aux_loss_coef=0"):
        trainer(tmp_path / "experts", tmp_path, rows(0.9, 0.6, 0.7), "dpo=full")
    words = ("dpo=full", "+dpo.args.router_aux_loss_coef=0")
    found = trainer(tmp_path / "experts", tmp_path, rows(0.9, 0.6, 0.7), *words).evaluate()
    assert found["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_trls_other_losses_stay_within_reach(tiny_model: Path, tmp_path: Path):
    one = trainer(
        tiny_model, tmp_path, rows(0.9, 0.6, 0.7), "dpo.loss=trl", "dpo.args.loss_type=[ipo]"
    )
    one.train()
    assert one.state.log_history[0]["loss"] == pytest.approx(
        25
    )  # (0 - 1 / (2 beta))^2 at the start


@pytest.mark.parametrize("stop", [False, True])
def test_training_that_goes_wrong_is_said_and_ended_where_asked(
    stop: bool, tiny_model: Path, tmp_path: Path
):
    """With a floor of 100 the first evaluation warns. The best checkpoint is loaded at the end."""
    said: list[str] = []
    one = trainer(
        tiny_model, tmp_path / "checkpoints", rows(*[0.9] * 12), "dpo=full"
    )  # 4 steps, evaluated every 2
    one.add_callback(GuardCallback(Guards(chosen_floor=100.0, prompts=0, stop=stop), said.append))
    run_training(one, tmp_path, Progress("dpo", quiet=True), None)
    assert len(said) == 1 and said[0].startswith("At step 2 ")
    assert one.state.global_step == (2 if stop else 4)
    losses = [entry["eval_loss"] for entry in one.state.log_history if "eval_loss" in entry]
    assert one.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-5)
