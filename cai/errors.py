"""Errors that a person caused or can mend: one clear message, no traceback (unless `--debug`)."""

import difflib
from collections.abc import Sequence


class CaiError(Exception):
    """Something went wrong while running. The message says what, where, and what to do."""

    exit_code = 1


class UsageError(CaiError):
    """The request is wrong: an override, a config, a principle file, a missing input."""

    exit_code = 2


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived. The signal handler raises it; asyncio lets it through."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.exit_code = 128 + signum


def not_installed(setting: str, library: str, package: str) -> UsageError:
    """The error where a setting needs a library that is missing.

    `package` is what pip installs: a name, or `.[extra]`, which it reads in cai's checkout. No text
    installs cai by its name: the name isn't registered, so anybody could take it.
    """
    command = f"pip install {package}"
    if package.startswith("."):
        command = f"pip install -e '{package}' in the folder that holds cai's pyproject.toml"
    return UsageError(f"{setting}: {library} is not installed; {command}")


def nearest(name: str, names: Sequence[str]) -> str:
    """`; did you mean 'x'?` where one of `names` is near to `name`, else an empty string."""
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else ""
