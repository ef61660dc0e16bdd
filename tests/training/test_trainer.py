"""trl trains on the answers alone, its reference is the first model, and checkpoints resume."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cai.config.compose import compose
from cai.errors import CaiError, Interrupted, UsageError
from cai.messages import assistant, user
from cai.models.load import load_model, load_tokenizer
from cai.observe.progress import Progress
from cai.store.files import seal, write_json
from cai.training.arguments import (
    dpo_arguments,
    lora_config,
    quantization_config,
    sft_arguments,
)
from cai.training.checkpoints import BATCH, find_newest_checkpoint, keep_batch
from cai.training.tokens import check_packing, tokenize_dialogues
from cai.training.trainer import drop_unrepeatable, run_training, save_result
from tests.configs import smoke

DIALOGUES = [
    (
        user("Name a river."),
        assistant("The Rhine."),
        user("And a lake?"),
        assistant("Lake Geneva lies in the Alps."),
    ),
    (user("Say hello in French."), assistant("Bonjour.")),
]


def sft_trainer(model: Path, folder: Path, rows: Any, held: Any = None, **changes: Any) -> Any:
    from trl.trainer.sft_trainer import SFTTrainer

    overrides = [f"++sft.args.{key}={value}" for key, value in changes.items()]
    config = smoke("sft.max_length=512", *overrides).sft
    return SFTTrainer(
        model=load_model(str(model), "float32", "cpu"),
        args=sft_arguments("sft", config, 0, str(folder / "checkpoints"), "cpu", held is not None),
        train_dataset=rows,
        eval_dataset=held,
        processing_class=load_tokenizer(str(model)),
        peft_config=lora_config("sft.peft", config.peft or {}),
    )


def test_the_loss_is_that_of_the_answers_alone(tiny_model: Path, tmp_path: Path):
    """trl's loss on a multi-turn batch is a cross entropy over answers and their ends of turn."""
    import torch

    tokenizer: Any = load_tokenizer(str(tiny_model))
    rows, counts = tokenize_dialogues(tokenizer, DIALOGUES, 512)
    trainer = sft_trainer(tiny_model, tmp_path, rows)
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    with torch.inference_mode():
        found = float(trainer.compute_loss(trainer.model, batch))
    total, count = 0.0, 0
    for dialogue in DIALOGUES:
        text = tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in dialogue], tokenize=False
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            scores = trainer.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        answers = [
            tokenizer(m.content, add_special_tokens=False)["input_ids"]
            for m in dialogue
            if m.role == "assistant"
        ]
        place = 0
        for answer in answers:
            wanted = [*answer, tokenizer.eos_token_id]
            place = next(i for i in range(place, len(ids)) if ids[i : i + len(wanted)] == wanted)
            total -= sum(float(scores[place + i - 1, token]) for i, token in enumerate(wanted))
            count += len(wanted)
    assert counts["trained_tokens"] == count
    assert found == pytest.approx(total / count, abs=1e-5)


def test_cut_rows_and_lost_ends_are_counted(tiny_model: Path):
    tokenizer = load_tokenizer(str(tiny_model))
    full = len(tokenize_dialogues(tokenizer, DIALOGUES[1:], 512)[0][0]["input_ids"])
    rows, counts = tokenize_dialogues(tokenizer, DIALOGUES[1:], full - 3)
    assert counts["truncated"] == 1 and counts["lost_end_of_turn"] == 1
    assert len(rows[0]["input_ids"]) == full - 3
    assert (
        counts["lengths"] == {"median": full, "p95": full, "most": full, "up_to": {"64": 1}}
        and 32 < full <= 64
    )
    none, counts = tokenize_dialogues(tokenizer, DIALOGUES[1:], 5)
    assert len(none) == 0 and counts["dropped"] == 1 and counts["trained_tokens"] == 0


