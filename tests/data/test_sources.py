"""Rows from files and wheels, and errors that name the file and the line."""

import codecs
import gzip
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from cai.config.schema import DataConfig
from cai.data.formats import to_dialogue
from cai.data.prompts import load_dialogues
from cai.data.sources import fingerprint, read_source
from cai.errors import CaiError, UsageError
from cai.messages import assistant, user

ROWS = [{"prompt": "One, two", "split": "train"}, {"prompt": "Drei", "split": "test"}]


def file(folder: Path, name: str, content: str | bytes, **more: Any) -> DataConfig:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return DataConfig(kind="file", path=str(folder / name), **more)


def read(config: DataConfig) -> list[dict[str, Any]]:
    return [row for _, row in read_source("mine", config)]


def parquet(folder: Path) -> DataConfig:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    return DataConfig(kind="file", path=str(folder / "rows.parquet"))


MAKERS = {
    "jsonl": lambda folder: file(folder, "rows.jsonl", "\n\n".join(map(json.dumps, ROWS)) + "\r\n"),
    "json": lambda folder: file(folder, "rows.json", json.dumps(ROWS)),
    "yaml": lambda folder: file(
        folder, "rows.yaml", "- {prompt: 'One, two', split: train}\n- prompt: Drei\n  split: test\n"
    ),
    "PyRIT's": lambda folder: file(
        folder, "rows.prompt", json.dumps({"dataset_name": "mine", "seeds": ROWS})
    ),
    "csv": lambda folder: file(
        folder, "rows.csv", '\ufeffprompt,split\r\n"One, two",train\r\nDrei,test\r\n'
    ),
    "parquet": parquet,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_each_kind_of_file_gives_the_same_rows(kind: str, tmp_path: Path):
    assert read(MAKERS[kind](tmp_path)) == ROWS


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path):
    assert read(file(tmp_path, "rows.txt", " One \n\nTwo\n")) == [
        {"prompt": "One"},
        {"prompt": "Two"},
    ]


@pytest.mark.parametrize("kind", MAKERS)
def test_where_keeps_the_rows_with_that_value(kind: str, tmp_path: Path):
    config = MAKERS[kind](tmp_path)
    config.where["split"] = "test"
    assert read(config) == ROWS[1:]


