"""Anything at all as a data file, an override or a manifest gives a result or a clear error.

Principle files are fuzzed in method/test_constitution.py, servers' answers in
engines/test_openai.py. `make chaos` tries 10,000 of each.
"""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
from hypothesis import given, settings
from hypothesis import strategies as st

from cai.config.compose import compose
from cai.config.schema import Config, DataConfig
from cai.data.prompts import load_dialogues
from cai.errors import CaiError, UsageError
from cai.messages import Message
from cai.store.manifest import Manifest, read_manifest
from cai.store.run_folder import Run

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
COLUMNS = st.sampled_from(
    [
        "prompt",
        "completion",
        "messages",
        "role",
        "content",
        "instruction",
        "input",
        "output",
        "text",
        "chosen",
        "id",
    ]
)
ROWS = st.lists(
    st.dictionaries(COLUMNS, JSON | st.lists(st.dictionaries(COLUMNS, JSON, max_size=3))),
    max_size=4,
)


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    texts = [
        {key: value if isinstance(value, str) else repr(value) for key, value in row.items()}
        for row in rows
    ]
    texts = [{k: v.encode("utf-8", "replace").decode() for k, v in row.items()} for row in texts]
    parquet.write_table(pyarrow.Table.from_pylist(texts or [{"prompt": "a"}]), sink)
    return sink.getvalue().to_pybytes()


@st.composite
def data_files(draw: st.DrawFn) -> tuple[str, bytes]:
    suffix = draw(st.sampled_from([".jsonl", ".json", ".csv", ".txt", ".parquet"]))
    rows = draw(ROWS)
    made = {
        ".jsonl": lambda: "\n".join(map(json.dumps, rows)).encode(),
        ".json": lambda: json.dumps(rows).encode(),
        ".csv": lambda: draw(st.text(alphabet='promtcletin,"\n\r ;#\x00é', max_size=60)).encode(),
        ".txt": lambda: draw(st.text(max_size=60)).encode("utf-8", "replace"),
        ".parquet": lambda: as_parquet(rows),
    }[suffix]()
    data = bytearray(made)
    for place, value in draw(
        st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=3)
    ):
        if data:
            data[place % len(data)] = value
    return suffix, draw(
        st.sampled_from([bytes(data), bytes(data[: len(data) // 2])]) | st.binary(max_size=40)
    )


@given(data_files(), st.sampled_from([None, {"prompt": "text"}]))
def test_any_data_file_gives_rows_or_a_clear_error(
    given_file: tuple[str, bytes], fields: dict[str, str] | None
):
    suffix, data = given_file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        path.write_bytes(data)
        try:
            loaded = load_dialogues(
                ["d"], {"d": DataConfig(kind="file", path=str(path), fields=fields or {})}
            )
        except CaiError as error:
            assert str(error)
            return
        assert all(
            isinstance(message, Message) for dialogue, _ in loaded.dialogues for message in dialogue
        )


@functools.cache
def keys() -> list[str]:
    def every(value: Any, key: str = "") -> list[str]:
        items = value.items() if isinstance(value, dict) else ()
        return [
            key.removeprefix("."),
            *(path for name, item in items for path in every(item, f"{key}.{name}")),
        ]

    return [key for key in every(dataclasses.asdict(compose(["experiment=smoke"]))) if key]


VALUES = st.sampled_from(
    ["", "null", "-1", "0", "1e400", "nan", "[]", "{}", "[a,b]", "{a: 1}", "true", "${name}", "???"]
)
OVERRIDES = st.builds(
    "{}{}={}".format,
    st.sampled_from(["", "", "", "+", "++", "~"]),
    st.deferred(lambda: st.sampled_from(keys())) | st.text(max_size=12),
    VALUES | st.text(max_size=12) | JSON.map(json.dumps),
)
FEW = settings(
    max_examples=max(10, settings().max_examples // 5) if settings().max_examples < 1000 else 10_000
)


@FEW
@given(st.lists(OVERRIDES, min_size=1, max_size=2))
def test_any_override_gives_a_configuration_or_a_clear_error(words: list[str]):
    try:
        assert isinstance(compose(["experiment=smoke", *words]), Config)
    except UsageError as error:
        assert str(error)


FIELDS = [field.name for field in dataclasses.fields(Manifest)]


@given(
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), JSON, max_size=4),
    st.binary(max_size=30) | st.none(),
)
def test_any_manifest_is_read_or_refused(changed: dict[str, Any], instead: bytes | None):
    with tempfile.TemporaryDirectory() as root:
        run = Run(Path(root))
        work, _ = run.begin("sft", "a" * 64)
        (work / "rows").write_text("rows")
        made = run.publish("sft", 1, "a" * 64, {}, {}, 0.0)
        file = run.folder("sft", "a" * 64) / "manifest.json"
        values = dataclasses.asdict(made)
        file.write_bytes(instead if instead is not None else json.dumps(values | changed).encode())
        try:
            found = read_manifest(file.parent)
        except CaiError as error:
            assert str(error)
        else:
            assert isinstance(found, Manifest)
            if "checksum" not in changed:
                assert found == made
