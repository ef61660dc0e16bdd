"""DPO whose labels are probabilities (Bai et al. 2022, section 4.1; Rafailov et al. 2023), on trl's trainer."""

from pathlib import Path
from typing import Any

from cai.config.schema import DpoConfig
from cai.digest import digest
from cai.errors import UsageError
from cai.training.cpu_head import METRICS, lean_head

# trl's arguments that change the difference d or what is made of it; soft labels are defined on the plain one
PLAIN = {
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "use_weighting": False,
}


def preference_loss(
    difference: Any, probability: Any, beta: float, label_smoothing: float = 0.0
) -> Any:
    """The loss of each pair, shape (pairs,): L = -p log sigmoid(beta d) - (1 - p) log sigmoid(-beta d).

    `difference`, d, (pairs,): log policy(chosen)/reference(chosen) - log policy(rejected)/reference(rejected), nats.
    `probability`, p, (pairs,): that the chosen answer is the better one; 1 gives DPO's own loss (Rafailov et al. 2023,
    equation 7). Label smoothing e puts (1 - 2e) p + e in place of p (the cDPO of Mitchell 2023, for soft labels).
    The gradient is zero where sigmoid(beta d) = p: unlike a hard label's, a soft label's margin has an end.
    """
    from torch.nn.functional import logsigmoid

    p = (1 - 2 * label_smoothing) * probability + label_smoothing
    # log sigmoid(-x) = log sigmoid(x) - x
    return -logsigmoid(beta * difference) + (1 - p) * beta * difference


def check_arguments(args: Any) -> None:
    """Raises UsageError where trl's DPOConfig asks for what the soft loss does not have."""
    for name, plain in PLAIN.items():
        if getattr(args, name) != plain:
            raise UsageError(
                f"dpo.args.{name}={getattr(args, name)}: soft labels have a loss of their own; "
                f"set dpo.loss=trl, or leave dpo.args.{name} at {plain}"
            )
    if not 0 <= args.label_smoothing < 0.5:
        raise UsageError(
            f"dpo.args.label_smoothing={args.label_smoothing}: must be at least 0 and below 0.5"
        )


def open_trainer(config: DpoConfig, references: Path, reference: str, **given: Any) -> Any:
    """trl's DPOTrainer with the loss that `config` names; `given` are its arguments.

    `references` is a folder for precomputed log-probabilities (dpo.args.precompute_ref_log_probs), filed by the digest
    of the model that gives them, `reference`, and by the tokens themselves: whatever else changes, they hold.

    With `loss: soft`, the data sets have a column `probability`. Beside trl's metrics both losses log `kl`, nats an
    answer: the mean of log reference - log policy over both answers of the pairs. On held-out pairs that the reference
    has sampled this is an unbiased estimate of KL(reference || policy); single values may be negative.
    """
    import torch
    from datasets import Dataset, concatenate_datasets
    from pyarrow import parquet
    from trl.trainer.dpo_trainer import DPOTrainer

    class PreferenceTrainer(DPOTrainer):
        model: Any
        args: Any
        of_tokens = METRICS  # trl's, of each token

        def __init__(self, **arguments: Any):
            super().__init__(**arguments)
            self._lean()

        def _lean(self) -> None:
            lean_head(self.model, self.of_tokens)
            if self.ref_model is not None:
                lean_head(self.ref_model, ())

        def _prepare_dataset(
            self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
        ) -> Any:
            """With the tokens of each pair's longer half, which `train_sampling_strategy: group_by_length` asks for."""
            rows: Any = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
            columns = zip(
                *(rows[name][:] for name in ("prompt_ids", "chosen_ids", "rejected_ids")),
                strict=True,
            )
            lengths = [
                len(prompt) + max(len(chosen), len(rejected))
                for prompt, chosen, rejected in columns
            ]
            return rows.add_column(
                "length", [min(length, args.max_length or length) for length in lengths]
            )

        def _set_signature_columns_if_needed(self) -> None:
            super()._set_signature_columns_if_needed()
            if "length" not in self._signature_columns:
                self._signature_columns.append("length")

        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            self._lean()  # still within trl's __init__
            tokens = [dataset[column][:] for column in ("prompt_ids", "chosen_ids", "rejected_ids")]
            cut = [self.args.max_length, self.args.truncation_mode, self.ld_alpha]
            file = references / f"{digest([reference, cut, tokens])}.parquet"
            if not file.is_file():
                done = super()._precompute_ref_logps(dataset, name, batch_size)
                if self.accelerator.is_main_process:
                    references.mkdir(exist_ok=True)
                    part = file.with_suffix(".part")
                    done.select_columns(["ref_chosen_logps", "ref_rejected_logps"]).to_parquet(part)
                    part.replace(file)
                return done
            return concatenate_datasets([dataset, Dataset(parquet.read_table(file))], axis=1)

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            metrics = self._metrics["train" if self.model.training else "eval"]
            both = zip(
                metrics.get("rewards/chosen", []), metrics.get("rewards/rejected", []), strict=True
            )
            if found := [-(chosen + rejected) / (2 * self.beta) for chosen, rejected in both]:
                metrics["kl"] = found
            super().log(logs, start_time)

    class SoftTrainer(PreferenceTrainer):
        of_tokens = ()

        def __init__(self, **arguments: Any):
            super().__init__(**arguments)
            if self.aux_loss_enabled:
                raise UsageError(
                    "dpo.loss=soft has no router loss; set dpo.args.router_aux_loss_coef=0, or dpo.loss=trl"
                )
            tokens = (
                self.data_collator
            )  # trl's own, which pads and cuts; it has served the reference by now

            def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
                return tokens(rows) | {
                    "probability": torch.tensor([row["probability"] for row in rows])
                }

            self.data_collator = collate

        def _set_signature_columns_if_needed(self) -> None:
            super()._set_signature_columns_if_needed()
            if "probability" not in self._signature_columns:
                self._signature_columns.append("probability")

        def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
            """The first half holds the chosen answers, the second the rejected: `input_ids` is (2 pairs, tokens)."""
            probability = inputs["probability"].clamp(max=config.max_probability)
            tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
            outputs = model(**tokens, labels=labels, fused_lm_head=True, use_cache=False)
            policy = outputs.log_probs.sum(dim=1)
            if self.precompute_ref_logps:
                reference = torch.cat((inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]))
            else:
                mask = {"completion_mask": inputs["completion_mask"]}
                reference = torch.cat(
                    self.compute_ref_log_probs(self.ref_model or model, tokens | mask)
                )
            chosen, rejected = (policy - reference).chunk(2)
            loss = preference_loss(
                chosen - rejected, probability, self.beta, self.label_smoothing
            ).mean()
            self._note(
                policy.detach(),
                self.beta * chosen.detach(),
                self.beta * rejected.detach(),
                probability,
            )
            return (loss, outputs) if return_outputs else loss

        def _note(self, policy: Any, chosen: Any, rejected: Any, probability: Any) -> None:
            """trl's metrics under trl's names, gathered from all processes."""
            metrics = self._metrics["train" if self.model.training else "eval"]
            found = {
                "rewards/chosen": chosen,
                "rewards/rejected": rejected,
                "rewards/accuracies": (chosen > rejected).float(),
                "rewards/margins": chosen - rejected,
                "logps/chosen": policy.chunk(2)[0],
                "logps/rejected": policy.chunk(2)[1],
                "probability": probability,
            }
            everywhere: Any = self.accelerator.gather(found)
            for name, values in everywhere.items():
                metrics[name].append(values.mean().item())

    return (SoftTrainer if config.loss == "soft" else PreferenceTrainer)(**given)