def test_rows_know_where_they_stand(tmp_path: Path):
    found = [
        where
        for where, _ in read_source("mine", file(tmp_path, "rows.jsonl", '{"a": 1}\n\n{"a": 2}\n'))
    ]
    assert found == [f"{tmp_path}/rows.jsonl:1", f"{tmp_path}/rows.jsonl:3"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", "{}", "rows.json: expected a list of objects"),
        ("rows.json", "[" * 100_000, "rows.json: not JSON: nested too deeply"),
        ("rows.yaml", "- a: [", "rows.yaml: not YAML"),
        ("rows.yaml", "- !!python/object/apply:os.getcwd []", "rows.yaml: not YAML"),
        ("rows.yaml", "- &a {a: 1}\n- *a", "rows.yaml: not YAML: an alias"),
        ("rows.prompt", "seed_type: objective", "rows.prompt: expected a list of objects"),
        (
            "rows.csv",
            b"caf\xe9\nx",
            "rows.csv:1: not UTF-8 at byte 4 (0xE9, behind 'caf'); convert",
        ),
        ("rows.json", b'[\n{"a": "\xe9"}]', "rows.json:2: not UTF-8 at byte 8 (0xE9, behind '{\"a"),
        ("rows.yaml", b"- a: \xe9", "`iconv -f CP1252 -t UTF-8`"),
        ("rows.txt", "Hi\n".encode("utf-16-le"), "neither UTF-8 nor any text with a mark"),
        ("rows.txt", codecs.BOM_UTF16_LE + b"H", "rows.txt: not readable as utf-16"),
        (
            "rows.jsonl",
            gzip.compress(b"{}", mtime=0),
            "its content is packed with gzip; end its name in",
        ),
        ("rows.csv", b"PAR1", "its content is Parquet; end its name in .parquet"),
        (
            "rows.txt",
            "one\rtwo\r",
            "rows.txt: its lines end in a carriage return alone; convert it",
        ),
        (
            "rows.csv",
            "p,q\r1,2\r",
            "rows.csv: its lines end in a carriage return alone; convert it",
        ),
        ("rows.jsonl", '[\n{"prompt": "Hi"}\n]', "it begins as a list; end its name in .json"),
        (
            "rows.json",
            '{"data": [], "v": 1}',
            "expected a list of objects, found dict with data, v",
        ),
        ("rows.json", "version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("rows.csv", 'a,b\nq1,"a1\nq2,a2\n', "rows.csv"),  # else one row holds the whole rest
        ("rows.yaml", "- a: !!bool maybe", "rows.yaml: not YAML: a value that its tag"),
        ("rows.yaml", "- a: !!timestamp abc", "rows.yaml: not YAML: a value that its tag"),
        ("rows.csv", "a,b,a\n1,2,3\n", "rows.csv: the column 'a' stands twice"),
        ("rows.jsonl.gz", "{}", "rows.jsonl.gz: not readable as gzip"),
        ("rows.zip.gz", gzip.compress(b"{}", mtime=0), "rows.zip.gz: can't read '.zip'"),
        ("rows.parquet", "PAR1", "rows.parquet: not readable as Parquet"),
        ("rows.xml", "<a/>", "rows.xml: can't read '.xml'; use .jsonl"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: str | bytes, message: str
):
    with pytest.raises(UsageError) as caught:
        read(file(tmp_path, name, content))
    assert message in str(caught.value)


def test_comments_above_the_columns_of_a_csv_are_no_rows(tmp_path: Path):
    config = file(tmp_path, "rows.csv", "# version 1\r\n# two\nprompt,n\n# three,4\n")
    assert list(read_source("mine", config)) == [
        (f"{tmp_path}/rows.csv:4", {"prompt": "# three", "n": "4"})
    ]


LATIN = b'{"prompt": "Hi"}\n{"prompt": "caf\xe9"}\n'

ODD_ROWS = {
    "half a line": ("rows.jsonl", '{"prompt": "Hi"}\n{"prompt"', "2: not JSON: Expecting"),
    "no object": ("rows.jsonl", '{"prompt": "Hi"}\n[1]', "2: a line must be an object"),
    "no object in a list": ("rows.json", '[{"prompt": "Hi"}, 2]', "item 2: not an object"),
    # too deep for json in Python 3.11 and 3.12, and for what reads the row in 3.13
    "nested": (
        "rows.jsonl",
        '{"prompt": "Hi"}\n{"a": ' + "[" * 1500 + "]" * 1500 + "}",
        "2: nested too deeply",
    ),
    "a number without end": (
        "rows.yaml",
        f"- prompt: Hi\n- {{prompt: Hi, id: 0x{'f' * 5000}}}",
        "item 2: a number of more than 4,000 digits",
    ),
    "a comma without quotes": ("rows.csv", "prompt\nHi\nHi, there\n", "3: more values than"),
    "latin-1 among others": ("rows.jsonl", LATIN, "2: not UTF-8 at byte 16 (0xE9, behind '"),
    "latin-1 in a CSV": ("rows.csv", b"prompt\nHi\ncaf\xe9\n", "3: not UTF-8 at byte 4 (0xE9,"),
    "cp1252 in a text": ("rows.txt", b"Hi\n\x93What?\x94", "2: not UTF-8 at byte 1 (0x93, beh"),
    "a value too few": ("rows.csv", "prompt,completion\nHi,Ho\nHi\n", "3: completion: expected"),
}


@pytest.mark.parametrize("case", ODD_ROWS)
def test_a_row_that_cannot_be_read_is_left_out_alone(case: str, tmp_path: Path):
    name, content, reason = ODD_ROWS[case]
    for more in ({}, {"where": {"prompt": "Hi"}}, {"fields": {"text": "prompt"}}):
        loaded = load_dialogues(["mine"], {"mine": file(tmp_path, name, content, **more)})
        (place,) = loaded.unfit.examples
        assert len(loaded.dialogues) == 1 and reason in place


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "yaml", "csv"])
def test_a_mark_says_how_a_text_is_encoded(kind: str, encoding: str, tmp_path: Path):
    plain = Path(MAKERS[kind](tmp_path).path)
    text = plain.read_bytes().decode("utf-8-sig").replace("Drei", "Ça 数")
    rows = [ROWS[0], ROWS[1] | {"prompt": "Ça 数"}]
    assert read(file(tmp_path, f"mine.{kind}", text.encode(encoding))) == rows
    packed = gzip.compress(text.encode(encoding))
    assert read(file(tmp_path, f"mine.{kind}.gz", packed)) == rows


