"""Prints what pip would install for these words, as `name==version` lines; it installs nothing.

    python .ci/resolve.py -c constraints.txt '.[dev]'

Where the index can, pip reads a part of each wheel alone, so that CUDA costs seconds.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main(words: list[str]) -> int:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--use-feature=fast-deps", "--progress-bar=off", f"--report={report}"]
        process = subprocess.run([*command, *options, *words], stdout=sys.stderr, check=False)
        if process.returncode != 0:
            return process.returncode
        packages = json.loads(report.read_text(encoding="utf-8"))["install"]
    versions = {}
    for package in packages:
        # the checkout itself is asked for by its folder
        if "dir_info" not in package["download_info"]:
            metadata = package["metadata"]
            # without "+cpu" or "+cu130", which name a build of the same version
            versions[metadata["name"]] = metadata["version"].partition("+")[0]
    for name in sorted(versions, key=str.lower):
        print(f"{name}=={versions[name]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
