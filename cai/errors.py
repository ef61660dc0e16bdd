"""Errors that a person caused or can mend: one clear message, no traceback (unless `--debug`)."""


class CaiError(Exception):
    """Something went wrong while running. The message says what, where, and what to do. Exit code 1."""

    exit_code = 1


class UsageError(CaiError):
    """The request itself is wrong: an override, a config, a principle file, a missing input. Exit code 2."""

    exit_code = 2


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived. Raised by the signal handler wherever the process stands; asyncio lets it through."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.exit_code = 128 + signum


def nearest(name: str, known: list[str]) -> str:
    """`; did you mean 'x'?` where a known name is near, else an empty string."""
    import difflib

    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""
