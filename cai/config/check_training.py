"""What must hold between the settings of training, and of what is labelled for it."""

from collections.abc import Sequence

from cai.config.explain import at
from cai.config.schema import Config, SftConfig
from cai.config.types import lookup
from cai.errors import UsageError


def check_adapter(config: Config, overrides: Sequence[str]) -> None:
    if config.dpo.adapter != "continued":
        return
    if config.sl_cai.peft is None:
        raise UsageError(
            f"{at('dpo.adapter', overrides, 'continued')}: sl_cai tunes every weight, so it leaves "
            "no adapter to continue; set sl_cai.peft, or take dpo=lora or dpo=full"
        )
    if config.dpo.peft is not None:
        raise UsageError(
            f"{at('dpo.peft', overrides)}: with dpo.adapter=continued sl_cai's adapter is trained "
            "on, which sl_cai.peft describes; take dpo=continued, which leaves dpo.peft null"
        )


def check_tuning(config: Config, overrides: Sequence[str]) -> None:
    for stage in ("sft", "sl_cai"):
        section: SftConfig = lookup(config, stage)
        if section.publish == "adapter":
            _check_adapter_alone(stage, section, config, overrides)
        if section.quantization is not None and section.peft is None:
            raise UsageError(
                f"{at(f'{stage}.quantization', overrides)}: quantised weights can't be tuned "
                f"themselves; set {stage}.peft"
            )
        if section.args.get("packing_strategy") == "wrapped":
            raise UsageError(
                f"{at(f'{stage}.args.packing_strategy', overrides)}: wrapped joins rows that then "
                "see each other; use bfd"
            )


def _check_adapter_alone(
    stage: str, section: SftConfig, config: Config, overrides: Sequence[str]
) -> None:
    setting = at(f"{stage}.publish", overrides, "adapter")
    if section.peft is None:
        raise UsageError(f"{setting}: every weight is tuned, so there is none; set {stage}.peft")
    if section.publish_dtype != "float32":
        raise UsageError(
            f"{setting}: an adapter is float32, so {stage}.publish_dtype={section.publish_dtype} "
            "has no use; leave it at float32"
        )
    if config.engine.kind == "openai":
        raise UsageError(
            f"{setting}: your servers need a folder to serve {stage} from; set {stage}.publish="
            "model"
        )


def check_rounds(config: Config, overrides: Sequence[str]) -> None:
    label = config.label
    if config.rounds == 1:
        return
    setting = at("rounds", overrides, config.rounds)
    if label.kind in ("revision", "mixed"):
        raise UsageError(
            f"{setting}: label.kind={label.kind} sets revisions against sl_cai's first answers, "
            "which no later round's model gives; take label.kind=feedback, or rounds=1"
        )
    for key, prompts in (("label.prompts", label.prompts), ("label.benign", label.benign)):
        if prompts is not None and prompts.limit is None:
            raise UsageError(
                f"{setting}: each takes the next {key}.limit prompts, and it is null; "
                "set it to a share of them"
            )


def check_benign(config: Config, overrides: Sequence[str]) -> None:
    label = config.label
    if label.harmless_share is not None and (label.kind != "rule" or label.benign is None):
        raise UsageError(
            f"{at('label.harmless_share', overrides)}: the share is of pairs of label.kind=rule "
            "with label.benign; take label.harmless_share=null, or set these two"
        )
    if label.benign is None:
        return
    setting = at("label.benign", overrides)
    if label.kind not in ("rule", "contrast"):
        raise UsageError(
            f"{setting}: only label.kind=rule and contrast ask harmless prompts, and it is "
            f"{label.kind}; take label.benign=null, or one of these kinds"
        )
    if shared := set(label.benign.data) & set(label.prompts.data):
        raise UsageError(
            f"{setting} and label.prompts both name {', '.join(sorted(shared))}, and a prompt is "
            "either harmless or harmful; take different sets"
        )
