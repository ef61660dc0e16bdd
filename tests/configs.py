"""Configurations that many tests start from."""

import copy
import functools

from cai.config.compose import compose
from cai.config.schema import Config


def smoke(*overrides: str) -> Config:
    """The smoke experiment's. Hydra takes 0.3 s for it, so the same words are composed once.

    For tests of what is done with a configuration: tests of composing call `compose`."""
    return copy.deepcopy(_smoke(overrides))


@functools.cache
def _smoke(overrides: tuple[str, ...]) -> Config:
    return compose(["experiment=smoke", *overrides])