def test_where_looks_into_nested_columns(tmp_path: Path):
    rows = [{"meta": {"lang": lang}, "tags": [n]} for n, lang in enumerate(["de", "en", "fr"])]
    lines = "\n".join(map(json.dumps, rows))
    for where, number in (({"meta.lang": "en"}, 1), ({"tags.0": "2", "meta.lang": "fr"}, 2)):
        assert read(file(tmp_path, "rows.jsonl", lines, where=where)) == [rows[number]]
    # a column of that very name comes first
    assert len(read(file(tmp_path, "rows.jsonl", '{"a.b": 1, "a": {"b": 2}}', where={"a.b": "1"})))


@pytest.mark.parametrize(
    ("column", "hint"),
    [
        ("langauge", "; did you mean 'language'?"),
        ("language.de", "; did you"),
        ("x", "; it has lang"),
    ],
)
def test_a_filter_by_a_column_that_is_not_there_is_named(column: str, hint: str, tmp_path: Path):
    config = file(tmp_path, "rows.jsonl", '{"language": "de"}', where={column: "de"})
    with pytest.raises(UsageError) as caught:
        read(config)
    assert f"data.mine.where: no row has a column '{column}'{hint}" in str(caught.value)
    assert read(file(tmp_path, "rows.jsonl", '{"language": "de"}', where={"x": "null"}))
    assert read(file(tmp_path, "rows.jsonl", '{"language": "de"}', where={"language": "fr"})) == []


def test_what_people_call_csv_json_and_packed_is_read(tmp_path: Path):
    rows = [{"a": "One, two", "b": "Drei"}]
    assert read(file(tmp_path, "rows.csv", "a;b\nOne, two;Drei\n")) == rows
    assert read(file(tmp_path, "rows.csv", 'a, b\n"One, two", "Drei"\n')) == [
        {"a": "One, two", "b": "Drei"}
    ]
    assert read(file(tmp_path, "rows.tsv", "a\tb\nOne, two\tDrei\n")) == rows
    line = json.dumps(rows[0])
    assert read(file(tmp_path, "rows.json", f"{line}\n{line}\n")) == rows * 2
    assert read(file(tmp_path, "rows.JSONL.gz", gzip.compress(line.encode()))) == rows
    assert read(file(tmp_path, "rows.yaml", "- {2: x, true: y}")) == [{"2": "x", "true": "y"}]


def test_a_folder_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"is a folder; name its files"):
        read(DataConfig(kind="file", path=str(tmp_path)))


def test_a_date_beyond_pythons_is_an_odd_row(tmp_path: Path):
    times = pyarrow.array([0, 2**52, 0], pyarrow.timestamp("ms"))
    table = pyarrow.table({"prompt": ["a", "b", "c"], "at": times})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    config = DataConfig("file", str(tmp_path / "rows.parquet"))
    loaded = load_dialogues(["mine"], {"mine": config})
    assert [dialogue[0].content for dialogue, _ in loaded.dialogues] == ["a", "c"]
    assert "rows.parquet row 2: a value that can't be read" in loaded.unfit.examples[0]


@pytest.mark.parametrize("path", ["**x", "n" * 300])
def test_a_path_that_can_be_no_path_is_named(path: str):
    with pytest.raises(UsageError, match=r"data\.mine\.path: no file"):
        read(DataConfig(kind="file", path=path))


def test_a_missing_file_is_named():
    with pytest.raises(UsageError, match=r"data\.mine\.path: no file nowhere/\*\.jsonl"):
        read(DataConfig(kind="file", path="nowhere/*.jsonl"))


def test_a_glob_reads_the_files_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in "cab":
        file(tmp_path, f"{name}.txt", name)
    assert read(DataConfig(kind="file", path="*.txt")) == [{"prompt": name} for name in "abc"]


