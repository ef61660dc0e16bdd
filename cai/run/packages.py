"""Libraries that the settings need and that are not installed here, and what installs them."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import NamedTuple

from cai.config.launcher import launch_of
from cai.config.libraries import library_sections
from cai.config.schema import Config
from cai.errors import UsageError, not_installed


class Package(NamedTuple):
    """A library by the names under which Python finds it, and what pip installs."""

    libraries: tuple[str, ...]  # one of them is enough
    install: str


BITSANDBYTES = Package(("bitsandbytes",), ".[qlora]")

# Of transformers' optimizers, by the whole name; the first pattern counts. Others need no more.
OPTIMIZERS = {
    r"adamw_torch_[48]bit": Package(("torchao",), "torchao"),
    r"galore_\w+": Package(("galore_torch",), "galore-torch"),
    r"apollo_\w+": Package(("apollo_torch",), "apollo-torch"),
    r"(ada)?lomo": Package(("lomo_optim",), "lomo-optim"),
    r"grokadamw": Package(("grokadamw",), "grokadamw"),
    r"schedule_free_\w+": Package(("schedulefree",), "schedulefree"),
    r"stable_adamw": Package(("optimi",), "torch-optimi"),
    r"adamw_anyprecision": Package(("torchdistx",), "git+https://github.com/pytorch/torchdistx"),
    r"adamw_torch_xla": Package(("torch_xla",), "torch_xla"),
    r"adamw_torch_npu_fused": Package(("torch_npu",), "torch_npu"),
    r"paged_\w+|\w*(bnb|8bit|ademamix|lion)\w*": BITSANDBYTES,
}

# of transformers' trackers, those whose library has another name, or another may stand in for it
TRACKERS = {
    "tensorboard": Package(("tensorboardX", "tensorboard"), "tensorboardX"),
    "azure_ml": Package(("azureml",), "azureml-sdk"),
    "comet_ml": Package(("comet_ml",), "comet-ml"),
    "kubeflow": Package(("transformers",), "transformers"),  # by an address in the environment
    "flyte": Package(("flytekit",), "flytekit"),
}


def missing_packages(config: Config) -> list[UsageError]:
    """An error for each setting that needs a library which is not installed here."""
    return [
        not_installed(setting, package.libraries[0], package.install)
        for setting, package in _needs(config)
        if not any(find_spec(name) for name in package.libraries)
    ]


def _needs(config: Config) -> Iterator[tuple[str, Package]]:
    """The settings that need more than cai does, each with what it needs."""
    if launch_of(config).deepspeed:
        yield "launcher=deepspeed", Package(("deepspeed",), ".[deepspeed]")
    for name in config.report_to:
        yield f"report_to: {name}", _tracker(name)
    for key, class_name, arguments in library_sections(config):
        if class_name == "transformers.BitsAndBytesConfig":
            yield key, BITSANDBYTES
        if arguments.get("use_liger_kernel"):
            yield f"{key}.use_liger_kernel", Package(("liger_kernel",), "liger-kernel")
        names = arguments.get("report_to") or ()
        for name in [names] if isinstance(names, str) else names:
            if name not in ("all", "none"):
                yield f"{key}.report_to: {name}", _tracker(name)
        if package := optimizer_package(str(arguments.get("optim", ""))):
            yield f"{key}.optim={arguments['optim']}", package


def optimizer_package(name: str) -> Package | None:
    """What an optimizer of transformers needs; None where that is nothing."""
    matches = (package for form, package in OPTIMIZERS.items() if re.fullmatch(form, name))
    return next(matches, None)


def _tracker(name: str) -> Package:
    return TRACKERS.get(name, Package((name,), name))