def test_packed_rows_are_learnt_as_rows_of_their_own(tiny_model: Path, tmp_path: Path):
    """Packed into one sequence, rows give the loss that they give apart."""
    import torch

    rows, counts = tokenize_dialogues(load_tokenizer(str(tiny_model)), DIALOGUES, 512)
    apart = sft_trainer(tiny_model, tmp_path, rows)
    packed = sft_trainer(tiny_model, tmp_path, rows, packing=True)
    assert len(apart.train_dataset) == 2 and len(packed.train_dataset) == 1
    losses = []
    for trainer in (apart, packed):
        batch = trainer.data_collator(list(trainer.train_dataset))
        assert int((batch["labels"] != -100).sum()) == counts["trained_tokens"]
        with torch.inference_mode():
            losses.append(float(trainer.compute_loss(trainer.model, batch)))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_packing_is_refused_where_rows_would_see_each_other(tiny_model: Path):
    from transformers import BloomConfig, BloomForCausalLM

    check_packing(load_model(str(tiny_model), "float32", "cpu", "sdpa"), "sft.args.packing")
    bloom = BloomForCausalLM(
        BloomConfig(vocab_size=99, hidden_size=16, n_layer=1, n_head=2, initializer_range=0.3)
    )
    with pytest.raises(
        CaiError, match=r"sft\.args\.packing: packed rows would see each other .*=group_by_length"
    ):
        check_packing(bloom, "sft.args.packing")


def test_a_quantisation_that_transformers_does_not_know_is_named():
    with pytest.raises(
        UsageError, match=r"sft\.quantization\.load_in_4bits: .* did you mean 'load_in_4bit'"
    ):
        quantization_config("sft.quantization", {"load_in_4bits": True})
    with pytest.raises(UsageError, match=r"sft\.quantization: .* refuses: .*bfloat17"):
        quantization_config("sft.quantization", {"bnb_4bit_compute_dtype": "bfloat17"})