def test_the_fingerprint_follows_the_files_bytes(tmp_path: Path):
    config = file(tmp_path, "rows.txt", "One")
    before = fingerprint("mine", config)
    assert fingerprint("mine", file(tmp_path, "rows.txt", "One")) == before
    assert fingerprint("mine", file(tmp_path, "rows.txt", "Two")) != before
    assert fingerprint("mine", file(tmp_path, "rows.txt", "One", where={"a": "b"})) != before


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A wheel that lies in the cache as if pip had brought it; pip itself finds nothing."""
    monkeypatch.setenv("CAI_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    made = tmp_path / "made.whl"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("pack/one.txt", "One\n")
        archive.writestr("pack/two.jsonl", '{"prompt": "Two"}\n')
    sha256 = hashlib.sha256(made.read_bytes()).hexdigest()
    (tmp_path / "wheels").mkdir()
    made.rename(tmp_path / "wheels" / f"{sha256[:16]}.whl")
    return DataConfig(kind="wheel", wheel="no-such-pack==1.0", sha256=sha256, path="pack/one.txt")


def changed(config: DataConfig, **values: Any) -> DataConfig:
    return DataConfig(**(vars(config) | values))


def test_members_of_a_wheel_are_read(wheel: DataConfig):
    found = list(read_source("mine", changed(wheel, more=["pack/two.jsonl"])))
    assert found == [
        ("no-such-pack==1.0:pack/one.txt:1", {"prompt": "One"}),
        ("no-such-pack==1.0:pack/two.jsonl:1", {"prompt": "Two"}),
    ]


def test_a_missing_member_is_named(wheel: DataConfig):
    with pytest.raises(
        UsageError, match=r"data\.mine: no-such-pack==1\.0 has no file pack/three\.txt"
    ):
        read(changed(wheel, path="pack/three.txt"))


@pytest.mark.parametrize("values", [{"wheel": None}, {"wheel": "pack"}, {"sha256": None}])
def test_a_wheel_without_version_or_digest_is_refused(wheel: DataConfig, values: dict[str, Any]):
    with pytest.raises(
        UsageError, match=r"data\.mine: a wheel needs 'wheel: name==version' and its 'sha256'"
    ):
        read(changed(wheel, **values))


def test_a_wheel_with_another_digest_is_not_used(wheel: DataConfig, tmp_path: Path):
    (cached,) = (tmp_path / "wheels").iterdir()
    with zipfile.ZipFile(cached, "a") as archive:
        archive.writestr("pack/planted.txt", "Planted\n")
    with pytest.raises(CaiError, match=r"pip can't download no-such-pack==1\.0"):
        read(wheel)
    assert not cached.exists()


def test_the_fingerprint_tells_files_of_one_name_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(
        tmp_path
    )  # {path.name: digest}: the last one wins, so an edit of the first is never seen
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.txt").write_text("one")
    config = DataConfig(kind="file", path="*/rows.txt")
    before = fingerprint("mine", config)
    (tmp_path / "a" / "rows.txt").write_text("two")
    assert fingerprint("mine", config) != before


def csv_rows(folder: Path, text: str):
    (folder / "a.csv").write_text(text)
    return list(read_source("d", DataConfig(kind="file", path=str(folder / "a.csv"))))


def test_a_large_csv_field_is_read_or_named(tmp_path: Path):
    assert len(csv_rows(tmp_path, "prompt\n" + "a" * 140_000 + "\n")) == 1


def test_a_csv_row_knows_its_line(tmp_path: Path):
    assert [where.split(":")[-1] for where, _ in csv_rows(tmp_path, 'p\n"two\nlines"\none\n')] == [
        "2",
        "4",
    ]


def test_a_line_separator_inside_a_csv_field_ends_no_row(tmp_path: Path):
    assert len(csv_rows(tmp_path, "p,q\nbefore\u2028after,1\n")) == 1


def test_where_knows_true(tmp_path: Path):  # str(True) == "True"
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "good": true}\n')
    config = DataConfig(kind="file", path=str(tmp_path / "a.jsonl"), where={"good": "true"})
    assert len(list(read_source("d", config))) == 1


BROKEN = {
    "jsonl": '{"prompt": "Hi \\ud83d", "input": NaN}\n',
    "json": '[{"prompt": "Hi \\ud83d", "input": NaN}]',
    "yaml": '- {prompt: "Hi \\ud83d", input: .nan}\n',
}


@pytest.mark.parametrize("suffix", BROKEN)
def test_half_a_surrogate_pair_and_nan_are_replaced_and_counted(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / f"rows.{suffix}").write_text(BROKEN[suffix])
    rows = read_source("mine", DataConfig("file", str(tmp_path / f"rows.{suffix}")))
    assert [row for _, row in rows] == [{"prompt": "Hi \ufffd", "input": None}]
    assert "data.mine: 1 rows hold NaN" in capsys.readouterr().err


def test_nan_of_a_table_is_a_missing_value(tmp_path: Path):
    columns = {"instruction": ["Hi"], "input": [float("nan")], "output": ["Hello"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    ((_, row),) = read_source("mine", DataConfig("file", str(tmp_path / "rows.parquet")))
    assert to_dialogue(row, DataConfig("file", "")) == (user("Hi"), assistant("Hello"))
