"""`cai export` of a run whose models are tiny."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from cai.cli.export import adapter_chain
from cai.errors import UsageError
from cai.store.manifest import Manifest

Cai = Callable[..., CompletedProcess[str]]


def test_a_folder_of_16_bits_loads_and_has_its_card(cai: Cai, finished_run: Path, tmp_path: Path):
    done = cai("export", "smoke", "--to", "safetensors-16", "--out", "sub/kind")
    assert done.returncode == 0, done.stderr
    assert "sub/kind/model.safetensors" in done.stdout
    folder = tmp_path / "sub" / "kind"
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
    assert (folder / "chat_template.jinja").is_file()
    card = ModelCard.load(folder / "README.md")
    assert "in bfloat16" in card.text and "before they were rounded to 16 bits" in card.text
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["kind"]
    again = cai("export", "smoke", "--to", "gguf", "--out", "sub/kind")
    assert again.returncode == 2 and "is there already" in again.stderr


def test_gguf_and_ollama(cai: Cai, finished_run: Path, tmp_path: Path):
    assert cai("export", "--to", "ollama", "--stage", "sl_cai").returncode == 0
    folder = tmp_path / "smoke-sl_cai-ollama"
    names = {path.name for path in folder.iterdir()}
    assert names == {"Modelfile", "README.md", "smoke-sl_cai-f16.gguf"}
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict()["library_name"] == "gguf"
    assert "ollama create smoke-sl_cai-ollama -f Modelfile" in card.text


def test_what_can_not_be_exported_is_said(cai: Cai, finished_run: Path, tmp_path: Path):
    for words, message in [
        (["--to", "adapter"], "dpo has trained whole weights, so no adapter"),
        (["--to", "gguf", "--stage", "dp"], "has sft, sl_cai, dpo; did you mean 'dpo'"),
    ]:
        done = cai("export", "smoke", *words)
        assert done.returncode == 2 and message in done.stderr
    file = next((finished_run / "latest" / "dpo").resolve().glob("out/model/*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    done = cai("export", "smoke", "--to", "gguf")
    assert done.returncode == 1 and "is damaged" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def manifest(stage: str, section: dict[str, str]) -> Manifest:
    kind = stage.rstrip("0123456789")
    files = {"adapter/adapter_config.json": {"sha256": "", "bytes": 0}}
    ingredients = {"kind": kind, kind: section}
    return Manifest(stage, 1, "", ingredients, "", json.loads(json.dumps(files)), {}, 0.0, 0.0)


def test_the_adapters_that_make_a_model_are_those_below_it():
    stages = {
        "sft": manifest("sft", {"start": "base"}),
        "sl_cai": manifest("sl_cai", {"start": "sft"}),
        "dpo": manifest("dpo", {"adapter": "fresh"}),
        "dpo2": manifest("dpo2", {"adapter": "continued"}),
    }
    assert adapter_chain("sl_cai", stages) == ["sft", "sl_cai"]
    assert adapter_chain("dpo", stages) == ["sft", "sl_cai", "dpo"]
    assert adapter_chain("dpo2", stages) == ["sft", "sl_cai", "dpo2"]
    whole = Manifest("sft", 1, "", {"kind": "sft"}, "", {}, {}, 0.0, 0.0)
    with pytest.raises(UsageError, match="sft has trained whole weights"):
        adapter_chain("dpo", stages | {"sft": whole})
