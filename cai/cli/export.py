"""`cai export`: a finished model as files that other programs read, with its card."""

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from cai.cli.options import add_run, verb_parser
from cai.config.compose import saved
from cai.config.names import policy_of
from cai.config.schema import Config
from cai.digest import folder_files
from cai.errors import UsageError, nearest
from cai.redact import redact, safe
from cai.report.card import FORMS, load_origin, model_card
from cai.run.plan import trained, trained_inputs, view_of
from cai.run.process import install_signals, quiet
from cai.stages.base import verb_context
from cai.store.manifest import Manifest, verify_files
from cai.store.run_folder import Run, find_run


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = verb_parser(
        "export",
        "Write a finished model as files that other programs read, with its card.\n"
        "gguf: one file of 16 bits, for llama.cpp and LM Studio. ollama: that and a Modelfile.\n"
        "safetensors-16: a folder of bfloat16 weights, for vLLM, SGLang, MLX and transformers.\n"
        "adapter: one LoRA adapter for the starting model, the sum of the stages'.",
        "outputs/quickstart --to gguf",
        "outputs/quickstart --to ollama --stage sl_cai --out kind",
    )
    add_run(parser)
    parser.add_argument("--to", dest="form", required=True, choices=list(FORMS))
    text = "sft, sl_cai, dpo, dpo2, ... (default: the last that is done)"
    parser.add_argument("--stage", help=text)
    text = "a folder that is not there yet (default: NAME-STAGE-FORM, here)"
    parser.add_argument("--out", metavar="FOLDER", help=text)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Raises UsageError where there is no such model, or it has no such form."""
    quiet()
    options = parse(arguments)
    install_signals()
    root = find_run(options.run)
    config, run = saved(root), Run(root)
    done = list(trained(config, run))
    stage = options.stage or (done[-1] if done else "dpo")
    if done and stage not in done:
        hint = nearest(stage, done)
        raise UsageError(f"--stage {safe(stage)}: {root} has {', '.join(done)}{hint}")
    origin = load_origin(run, stage, config, view_of)
    parts = adapter_chain(stage, origin.chain) if options.form == "adapter" else [stage]
    folders = [run.folder(name, origin.chain[name].key) for name in parts]
    for name, folder in zip(parts, folders, strict=True):
        verify_files(folder, origin.chain[name])
    target = Path(options.out or f"{config.name}-{stage}-{options.form}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already; name another with --out")
    target.parent.mkdir(parents=True, exist_ok=True)
    # beside its place, so that a folder with this name is whole
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".cai-export-") as place:
        work = Path(place) / "out"
        if options.form == "adapter":
            _write_adapter(config, [folder / "out" / "adapter" for folder in folders], work)
        else:
            _write_model(options.form, config, root, stage, work)
        card = redact(model_card(origin, target.name, options.form))
        (work / "README.md").write_text(card, encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
    for file in folder_files(target):
        print(f"{file.stat().st_size:>14,}  {safe(str(file))}")


def _write_adapter(config: Config, adapters: Sequence[Path], work: Path) -> None:
    from cai.models.joined_adapter import join_adapters  # heavy

    model = config.model
    on_hub = (model.path, model.revision) if model.kind == "hub" else (None, None)
    join_adapters(adapters, work, *on_hub)


def _write_model(form: str, config: Config, root: Path, stage: str, work: Path) -> None:
    from cai.models.exported import write_exported  # heavy

    context = verb_context(
        "export", config, root, config.constitution, trained_inputs(config, root)
    )
    model = Path(context.model_path(stage))
    write_exported(form, model, work, f"{config.name}-{stage}", config.system_prompt)


def adapter_chain(stage: str, manifests: Mapping[str, Manifest]) -> list[str]:
    """The stages whose adapters make the model of `stage` of the starting one, the first first.

    Raises UsageError where one of them has trained whole weights.
    """
    if stage == "base":
        return []
    manifest = manifests[stage]
    if "adapter/adapter_config.json" not in manifest.files:
        raise UsageError(
            f"{stage} has trained whole weights, so no adapter makes its model of the starting "
            "one; take the whole model: --to safetensors-16"
        )
    section = manifest.ingredients[manifest.kind]
    if manifest.kind != "dpo":
        return [*adapter_chain(section["start"], manifests), stage]
    below = adapter_chain(policy_of(int(stage.removeprefix("dpo") or 1)), manifests)
    # an adapter that was continued holds what it was before
    return [*(below[:-1] if section["adapter"] == "continued" else below), stage]