def preference_rows() -> Any:
    from datasets import Dataset

    pair = {
        "chosen": [{"role": "assistant", "content": "Yes, gladly."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    return Dataset.from_list(
        [{"prompt": [{"role": "user", "content": f"Is {n} even?"}], **pair} for n in range(4)]
    )


@pytest.mark.parametrize("group", ["lora", "full"])
def test_at_step_0_every_reward_is_0(group: str, tiny_model: Path, tmp_path: Path):
    """Policy and reference are one model at first, with an adapter or not: the loss is log 2."""
    from trl.trainer.dpo_trainer import DPOTrainer

    config = compose(
        ["experiment=smoke", f"dpo={group}", "dpo.args.per_device_train_batch_size=4"]
    ).dpo
    trainer: Any = DPOTrainer(
        model=load_model(str(tiny_model), "float32", "cpu"),
        args=dpo_arguments(config, 0, str(tmp_path), "cpu", held_out=False),
        train_dataset=preference_rows(),
        processing_class=load_tokenizer(str(tiny_model)),
        peft_config=lora_config("dpo.peft", config.peft) if config.peft else None,
    )
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0


def stop_at_step(step: int) -> Any:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                raise Interrupted(2)

    return Stop()


def test_training_resumes_to_the_same_weights(tiny_model: Path, tmp_path: Path):
    rows, _ = tokenize_dialogues(load_tokenizer(str(tiny_model)), DIALOGUES * 8, 512)
    settings = {"save_steps": 2, "num_train_epochs": 1, "per_device_train_batch_size": 2}
    whole = sft_trainer(tiny_model, tmp_path / "whole", rows, **settings)
    run_training(whole, tmp_path / "whole", Progress("sft", quiet=True), None)
    broken = sft_trainer(tiny_model, tmp_path / "broken", rows, **settings)
    broken.add_callback(stop_at_step(5))
    with pytest.raises(Interrupted):
        broken.train()
    (tmp_path / "broken/checkpoints/checkpoint-6").mkdir()  # killed while it was written
    progress = Progress("sft", quiet=True)
    resumed = sft_trainer(tiny_model, tmp_path / "broken", rows, **settings)
    run_training(resumed, tmp_path / "broken", progress, None)
    assert progress.note.startswith("loss") and progress.done == 8
    for trainer, folder in ((whole, tmp_path / "a"), (resumed, tmp_path / "b")):
        save_result(trainer, load_tokenizer(str(tiny_model)), folder)
    assert (tmp_path / "a/model/model.safetensors").read_bytes() == (
        tmp_path / "b/model/model.safetensors"
    ).read_bytes()
    assert (tmp_path / "a/history.json").read_text() == (tmp_path / "b/history.json").read_text()


def interrupted_at_step_3(model: Path, folder: Path, rows: Any, **settings: Any) -> None:
    """Leaves the checkpoint of step 2."""
    trainer = sft_trainer(model, folder, rows, save_steps=2, num_train_epochs=1, **settings)
    trainer.add_callback(stop_at_step(3))
    with pytest.raises(Interrupted):
        run_training(trainer, folder, Progress("sft", quiet=True), None)


@pytest.mark.parametrize("of_an_earlier_version", [False, True])
def test_another_number_of_processes_goes_on_with_the_same_steps(
    of_an_earlier_version: bool, tiny_model: Path, tmp_path: Path
):
    """One process accumulates over two batches what two processes did at once."""
    rows, _ = tokenize_dialogues(load_tokenizer(str(tiny_model)), DIALOGUES * 8, 512)
    two = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    whole = sft_trainer(tiny_model, tmp_path / "whole", rows, num_train_epochs=1, **two)
    run_training(whole, tmp_path / "whole", Progress("sft", quiet=True), None)
    interrupted_at_step_3(tiny_model, tmp_path / "broken", rows, **two)
    checkpoint = tmp_path / "broken/checkpoints/checkpoint-2"
    assert json.loads((checkpoint / BATCH).read_text()) == {"processes": 1, "rows": 4}
    if of_an_earlier_version:  # it has the random numbers of two processes, and no more
        (checkpoint / BATCH).unlink()
        (checkpoint / "rng_state_1.pth").write_bytes((checkpoint / "rng_state.pth").read_bytes())
        (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
        seal(checkpoint)
    one = {"per_device_train_batch_size": 2, "save_steps": 2, "num_train_epochs": 1}
    resumed = sft_trainer(tiny_model, tmp_path / "broken", rows, **one)
    progress = Progress("sft", quiet=True)
    run_training(resumed, tmp_path / "broken", progress, None)
    assert progress.done == 4 and resumed.state.global_step == whole.state.global_step == 4
    for name, weights in whole.model.named_parameters():
        assert weights.equal(resumed.model.get_parameter(name)), name


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        ({"size": 2}, {"size": 4}, "batches of 4, for 1 processes, do not add up"),
        (
            {"size": 4, "strategy": "group_by_length"},
            {"size": 2, "strategy": "group_by_length"},
            "train_sampling_strategy=group_by_length would order them anew",
        ),
    ],
)
def test_where_the_steps_would_be_others_the_checkpoint_is_refused(
    before: dict[str, Any], now: dict[str, Any], reason: str, tiny_model: Path, tmp_path: Path
):
    names = {"size": "per_device_train_batch_size", "strategy": "train_sampling_strategy"}
    rows, _ = tokenize_dialogues(load_tokenizer(str(tiny_model)), DIALOGUES * 8, 512)
    interrupted_at_step_3(
        tiny_model, tmp_path, rows, **{names[name]: value for name, value in before.items()}
    )
    settings = {names[name]: value for name, value in now.items()}
    resumed = sft_trainer(tiny_model, tmp_path, rows, num_train_epochs=1, **settings)
    with pytest.raises(CaiError, match=f"sft: was interrupted at checkpoint-2, .*{reason}.*remove"):
        run_training(resumed, tmp_path, Progress("sft", quiet=True), None)


def test_a_sharded_checkpoint_is_for_as_many_processes(tiny_model: Path, tmp_path: Path):
    rows, _ = tokenize_dialogues(load_tokenizer(str(tiny_model)), DIALOGUES, 512)
    args = sft_trainer(tiny_model, tmp_path, rows, per_device_train_batch_size=2).args
    write_json(tmp_path / BATCH, {"processes": 2, "rows": 4})
    with pytest.raises(CaiError, match="2 processes and 4 rows a step, and what is sharded"):
        keep_batch(args, tmp_path, "sft", sharded=True)
    keep_batch(args, tmp_path, "sft", sharded=False)
    assert args.gradient_accumulation_steps == 2


@pytest.mark.parametrize(
    ("killed", "settings"),
    [
        (6, {"max_steps": 6}),  # in the middle of an epoch, with only the result left to save
        (4, {"learning_rate": 1e-30, "eval_steps": 2}),  # early stopping has begun to count
        (6, {"learning_rate": 1e-30, "eval_steps": 2}),  # and has ended training
    ],
)
def test_killed_after_a_checkpoint_training_ends_where_it_would_have(
    killed: int, settings: dict[str, Any], tiny_model: Path, tmp_path: Path
):
    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == killed:
                raise Interrupted(9)

    rows, _ = tokenize_dialogues(load_tokenizer(str(tiny_model)), DIALOGUES * 8, 512)
    held = rows.select(range(2)) if "eval_steps" in settings else None
    settings = settings | {"save_steps": 2, "per_device_train_batch_size": 2}

    def train(name: str, *callbacks: Any) -> list[dict[str, Any]]:
        trainer = sft_trainer(tiny_model, tmp_path / name, rows, held, **settings)
        for callback in callbacks:
            trainer.add_callback(callback)
        run_training(trainer, tmp_path / name, Progress("sft", quiet=True), patience=2)
        return drop_unrepeatable(trainer.state.log_history)

    whole = train("whole")
    assert whole[-1]["step"] == 6
    with pytest.raises(Interrupted):
        train("broken", Kill())
    assert train("broken") == whole


def test_the_newest_complete_checkpoint_is_taken(tmp_path: Path):
    for step in (2, 10, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-9/trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-2/trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-10/trainer_state.json").write_text('{"cut')
    (tmp_path / "checkpoint-9/model.safetensors").write_bytes(b"weights")
    said: list[str] = []
    assert find_newest_checkpoint(tmp_path, said.append) == tmp_path / "checkpoint-9"
    assert not (tmp_path / "checkpoint-10").exists()
    assert find_newest_checkpoint(tmp_path / "nothing", said.append) is None and said == []
    seal(tmp_path / "checkpoint-9")
    assert find_newest_checkpoint(tmp_path, said.append) == tmp_path / "checkpoint-9"
    (tmp_path / "checkpoint-9/model.safetensors").write_bytes(b"weighty")
    assert find_newest_checkpoint(tmp_path, said.append) == tmp_path / "checkpoint-2"
    assert len(said) == 1 and "checkpoint-9/model.safetensors is damaged" in said[0]


def test_a_loss_that_is_no_number_ends_training_before_it_is_saved(
    tiny_model: Path, tmp_path: Path
):
    rows, _ = tokenize_dialogues(load_tokenizer(str(tiny_model)), DIALOGUES * 8, 512)
    settings = {
        "save_steps": 1,
        "learning_rate": 1e30,
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 2,
    }
    trainer = sft_trainer(tiny_model, tmp_path, rows, **settings)
    with pytest.raises(
        CaiError, match=r"sft: loss is nan at step \d.*Lower sft\.args\.learning_rate"
    ):
        run_training(trainer, tmp_path, Progress("sft", quiet=True), None)
    with pytest.raises(CaiError, match="no numbers any more"):
        save_result(trainer, load_tokenizer(str(tiny_model)), tmp_path / "work")
    assert not (tmp_path / "work").exists()
