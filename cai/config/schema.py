"""What can be set. What a setting means stands in conf/*.yaml, what it may be in types.py."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from cai.config.types import (
    VLLM_RUNTIME,
    Arguments,
    Attack,
    Certainty,
    Condition,
    Count,
    CountOrZero,
    Dedupe,
    Dtype,
    EngineKind,
    Few,
    FewOrZero,
    Format,
    Gate,
    HeldOut,
    KeyName,
    Length,
    Located,
    Money,
    OfLibrary,
    PartName,
    RunName,
    Runtime,
    RuntimeEntries,
    Seed,
    ServerUrl,
    Share,
    TemplateArgument,
    Tracker,
)
from cai.digest import JsonObject

LoraArguments = Annotated[Arguments | None, OfLibrary("peft.LoraConfig")]

STRICT = ConfigDict(extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)


@dataclass(frozen=True, config=STRICT)
class WheelFile:
    path: str
    wheel: str
    sha256: str


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    name: str
    kind: Literal["hub", "path", "wheel"]
    path: Located
    revision: str | None = None
    wheel: str | None = None
    sha256: str | None = None
    more: list[WheelFile] = field(default_factory=list)
    license: str | None = None
    terms: str | None = None
    accept_license: Runtime[bool] = False
    template: Located | None = None
    shape: Runtime[JsonObject | None] = None
    template_args: dict[TemplateArgument, bool | int | float | str | None] = field(
        default_factory=dict
    )


@dataclass(frozen=True, config=STRICT)
class ServerConfig:
    urls: list[ServerUrl] = field(default_factory=list)
    key: KeyName | None = None
    concurrency: Annotated[int, Field(ge=1, le=1 << 16)] = 64
    timeout: Annotated[float, Field(ge=0.001, le=1 << 20)] = 600
    retries: Annotated[int, Field(ge=0, le=100)] = 6
    backoff: Annotated[float, Field(ge=0.001, le=60)] = 0.5
    patience: Annotated[float, Field(ge=0, le=1 << 20)] = 900


@dataclass(frozen=True, config=STRICT)
class EngineConfig:
    kind: EngineKind = "transformers"
    model: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Runtime[Literal["auto", "cpu", "cuda", "mps"]] = "auto"
    attention: Runtime[str | None] = None
    batch_rows: Runtime[Annotated[int, Field(ge=1, le=1 << 16)]] = 64
    batch_tokens: Runtime[Annotated[int, Field(ge=1, le=1 << 30)]] = 16384
    python: Runtime[Located | None] = None
    options: Annotated[Arguments, RuntimeEntries(VLLM_RUNTIME)] = field(default_factory=dict)
    # in the key of a run where it is set
    extra_body: Annotated[Arguments, RuntimeEntries(frozenset())] = field(default_factory=dict)
    server: Runtime[ServerConfig] = field(default_factory=ServerConfig)
    max_failures: Runtime[Annotated[float, Field(ge=0, le=0.5)]] = 0.01


@dataclass(frozen=True, config=STRICT)
class MachinesConfig:
    count: Annotated[int, Field(ge=1, le=1 << 16)] = 1
    rank: Annotated[int, Field(ge=0, le=1 << 16)] = 0
    address: str | None = None
    port: Annotated[int, Field(ge=1, le=65535)] = 29500


@dataclass(frozen=True, config=STRICT)
class LauncherConfig:
    kind: Literal["inline", "process", "accelerate"] = "inline"
    args: list[str] = field(default_factory=list)
    machines: MachinesConfig = field(default_factory=MachinesConfig)


@dataclass(frozen=True, config=STRICT)
class TaskTemplate:
    prompt: str
    completion: str


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    kind: Literal["hub", "file", "wheel", "package"]
    path: Located
    more: list[Located] = field(default_factory=list)
    wheel: str | None = None
    sha256: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    format: Format = "auto"
    fields: dict[str, str] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    values: dict[str, dict[str, str]] = field(default_factory=dict)
    templates: list[TaskTemplate] = field(default_factory=list)
    system: str | None = None
    strict: Runtime[bool] = False
    where: dict[str, Condition] = field(default_factory=dict)
    license: str | None = None


@dataclass(frozen=True, config=STRICT)
class Sampling:
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: CountOrZero = 0
    max_new_tokens: Count = 256


@dataclass(frozen=True, config=STRICT)
class Prompts:
    data: list[str]
    limit: Count | None = None
    offset: CountOrZero = 0


@dataclass(frozen=True, config=STRICT)
class BuildSampling:
    instructions: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=512))
    answer: Sampling = field(default_factory=lambda: Sampling(temperature=0.7))


@dataclass(frozen=True, config=STRICT)
class BuildConfig:
    data: list[str] = field(default_factory=lambda: ["seed"])
    target: CountOrZero = 200
    rounds: Count = 10
    requests: Count = 16
    shown: Few = 6
    shown_built: FewOrZero = 2
    max_similarity: Annotated[float, Field(ge=0.01, le=1)] = 0.7
    prompts: Prompts | None = None
    sampling: BuildSampling = field(default_factory=BuildSampling)
    model: ModelConfig | None = None
    engine: EngineConfig | None = None


@dataclass(frozen=True, config=STRICT)
class ProbeConfig:
    target: Count = 20
    rounds: Few = 4
    requests: Few = 4
    shown: FewOrZero = 3
    max_similarity: Annotated[float, Field(ge=0.01, le=1)] = 0.7
    on_topic: bool = True
    test: HeldOut = 0.3
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=384))
    model: ModelConfig | None = None
    engine: EngineConfig | None = None


@dataclass(frozen=True, config=STRICT)
class Human(Prompts):
    probability: Certainty = 1.0


@dataclass(frozen=True, config=STRICT)
class SftConfig:
    """Supervised fine-tuning. The stages sft and sl_cai allow different choices: see checks.py."""

    start: Literal["base", "sft"]
    data: list[str]
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    mixing_temperature: Annotated[float, Field(ge=1, le=1000)] = 1.0
    mixing_cap: Count | None = None
    limit: Count | None = None
    helpful: Literal["data", "sampled"] = "data"
    helpful_ratio: Annotated[float, Field(ge=0, le=1000)] | None = None
    revisions: Literal["none", "last", "all"] = "none"
    dedupe: Dedupe = "none"
    validation: HeldOut = 0.1
    patience: int | None = 3
    max_length: Length = 1024
    max_lost: Runtime[Share] = 0.5
    peft: LoraArguments = None
    quantization: Annotated[Arguments | None, OfLibrary("transformers.BitsAndBytesConfig")] = None
    frozen_dtype: Dtype = "float32"
    publish: Literal["model", "adapter"] = "model"
    publish_dtype: Dtype = "float32"
    args: Annotated[Arguments, OfLibrary("trl.SFTConfig")] = field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class ReviseSampling:
    answer: Sampling
    critique: Sampling
    revision: Sampling


@dataclass(frozen=True, config=STRICT)
class Helpful:
    prompts: Prompts
    samples: Few = 1
    model: Literal["base", "sft"] = "sft"


@dataclass(frozen=True, config=STRICT)
class ReviseConfig:
    prompts: Prompts
    sampling: ReviseSampling
    rounds: Few = 2
    draw: Literal["random", "cycle", "all", "relevant"] = "random"
    exemplars: Annotated[int, Field(ge=0, le=16)] = 2
    exemplar_choice: Literal["sampled", "fixed"] = "sampled"
    form: Literal["chat", "text"] = "chat"
    critique: bool = True
    stop_when_unchanged: bool = False
    gates: list[Gate] = field(default_factory=list)
    when_gated: Literal["previous", "drop"] = "previous"
    benign: list[str] = field(default_factory=list)
    helpful: Helpful | None = None
    model: ModelConfig | None = None
    engine: EngineConfig | None = None


@dataclass(frozen=True, config=STRICT)
class Harmless(Prompts):
    constitution: Located = "helpfulness"


@dataclass(frozen=True, config=STRICT)
class LabelConfig:
    prompts: Prompts
    sampling: Sampling
    thought: Sampling
    kind: Literal["feedback", "contrast", "revision", "mixed", "rule"] = "feedback"
    benign: Harmless | None = None
    harmless_share: Annotated[float, Field(ge=0.01, le=0.99)] | None = None
    ratio: Annotated[float, Field(ge=0.01, le=0.99)] = 0.5
    limit: Count | None = None
    answers: Annotated[int, Field(ge=2, le=16)] = 2
    max_similarity: Share = 0.95
    principles: Few = 1
    judge: Literal["base", "sft", "sl_cai"] = "sft"
    model: ModelConfig | None = None
    engine: EngineConfig | None = None
    thoughts: FewOrZero = 0
    thought_clamp: Certainty = 0.6
    tau: Annotated[float, Field(gt=0, le=1e4)] | None = None
    surest: Annotated[float, Field(ge=0.01, le=1)] = 0.5
    min_margin: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    min_letters: Share = 0.0
    calibrate: Prompts | None = None
    human: Human | None = None
    demonstrations: Prompts | None = None
    require_judge: Runtime[bool] = False


@dataclass(frozen=True, config=STRICT)
class Guards:
    chosen_floor: float | None = -5.0
    falling: Count | None = 2
    prompts: Annotated[int, Field(ge=0, le=1024)] = 4
    new_tokens: Annotated[int, Field(ge=1, le=1 << 16)] = 128
    longer: Annotated[float, Field(ge=1, le=1000)] | None = 2.0
    shorter: Share | None = 0.5
    repetitive: Share | None = 0.5
    stop: bool = False


@dataclass(frozen=True, config=STRICT)
class DpoConfig:
    loss: Literal["soft", "trl"] = "soft"
    max_probability: Certainty = 1.0
    validation: HeldOut = 0.1
    patience: int | None = None
    guards: Guards = field(default_factory=Guards)
    reference: Literal["policy", "first"] = "policy"
    adapter: Literal["fresh", "continued"] = "fresh"
    peft: LoraArguments = None
    frozen_dtype: Dtype = "float32"
    publish_dtype: Dtype = "float32"
    args: Annotated[Arguments, OfLibrary("trl.DPOConfig")] = field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class Suite:
    kind: Literal["red_team", "benign", "instructions"]
    prompts: Prompts
    shots: list[int] = field(default_factory=lambda: [0])
    examples: list[str] = field(default_factory=list)
    attacks: list[Attack] = field(default_factory=list)


@dataclass(frozen=True, config=STRICT)
class JudgeConfig:
    name: str = "base"
    model: ModelConfig | None = None
    engine: EngineConfig | None = None
    principles: Few = 1
    limit: Count | None = None


@dataclass(frozen=True, config=STRICT)
class EvaluateConfig:
    sampling: Sampling
    suites: dict[PartName, Suite]
    models: list[Located] = field(default_factory=lambda: ["base", "sft", "sl_cai", "dpo"])
    seeds: Few = 1
    wins: list[list[str]] = field(default_factory=list)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    harm: bool = False
    adherence: Prompts | None = None
    lm_eval: list[Located] = field(default_factory=list)
    lm_eval_limit: Count | None = None
    refusal: Literal["rules", "classifier"] = "rules"
    in_context: bool = False


@dataclass(frozen=True, config=STRICT)
class Price:
    prompt: Money = 0.0
    new: Money = 0.0
    hour: Money = 0.0


@dataclass(frozen=True, config=STRICT)
class ReportConfig:
    records: Annotated[int, Field(ge=0, le=1_000_000)] = 200
    price: Price | None = None


@dataclass(frozen=True, config=STRICT)
class Config:
    name: RunName
    model: ModelConfig
    data: dict[PartName, DataConfig]
    sft: SftConfig
    revise: ReviseConfig
    sl_cai: SftConfig
    label: LabelConfig
    dpo: DpoConfig
    evaluate: EvaluateConfig
    seed: Seed = 0
    rounds: Annotated[int, Field(ge=1, le=99)] = 1
    constitution: Located = "harmlessness"
    objective: str | None = None
    system_prompt: str | None = None
    verdicts: list[str] = field(default_factory=list)
    build: BuildConfig = field(default_factory=BuildConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    stages: list[str] | None = None
    outputs: Located = "outputs"
    report_to: list[Tracker] = field(default_factory=lambda: ["tensorboard"])
    engine: EngineConfig = field(default_factory=EngineConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
