"""The whole model of a stage that published its adapter alone (`publish: adapter`).

The adapter is merged into its base model in float32, in a folder of the run that is made when the
model is needed. The end of the run removes it: base and adapter make the same weights again.
"""

import json
from pathlib import Path
from typing import cast

from peft import PeftModel

from cai.digest import digest, file_digest, folder_files
from cai.models.load import load_model, load_tokenizer, save_model
from cai.models.markers import adopt_markers, embed_markers
from cai.models.source import ADAPTER_BASE, AdapterBase, make_once
from cai.store.files import write_json


def write_base(adapter: Path, base: AdapterBase) -> None:
    write_json(adapter / ADAPTER_BASE, base)


def read_base(adapter: Path) -> AdapterBase:
    return json.loads((adapter / ADAPTER_BASE).read_text(encoding="utf-8"))


def merge(base: str, adapter: Path, folder: Path) -> str:
    """A folder below `folder` with the adapter merged into the model `base`; it may be there."""
    files = {path.name: file_digest(path) for path in folder_files(adapter)}
    return make_once(folder / digest(files)[:16], lambda target: _merge(base, adapter, target))


def _merge(base: str, adapter: Path, target: Path) -> None:
    tokenizer = load_tokenizer(base)
    model = load_model(base, "float32", "cpu")
    # as the stage has done before it made the adapter
    embed_markers(model, adopt_markers(tokenizer))
    tuned = PeftModel.from_pretrained(model, str(adapter))
    save_model(cast(PeftModel, tuned).merge_and_unload(), tokenizer, target)
