"""The lean output layer gives trl's metrics, losses, gradients and weights."""

from pathlib import Path
from typing import Any

import pytest

from cai.config.compose import compose
from cai.messages import assistant, user
from cai.models.chat_template import CHATML
from cai.models.load import load_model, load_tokenizer
from cai.training import cpu_head as head
from cai.training.arguments import dpo_arguments, lora_config, sft_arguments
from cai.training.cpu_head import TOKEN_METRICS, install_lean_head
from cai.training.soft_dpo import open_trainer
from cai.training.tokens import tokenize_dialogues
from tests.configs import smoke


def fused(model: Path) -> Any:
    from trl.trainer.utils import add_fused_lm_head

    found = load_model(str(model), "float32", "cpu")
    add_fused_lm_head(found, outputs=("log_probs", *TOKEN_METRICS))
    return found


def batch() -> dict[str, Any]:
    import torch

    tokens = torch.arange(5, 65).view(3, 20)
    mask = torch.ones_like(tokens)
    mask[1, 12:] = mask[2, 18:] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    labels[:, :8] = -100
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize(
    "at_once", [head.MAX_SCORES, 400 * 7]
)  # in one piece, and in several of seven tokens
def test_figures_and_gradients_are_trls(
    at_once: int, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(head, "MAX_SCORES", at_once)
    theirs, ours = fused(tiny_model), fused(tiny_model)
    install_lean_head(ours)
    found, wanted = (model(**batch(), fused_lm_head=True) for model in (ours, theirs))
    for name in ("loss", "log_probs", *TOKEN_METRICS, "label_mask"):
        assert getattr(found, name).shape == getattr(wanted, name).shape
        assert getattr(found, name).numpy(force=True) == pytest.approx(
            getattr(wanted, name).numpy(force=True), abs=1e-5
        )
    for outputs in (found, wanted):
        outputs.loss.backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad.numpy() == pytest.approx(other.grad.numpy(), abs=1e-5)


def test_prompts_and_padding_are_not_scored(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    seen, real = [], head._score_block
    monkeypatch.setattr(
        head, "_score_block", lambda hidden, *rest: seen.append(hidden.shape) or real(hidden, *rest)
    )
    model = fused(tiny_model)
    install_lean_head(model, ())
    install_lean_head(model, ())  # again changes nothing
    outputs = model(**batch(), fused_lm_head=True)
    trained = int((batch()["labels"] != -100).sum())
    assert seen == [(trained, 32)] and outputs.entropy is None
    assert model(**batch()).logits.shape == (
        3,
        20,
        model.config.vocab_size,
    )  # its own forward is as it was


def test_short_rows_are_not_as_long_as_long_ones(tiny_model: Path):
    """Nor are rows cut where padding is on the left, or where positions are told."""
    import torch

    model, rows = fused(tiny_model), batch()
    install_lean_head(model, ())
    seen: list[tuple[int, ...]] = []
    model.model.embed_tokens.register_forward_hook(
        lambda _, given, __: seen.append(tuple(given[0].shape))
    )
    model(**rows, fused_lm_head=True)
    assert seen == [(2, 20), (1, 12)]
    model(**rows, position_ids=torch.arange(20)[None], fused_lm_head=True)
    model(**(rows | {"attention_mask": rows["attention_mask"].flip(1)}), fused_lm_head=True)
    assert seen[2:] == [(3, 20), (3, 20)]


def test_a_batch_without_a_trained_token_is_no_error(tiny_model: Path):
    model = fused(tiny_model)
    install_lean_head(model)
    rows = batch()
    outputs = model(**(rows | {"labels": rows["labels"].fill_(-100)}), fused_lm_head=True)
    outputs.loss.backward()
    assert outputs.loss.item() == 0
    assert all(not weights.grad.any() for weights in model.parameters())


@pytest.mark.parametrize(
    "setting", ["final_logit_softcapping", "logit_scale", "output_router_logits"]
)
def test_models_that_change_their_scores_keep_trls_head(setting: str, tiny_model: Path):
    model = fused(tiny_model)
    setattr(model.config, setting, 2.0)
    forward = model.forward
    install_lean_head(model)
    assert model.forward == forward


WORDS = [
    "Yes.",
    "No, it is not even.",
    "Ask a friend, then write to us.",
    "The Rhine flows through Europe.",
]


def same_training(ours: Any, theirs: Any) -> None:
    """Both train and evaluate alike: every figure in their logs, and the weights at the end."""
    for one in (ours, theirs):
        one.train()
        one.evaluate()
    figures = 0
    for mine, other in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        for name in mine.keys() & other.keys():
            if "runtime" not in name and "per_second" not in name:
                assert mine[name] == pytest.approx(other[name], abs=2e-5, rel=1e-4), name
                figures += 1
    assert figures > 20
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert mine.detach().numpy() == pytest.approx(other.detach().numpy(), abs=1e-5)


@pytest.mark.parametrize("peft", [None, {"target_modules": "all-linear"}])
def test_sft_is_trls(peft: dict[str, Any] | None, tiny_model: Path, tmp_path: Path):
    from trl.trainer.sft_trainer import SFTTrainer

    tokenizer = load_tokenizer(str(tiny_model))
    rows, _ = tokenize_dialogues(
        tokenizer, [(user(f"Is {n} even?"), assistant(WORDS[n % 4])) for n in range(12)], 64
    )
    config = smoke("sft.args.learning_rate=1e-2").sft

    def trainer(name: str) -> Any:
        return SFTTrainer(
            model=load_model(str(tiny_model), "float32", "cpu"),
            args=sft_arguments("sft", config, 0, str(tmp_path / name), "cpu", held_out=False),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tokenizer,
            peft_config=None if peft is None else lora_config("sft.peft", peft),
        )

    ours = trainer("ours")
    install_lean_head(ours.model, ("entropy", "is_top1"))
    same_training(ours, trainer("theirs"))


@pytest.mark.parametrize("words", [("dpo=full",), ("dpo=lora", "+dpo.args.use_weighting=true")])
def test_dpo_is_trls(words: tuple[str, ...], tiny_model: Path, tmp_path: Path):
    from datasets import Dataset
    from trl.trainer.dpo_trainer import DPOTrainer

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    pairs = [
        {"prompt": turn("user", f"Is {n} even?"), "chosen": turn("assistant", WORDS[n % 4])}
        | {"rejected": turn("assistant", WORDS[(n + 1) % 4]), "probability": 1.0}
        for n in range(12)
    ]
    config = compose(
        ["experiment=smoke", "dpo.args.learning_rate=1e-2", "dpo.loss=trl", *words]
    ).dpo

    tokenizer = load_tokenizer(str(tiny_model))
    # without a line break behind the end of turn, which trl would train and cai does not
    tokenizer.chat_template = CHATML.replace("'<|im_end|>' + '\n'", "'<|im_end|>'")

    def given(name: str) -> dict[str, Any]:
        rows = Dataset.from_list(pairs)
        peft = None if config.peft is None else lora_config("dpo.peft", config.peft)
        return {
            "model": load_model(str(tiny_model), "float32", "cpu"),
            "args": dpo_arguments(config, 0, str(tmp_path / name), "cpu", held_out=False),
            "processing_class": tokenizer,
            "peft_config": peft,
        } | {"train_dataset": rows, "eval_dataset": rows}

    same_training(
        open_trainer(config, tmp_path, "tiny", **given("ours")), DPOTrainer(**given("theirs"))
    )
