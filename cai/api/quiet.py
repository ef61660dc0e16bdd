"""Keeps libraries from talking while a model loads, and leaves the process as it was."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars, no warnings and no log lines below errors inside."""
    level, had_bars = logging.root.manager.disable, is_progress_bar_enabled()
    logging.disable(max(level, logging.WARNING))
    disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if had_bars:
            enable_progress_bar()
