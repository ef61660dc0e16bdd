"""The Dockerfile's steps, run without Docker: the lock installs, and what is installed is whole.

Each stage is an overlay over this machine, in memory and in a mount namespace of its own, so that
what a step writes is gone afterwards. This machine and its Python stand in for the base image.
"""

import os
import platform
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.smoke_runs import smoke_words

ROOT = Path(__file__).parents[2]
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order: their names, and what follows these."""
    text = re.sub("^ *#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(None, 1)[1]) for line in lines if line.strip()]


SYSTEM = {"bin", "boot", "dev", "etc", "home", "lib", "lib64", "media", "mnt", "opt", "proc"}
SYSTEM |= {"root", "run", "sbin", "srv", "sys", "tmp", "usr", "var"}


def odd(path: Path) -> bool:
    """Whether it is in no base image."""
    return path.is_dir() and path.name not in SYSTEM


class Image:
    """Writes a shell script that does what Docker would do with each instruction."""

    def __init__(self, top: Path):
        self.top = top
        self.stage, self.folder, self.user = "", "/", "root"
        self.lines = ["set -euo pipefail", f"mount -t tmpfs -o size=4g tmpfs {top}"]
        self.entry: list[str] = []
        for name, value in instructions():
            getattr(self, f"do_{name.lower()}")(value)

    @property
    def root(self) -> Path:
        return self.top / self.stage

    def do_from(self, value: str) -> None:
        self.stage = value.rpartition(" AS ")[2] if " AS " in value else "final"
        self.folder, self.user = "/", "root"
        upper, work = f"{self.root}.upper", f"{self.root}.work"
        layers = f"lowerdir=/,upperdir={upper},workdir={work}"
        self.lines += [
            f"mkdir {self.root} {upper} {work}",
            # a whiteout hides a folder of the lower layer: an image has none of this machine's
            *(f"mknod {upper}/{path.name} c 0 0" for path in Path("/").iterdir() if odd(path)),
            f"mount -t overlay overlay -o {layers} {self.root}",
            *(f"mount --rbind /{place} {self.root}/{place}" for place in ("proc", "dev", "sys")),
            # this machine's Python may lie in root's home, where the image's user has to reach it
            f"chmod a+x {self.root}/root",
            # the base image has no other people
            f"sed -i /:1000:/d {self.root}/etc/passwd {self.root}/etc/group",
            f"export PATH={sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        ]

    def do_arg(self, value: str) -> None:
        name, _, default = value.partition("=")
        self.lines.append(f'export {name}="${{{name}-{default}}}"')

    def do_env(self, value: str) -> None:
        pairs = (pair.partition("=") for pair in shlex.split(value))
        self.lines += [f'export {name}="{text}"' for name, _, text in pairs]

    def do_workdir(self, value: str) -> None:
        self.folder = value
        self.lines.append(f"mkdir -p {self.root}{value}")

    def do_copy(self, value: str) -> None:
        *sources, target = [word for word in value.split() if not word.startswith("--")]
        place = Path(self.folder) / target
        self.lines.append(f"mkdir -p {self.root}{place if len(sources) == 1 else self.folder}")
        for source in sources:
            if "--from=" in value:
                origin = f"{self.top}/{value.split('--from=')[1].split()[0]}{source}"
                # a copy would need as much memory again
                self.lines.append(f"mount --bind {origin} {self.root}{place}")
            elif (ROOT / source).is_dir():
                self.lines.append(f"cp -R {ROOT / source}/. {self.root}{place}")
            else:
                self.lines.append(f"cp {ROOT / source} {self.root}{self.folder}")

    def do_run(self, value: str) -> None:
        command = shlex.quote(f"cd {self.folder} && {value}")
        home = "/root" if self.user == "root" else "/home/cai"
        words = f"env HOME={home} chroot --userspec={self.user}:{self.user}"
        self.lines.append(f"{words} {self.root} /bin/sh -c {command}")

    def do_user(self, value: str) -> None:
        self.user = value

    def do_entrypoint(self, value: str) -> None:
        self.entry = re.findall('"([^"]*)"', value)

    def do_volume(self, value: str) -> None: ...

    def do_cmd(self, value: str) -> None: ...


def run_apart(script: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script in a mount namespace of its own; what it mounts ends with it."""
    # PYTHONPATH would show the checkout, and the caches this machine's
    hidden = ("PYTHONPATH", "CAI_CACHE", "HF_HOME", "XDG_CACHE_HOME", "VIRTUAL_ENV")
    kept = {name: text for name, text in os.environ.items() if name not in hidden}
    return subprocess.run(
        ["unshare", "--mount", "bash", "-c", "\n".join(script)],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def reason_to_skip(top: Path) -> str | None:
    if sys.version_info[:2] != (3, 11) or platform.machine() != "x86_64":
        return "the steps are tried with Python 3.11 on x86-64"
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root on Linux can mount"
    trial = [f"mount -t tmpfs tmpfs {top}", f"mkdir {top}/u {top}/w {top}/m"]
    trial += [f"mount -t overlay o -o lowerdir=/,upperdir={top}/u,workdir={top}/w {top}/m"]
    if (process := run_apart(["set -e", *trial])).returncode != 0:
        return f"no overlay can be mounted here: {process.stderr.strip()}"
    return None


def reached(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=10).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.network
def test_the_steps_of_the_dockerfile_make_what_runs_the_pipeline(tmp_path: Path, tiny_model: Path):
    if reason := reason_to_skip(tmp_path):
        pytest.skip(reason)
    image = Image(tmp_path)
    assert image.user != "root"
    image.do_run("/opt/cai/bin/python -m pip check")
    for path in ("/src", "/dist", "/opt/build"):
        image.lines.append(f"test ! -e {image.root}{path}")
    image.lines += [
        f"cp -R {tiny_model} {image.root}{image.folder}/tiny",
        f"chmod -R a+rX {image.root}{image.folder}/tiny",
    ]
    words = [*image.entry, *smoke_words(Path(image.folder) / "tiny")]
    image.do_run(f"{shlex.join(words)} && ls -ld outputs/smoke && id -un")
    # where torch's own index is out of reach, the digests say which file of another one it is
    index = TORCH_INDEX if reached(TORCH_INDEX) else "file:///nowhere"
    process = run_apart(image.lines, TORCH_INDEX=index, OMP_NUM_THREADS="1")
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-5000:]
    assert "No broken requirements found" in process.stdout
    assert process.stdout.splitlines()[-1] == "cai"


def test_what_docker_copies_is_what_the_context_holds():
    """.dockerignore leaves out all but that."""
    copied = {
        word
        for name, value in instructions()
        if name == "COPY" and "--from=" not in value
        for word in value.split()[:-1]
    }
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)
