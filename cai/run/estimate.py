"""What a run will take, before it has run: minutes, tokens, disk, memory, and the price.

Arithmetic: floating-point operations for each weight, 2 for a token that is read or written, 6 for
one that is trained on, 8 in DPO (docs/scale.md), at this machine's speed. What earlier stages took
here corrects it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cai.config.launcher import launch_of
from cai.config.names import MODEL_SECTIONS
from cai.config.schema import Config, DpoConfig, SftConfig
from cai.config.types import Arguments, lookup
from cai.models.source import read_config
from cai.run.machine import PEAK, Machine, pace, this_machine
from cai.run.work import Work, work_of
from cai.stages.base import Stage
from cai.training.forecast import dpo_tuning, sft_tuning
from cai.training.memory import GIB, Shape, Tuning, forecast, read_shape, trained_weights


@dataclass(frozen=True)
class Shares:
    """Of the peak, as the operations below are counted."""

    training: float
    reading: float
    writing: float


GPU = Shares(0.4, 0.5, 0.2)
# docs/performance.md: training spends nothing on the weights' gradients, nor on scores of prompts
CPU = Shares(0.55, 0.5, 0.45)
START = 4.0  # seconds until a stage with a model works
LONG = 48 * 3600.0  # seconds on a CPU after which the recipe must be meant for a GPU
ROW_BYTES = 12  # of ledger and tables, for each token that was written
MILLION = 1e6


@dataclass(frozen=True)
class Expected:
    """Of one stage. None: unknown."""

    stage: str
    work: Work | None
    seconds: float | None = None
    disk: float = 0.0  # bytes that stay
    price: float | None = None  # in the currency of report.price
    kind: str = ""
    arithmetic: float = 0.0  # seconds at the machine's peak, whatever earlier stages took


@dataclass(frozen=True)
class Estimate:
    """Of the stages that have to run, on a machine."""

    machine: Machine
    stages: Sequence[Expected]

    @property
    def seconds(self) -> float:
        """Of those stages whose time is known."""
        return sum(stage.seconds or 0 for stage in self.stages)

    def whole(self) -> Expected:
        """The sums of what is known."""
        work = sum((stage.work for stage in self.stages if stage.work), Work())
        prices = [stage.price for stage in self.stages if stage.price is not None]
        name = f"all but {', '.join(self.unknown)}" if self.unknown else "all"
        disk = sum(stage.disk for stage in self.stages)
        return Expected(name, work, self.seconds, disk, sum(prices) if prices else None)

    @property
    def unknown(self) -> list[str]:
        return [stage.stage for stage in self.stages if stage.seconds is None]


def tuning_of(stage: Stage, config: Config) -> Tuning:
    """How a training stage trains, on a GPU: what is trained has float32 weights."""
    section: SftConfig | DpoConfig = stage.section(config)
    lora = _lora(section, config)
    launched = launch_of(config)
    loaded = Tuning(
        weight_bytes=4.0 if lora is None or section.frozen_dtype == "float32" else 2.0,
        attention=config.engine.attention,
        processes=launched.processes,
        sharded=launched.sharded,
    )
    if isinstance(section, SftConfig):
        return sft_tuning(section, loaded)
    separate = section.reference == "first" and stage.round > 1
    return dpo_tuning(section, lora, separate, loaded)


def _lora(section: SftConfig | DpoConfig, config: Config) -> Arguments | None:
    if isinstance(section, DpoConfig) and section.adapter == "continued":
        return config.sl_cai.peft
    return section.peft


def shape_of(config: Config) -> Shape | None:
    """The model's sizes; None where it is not here, or is of another kind."""
    values = read_config(config.model)
    return read_shape(values) if values is not None else None


def estimate_run(
    config: Config, stages: Mapping[str, Stage], tflops: float | None = None
) -> Estimate | None:
    """What the named stages will take; None where the model's sizes are unknown.

    On GPUs of `tflops`, or on this machine. A recipe that would take days on a CPU, or that asks
    for a GPU's programs, is counted on GPUs of PEAK.
    """
    shape = shape_of(config)
    if shape is None:
        return None
    devices = launch_of(config).processes
    gpus = Machine("cuda", tflops or PEAK, devices)
    means_gpus = config.engine.kind == "vllm" or config.launcher.kind == "accelerate"
    if tflops is not None or means_gpus:
        return _expect(config, stages, shape, gpus)
    here = _expect(config, stages, shape, this_machine(config, devices))
    if here.machine.device == "cpu" and here.seconds > LONG:
        return _expect(config, stages, shape, gpus)
    return here


