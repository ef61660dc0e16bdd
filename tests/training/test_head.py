"""The lean output layer: trl's own figures, losses, gradients and weights, of the trained tokens alone."""

from pathlib import Path
from typing import Any

import pytest

from cai.training import head
from cai.training.head import METRICS, lean_head
from cai.training.model import load_model


def fused(model: Path) -> Any:
    from trl.trainer.utils import add_fused_lm_head

    found = load_model(str(model), "float32", "cpu")
    add_fused_lm_head(found, outputs=("log_probs", *METRICS))
    return found


def batch() -> dict[str, Any]:
    import torch

    tokens = torch.arange(5, 65).view(3, 20)
    mask = torch.ones_like(tokens)
    mask[1, 12:] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    labels[:, :8] = -100
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("at_once", [head.SCORES, 400 * 7])  # in one piece, and in several of seven tokens
def test_figures_and_gradients_are_trls(at_once: int, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(head, "SCORES", at_once)
    theirs, ours = fused(tiny_model), fused(tiny_model)
    lean_head(ours)
    found, wanted = (model(**batch(), fused_lm_head=True) for model in (ours, theirs))
    for name in ("loss", "log_probs", *METRICS, "label_mask"):
        assert getattr(found, name).shape == getattr(wanted, name).shape
        assert getattr(found, name).numpy(force=True) == pytest.approx(
            getattr(wanted, name).numpy(force=True), abs=1e-5
        )
    for outputs in (found, wanted):
        outputs.loss.backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad.numpy() == pytest.approx(other.grad.numpy(), abs=1e-5)


def test_prompts_and_padding_are_not_scored(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    seen, real = [], head._figures
    monkeypatch.setattr(head, "_figures", lambda hidden, *rest: seen.append(hidden.shape) or real(hidden, *rest))
    model = fused(tiny_model)
    lean_head(model, ())
    lean_head(model, ())  # again changes nothing
    outputs = model(**batch(), fused_lm_head=True)
    trained = int((batch()["labels"] != -100).sum())
    assert seen == [(trained, 32)] and outputs.entropy is None
    assert model(**batch()).logits.shape == (3, 20, model.config.vocab_size)  # its own forward is as it was


def test_a_batch_without_a_trained_token_is_no_error(tiny_model: Path):
    model = fused(tiny_model)
    lean_head(model)
    rows = batch()
    outputs = model(**(rows | {"labels": rows["labels"].fill_(-100)}), fused_lm_head=True)
    outputs.loss.backward()
    assert outputs.loss.item() == 0
    assert all(not weights.grad.any() for weights in model.parameters())


@pytest.mark.parametrize("setting", ["final_logit_softcapping", "logit_scale", "output_router_logits"])
def test_models_that_change_their_scores_keep_trls_head(setting: str, tiny_model: Path):
    model = fused(tiny_model)
    setattr(model.config, setting, 2.0)
    forward = model.forward
    lean_head(model)
    assert model.forward == forward
