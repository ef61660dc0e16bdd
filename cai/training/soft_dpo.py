"""DPO whose labels are probabilities, on trl's trainer.

Bai et al. 2022, section 4.1 (soft labels); Rafailov et al. 2023 (DPO).

Notation, in code and comments:
  p          (pairs,)  probability that the chosen answer is the better one
  log ratio  (pairs,)  log policy(answer) - log reference(answer), nats
  d          (pairs,)  the chosen answer's log ratio minus the rejected one's
  reward     (pairs,)  beta times the log ratio
"""

import logging
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from pyarrow import parquet
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from cai.config.schema import DpoConfig
from cai.digest import digest
from cai.errors import UsageError
from cai.observe.log import say
from cai.training.cpu_head import TOKEN_METRICS, install_lean_head
from cai.training.pair_tokens import TOKEN_COLUMNS, tokenize_pairs


def preference_loss(
    log_ratio_differences: torch.Tensor,
    probabilities: torch.Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """The loss of each pair, (pairs,), of d (pairs,) and p (pairs,).

        L = -p log sigmoid(beta d) - (1 - p) log sigmoid(-beta d)

    With p = 1 this is DPO's own loss (Rafailov et al. 2023, equation 7). Label smoothing e puts
    (1 - 2e) p + e in place of p (the cDPO of Mitchell 2023, for soft labels). The gradient is zero
    where sigmoid(beta d) = p: a soft label, unlike a hard one, does not widen d without end.
    """
    p = (1 - 2 * label_smoothing) * probabilities + label_smoothing
    d = log_ratio_differences
    # log sigmoid(-x) = log sigmoid(x) - x
    return -logsigmoid(beta * d) + (1 - p) * beta * d


class PreferenceTrainer(DPOTrainer):
    """trl's DPOTrainer with the lean output layer, filed reference log-probabilities, and `kl`.

    `kl` is a metric in nats an answer: the mean of minus the log ratio over both answers. On
    held-out pairs that the reference has sampled it is an unbiased estimate of
    KL(reference || policy). Single values may be negative.
    """

    # Private methods of trl's trainer are overridden below, each for the reason that it gives.
    # pyproject.toml pins trl. test_soft_dpo.py and test_cpu_head.py compare losses, metrics and
    # weights with trl's own.

    token_metrics: tuple[str, ...] = TOKEN_METRICS  # that trl's losses ask of the output layer
    extra_columns: tuple[str, ...] = ("length",)
    model: Any  # transformers declares unions, of which most members lack what is used here
    ref_model: Any
    args: DPOConfig

    def __init__(self, *, reference_folder: Path, reference_digest: str, **arguments: Any):
        # trl's __init__ may compute the reference's log-probabilities already
        self.reference_folder, self.reference_digest = reference_folder, reference_digest
        super().__init__(**arguments)
        self._install_lean_heads()

    def _install_lean_heads(self) -> None:
        install_lean_head(self.model, self.token_metrics)
        if self.ref_model is not None:
            # DeepSpeed puts an engine around it
            install_lean_head(self.accelerator.unwrap_model(self.ref_model), ())

    def _prepare_dataset(
        self,
        dataset: Any,  # trl's types have those of vision models and of streams too
        processing_class: Any,
        args: DPOConfig,
        dataset_name: str,
    ) -> Dataset:
        """Overridden because answers end as sft trains them (cai/training/pair_tokens.py).

        `train_sampling_strategy: group_by_length` needs the lengths, and trl's datasets lack them.
        """
        cut_end = args.truncation_mode == "keep_start"
        rows, refused = tokenize_pairs(processing_class, dataset, args.max_length, cut_end)
        if refused.count:
            lines = "\n  ".join(refused.examples)
            say(
                f"left out {refused.count} {dataset_name} pairs that can't be rendered, first"
                f"\n  {lines}",
                logging.WARNING,
            )
        return rows

    def _set_signature_columns_if_needed(self) -> None:
        """Overridden because trl drops every column that is not in its list."""
        super()._set_signature_columns_if_needed()
        for column in self.extra_columns:
            if column not in self._signature_columns:
                self._signature_columns.append(column)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Overridden to keep the log-probabilities in the run's folder, for all runs of a sweep.

        Their file is named by the reference model's digest, the cut and the tokens: whatever else
        changes, they hold.
        """
        self._install_lean_heads()  # trl calls this within its __init__
        cut = [self.args.max_length, self.args.truncation_mode, self.ld_alpha]
        tokens = [dataset[column][:] for column in TOKEN_COLUMNS]
        file = self.reference_folder / f"{digest([self.reference_digest, cut, tokens])}.parquet"
        if file.is_file():
            return concatenate_datasets([dataset, Dataset(parquet.read_table(file))], axis=1)
        rows = super()._precompute_ref_logps(dataset, name, batch_size)
        if self.accelerator.is_main_process:
            self.reference_folder.mkdir(exist_ok=True)
            partial_file = file.with_suffix(".part")
            columns = ["ref_chosen_logps", "ref_rejected_logps"]
            rows.select_columns(columns).to_parquet(partial_file)
            partial_file.replace(file)
        return rows

    def _current_metrics(self) -> dict[str, list[float]]:
        # trl's log() averages the lists in this private attribute, so metrics are added to it
        return self._metrics["train" if self.model.training else "eval"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = self._current_metrics()
        rewards = zip(
            metrics.get("rewards/chosen", []), metrics.get("rewards/rejected", []), strict=True
        )
        if kl := [-(chosen + rejected) / (2 * self.beta) for chosen, rejected in rewards]:
            metrics["kl"] = kl
        super().log(logs, start_time)


class SoftTrainer(PreferenceTrainer):
    """The trainer of the soft loss. Its datasets have a column `probability`."""

    token_metrics = ()
    extra_columns = ("length", "probability")

    def __init__(self, *, max_probability: float, **arguments: Any):
        super().__init__(**arguments)
        self.max_probability = max_probability
        if self.aux_loss_enabled:
            raise UsageError(
                "dpo.loss=soft has no router loss; "
                "set dpo.args.router_aux_loss_coef=0, or dpo.loss=trl"
            )
        # trl's own collator pads and cuts. The reference's pass, in trl's __init__, needs no more.
        self.pad_and_cut = self.data_collator
        self.data_collator = self._collate

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        probabilities = torch.tensor([row["probability"] for row in rows])
        return self.pad_and_cut(rows) | {"probability": probabilities}

    def _compute_loss(
        self, model: PreTrainedModel, inputs: dict[str, torch.Tensor], return_outputs: bool
    ) -> torch.Tensor | tuple[torch.Tensor, ModelOutput]:
        """Overridden because trl's keeps d to itself.

        `input_ids`, `attention_mask` and `completion_mask` are (2 pairs, tokens): the first half
        holds the chosen answers, the second the rejected ones.
        """
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=labels,
            fused_lm_head=True,
            use_cache=False,
        )
        policy_logps = outputs.log_probs.sum(dim=1)  # (2 pairs,)
        log_ratios = policy_logps - self._reference_logps(model, inputs)  # (2 pairs,)
        chosen_log_ratios, rejected_log_ratios = log_ratios.chunk(2)
        probabilities = inputs["probability"].clamp(max=self.max_probability)
        losses = preference_loss(
            chosen_log_ratios - rejected_log_ratios, probabilities, self.beta, self.label_smoothing
        )
        self._add_metrics(policy_logps.detach(), self.beta * log_ratios.detach(), probabilities)
        loss = losses.mean()
        return (loss, outputs) if return_outputs else loss

    def _reference_logps(
        self, model: PreTrainedModel, inputs: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Log-probabilities of the answers by the reference, (2 pairs,)."""
        if self.precompute_ref_logps:
            return torch.cat((inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]))
        names = ("input_ids", "attention_mask", "completion_mask")
        tokens = {name: inputs[name] for name in names}
        # without a model of its own, the reference is `model` with its adapter switched off
        return torch.cat(self.compute_ref_log_probs(self.ref_model or model, tokens))

    def _add_metrics(
        self, logps: torch.Tensor, rewards: torch.Tensor, probabilities: torch.Tensor
    ) -> None:
        """Logs trl's metrics under trl's names, over all processes.

        `logps` and `rewards` are (2 pairs,), the chosen answers' first.
        """
        chosen_logps, rejected_logps = logps.chunk(2)
        chosen_rewards, rejected_rewards = rewards.chunk(2)
        batch_metrics = {
            "rewards/chosen": chosen_rewards,
            "rewards/rejected": rejected_rewards,
            "rewards/accuracies": (chosen_rewards > rejected_rewards).float(),
            "rewards/margins": chosen_rewards - rejected_rewards,
            "logps/chosen": chosen_logps,
            "logps/rejected": rejected_logps,
            "probability": probabilities,
        }
        metrics = self._current_metrics()
        gathered: Any = self.accelerator.gather(batch_metrics)
        for name, values in gathered.items():
            metrics[name].append(values.mean().item())


def open_trainer(
    config: DpoConfig, reference_folder: Path, reference_digest: str, **arguments: Any
) -> PreferenceTrainer:
    """The trainer of the loss that `config` names. `arguments` are those of trl's DPOTrainer.

    `reference_folder` keeps precomputed log-probabilities (dpo.args.precompute_ref_log_probs).
    `reference_digest` is of the reference model.
    """
    arguments |= {"reference_folder": reference_folder, "reference_digest": reference_digest}
    if config.loss == "soft":
        return SoftTrainer(max_probability=config.max_probability, **arguments)
    return PreferenceTrainer(**arguments)
