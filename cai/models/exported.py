"""A trained model in the forms that other programs read."""

from pathlib import Path

from cai.models.gguf_file import write_gguf
from cai.models.load import load_model, load_tokenizer, save_model
from cai.models.ollama import modelfile


def write_exported(form: str, model: Path, target: Path, name: str, system: str | None) -> None:
    """Writes into the folder `target` the model of a folder that `from_pretrained` loads.

    `form`: gguf, ollama or safetensors-16. `system` is the system message that the run trained
    with. Raises UsageError where this model has no such form.
    """
    if form == "safetensors-16":
        save_model(load_model(str(model), "bfloat16", "cpu"), load_tokenizer(str(model)), target)
        return
    target.mkdir(parents=True, exist_ok=True)
    file = f"{name}-f16.gguf"
    write_gguf(model, target / file, name)
    if form == "ollama":
        (target / "Modelfile").write_text(modelfile(model, file, system), encoding="utf-8")