def _expect(
    config: Config, stages: Mapping[str, Stage], shape: Shape, machine: Machine
) -> Estimate:
    expected = []
    for name, stage in stages.items():
        work = work_of(stage, config)
        arithmetic = _arithmetic(stage, work or Work(), shape, machine)
        seconds = None
        # nobody can say it of a server of unknown speed
        if work is not None and not (work.total and _is_served(stage, config)):
            seconds = arithmetic * (pace(stage.kind, machine.device) or 1.0)
            seconds += START if work.total else 0.0
        disk = _disk(stage, work, config, shape)
        price = _price(stage, work, seconds, config, machine)
        expected.append(Expected(name, work, seconds, disk, price, stage.kind, arithmetic))
    return Estimate(machine, expected)


def _arithmetic(stage: Stage, work: Work, shape: Shape, machine: Machine) -> float:
    """Seconds, without the start and without what earlier stages took."""
    shares = CPU if machine.device == "cpu" else GPU
    passes = 2 * ((work.read - work.repeated) / shares.reading + work.written / shares.writing)
    # a reference reads what DPO is trained on
    passes += (8 if stage.kind == "dpo" else 6) * work.trained / shares.training
    return shape.weights * passes / (machine.tflops * 1e12 * machine.devices)


def _is_served(stage: Stage, config: Config) -> bool:
    """Whether a server that cai has not started answers a stage's requests, or some of them."""
    if stage.trains:
        return False
    sections = [name for name in MODEL_SECTIONS if name.partition(".")[0] == stage.kind]
    engines = [config.engine, *(lookup(config, name).engine for name in sections)]
    return any(engine is not None and engine.kind == "openai" for engine in engines)


def _disk(stage: Stage, work: Work | None, config: Config, shape: Shape) -> float:
    """Bytes that a stage leaves."""
    if not stage.trains:
        return ROW_BYTES * work.written if work else 0.0
    section: SftConfig | DpoConfig = stage.section(config)
    weight_bytes = 4 if section.publish_dtype == "float32" else 2
    lora = _lora(section, config)
    adapter = 0 if lora is None else 4 * trained_weights(shape, Tuning(1, 1, lora=lora))
    alone = isinstance(section, SftConfig) and section.publish == "adapter"
    return adapter + (0 if alone else weight_bytes * shape.weights)


def _price(
    stage: Stage, work: Work | None, seconds: float | None, config: Config, machine: Machine
) -> float | None:
    """By report.price: of a server's tokens, or of the hours of this machine or these GPUs."""
    price = config.report.price
    if price is None or work is None:
        return None
    cost = 0.0
    if _is_served(stage, config):
        cost += (work.read * price.prompt + work.written * price.new) / MILLION
    return cost + (seconds or 0.0) / 3600 * price.hour * machine.devices


def describe_memory(stage: Stage, config: Config, shape: Shape) -> str:
    """About how much a GPU must hold: with gradient checkpointing, and without it."""
    tuning = tuning_of(stage, config)
    setting = stage.section(config).args.get("gradient_checkpointing")
    sizes = {
        checkpointing: forecast(shape, replace(tuning, checkpointing=checkpointing)).total / GIB
        for checkpointing in ([True, False] if setting is None else [setting])
    }
    texts = [
        f"{size:.0f} GiB{' with gradient checkpointing' if checkpointing else ''}"
        for checkpointing, size in sizes.items()
    ]
    return f"about {' or '.join(texts)} on each GPU"


def memory_lines(config: Config, stages: Mapping[str, Stage]) -> list[str]:
    """What a GPU must hold in each of these stages that trains."""
    shape = shape_of(config)
    training = [stage for stage in stages.values() if stage.trains]
    return [
        f"{stage.name:<9}{describe_memory(stage, config, shape)}" for stage in training if shape
    ]
