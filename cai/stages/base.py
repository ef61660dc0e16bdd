"""What every stage has: a place in the pipeline (Stage), and what it may see (Context)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cai.config.names import in_round, policy_of
from cai.config.schema import Config, DataConfig, EngineConfig, ModelConfig
from cai.config.types import lookup, without_runtime
from cai.data.decontaminate import HeldOut
from cai.data.parquet import Row, write_rows
from cai.data.prompts import SPLIT_SEED, load_dialogues
from cai.digest import JsonObject, digest
from cai.engines.base import Completion, Engine, RequestFailed, open_engine
from cai.engines.ledger import Ledger, Recorded
from cai.errors import CaiError
from cai.messages import Prompt, as_dicts
from cai.method.constitution import Constitution
from cai.models.numerics import numerics
from cai.models.source import ADAPTER_BASE, AdapterBase, fingerprint
from cai.observe.progress import Progress
from cai.stages.summary import Summary
from cai.store import run_folder

T = TypeVar("T")


class Reads(Protocol):
    """Names of stages, or of data sets, that a stage reads in a round."""

    def __call__(self, config: Config, round: int) -> Sequence[str]: ...


Warn = Callable[[str], None]


class Run(Protocol):
    """Does the stage's work: writes files below `work` and returns the summary. Raises CaiError."""

    def __call__(self, config: Any, work: Path, context: "Context") -> Summary: ...


@dataclass(frozen=True)
class Stage:
    """A stage's place in the pipeline. What decides its output is in its key (cai/run/plan.py)."""

    kind: str  # also the name of its section of the config
    version: int  # raise it when the code would write other bytes for the same inputs
    run: Run
    summary: type[Summary]
    inputs: Reads  # the stages that it reads
    data: Reads = lambda config, round: ()  # the data sets that it reads
    # what else it reads, as parts of its key
    key_parts: Callable[[Config, Constitution], JsonObject] = lambda config, law: {}
    # its section of the config as it is in a round
    settings: Callable[[Any, Config, int], Any] = lambda section, config, round: section
    included: Callable[[Config], bool] = lambda config: True  # whether it is part of a run
    # raises UsageError where its settings can't work; it may open libraries, no model and no data
    check: Callable[[Config], None] = lambda config: None
    # says what its inputs' summaries warn of; raises CaiError where it must not start on them
    before: Callable[[Config, Mapping[str, Summary], Warn], None] = lambda config, inputs, warn: (
        None
    )
    decontaminates: bool = False  # whether it leaves out what the evaluation suites hold
    trains: bool = False
    asks_models: bool = True  # whether the starting model and the engine are in its key
    repeats: bool = False  # whether each round has one
    round: int = 1

    @property
    def name(self) -> str:
        return in_round(self.kind, self.round)

    def section(self, config: Config) -> Any:
        """The stage's section of the config, as it is in its round."""
        return self.settings(lookup(config, self.kind), config, self.round)


def own_model_part(role: str, section: str, config: Config) -> JsonObject:
    """A key part for a stage's own model (a teacher, a critic or a judge), where it has one."""
    model: ModelConfig | None = lookup(config, section).model
    return {role: fingerprint(model)} if model else {}


@dataclass(frozen=True)
class Input:
    """A finished stage that this one reads."""

    path: str  # its out/ folder
    digest: str  # of its output


@dataclass(frozen=True)
class Context:
    """What a stage may see beside its section of the config: nothing else decides its output."""

    stage: str
    seed: int
    root: Path  # the run's folder
    scratch: Path  # checkpoints: kept until the stage is done
    model: ModelConfig
    engine: EngineConfig
    data: Mapping[str, DataConfig]
    held_out: Mapping[str, DataConfig]  # the evaluation suites' sets, which nothing is trained on
    constitution: str
    inputs: Mapping[str, Input]
    progress: Progress
    report_to: Sequence[str] = ()  # what shows training's curves while it runs
    round: int = 1  # of label and dpo
    verdicts: Sequence[str] = ()  # the data sets with people's verdicts on revisions
    summaries: Mapping[str, Summary] = field(default_factory=dict)  # of the inputs
    engine_opener: Callable[[EngineConfig, str], Engine] = open_engine  # tests put their own here

    @property
    def policy(self) -> str:
        """The stage whose model answers in `label`, and is trained further in `dpo`."""
        return policy_of(self.round)

    def load_constitution(self) -> Constitution:
        return Constitution.load(self.constitution)

    def output(self, stage: str) -> Path:
        """The out/ folder of an input."""
        return Path(self.inputs[stage].path)

    def owns(self, name: str) -> bool:
        """Whether the named model is the run's: `base`, or what a stage has trained."""
        return name == "base" or name in self.inputs

    def model_path(self, name: str) -> str:
        """A folder or hub id: `base`, or the model that a stage has trained."""
        from cai.models.convert import locate  # heavy: it may convert a model

        return locate(self.model) if name == "base" else self.whole_model(self.output(name))

    def whole_model(self, out: Path) -> str:
        """The folder of the model that a stage has published in `out`.

        Of an adapter it is made now: of the run's models below it. Raises CaiError where one of
        those is gone.
        """
        if not (out / "adapter" / ADAPTER_BASE).is_file():
            return str(out / "model")
        from cai.models.merged import merge, read_base  # heavy, too

        base = read_base(out / "adapter")
        if base["stage"] == "base":
            below = self.model_path("base") if base["output"] == self._content("base") else None
        else:
            folder = run_folder.Run(self.root).with_output(base["stage"], base["output"])
            below = self.whole_model(folder) if folder else None
        if below is None:
            raise CaiError(
                f"{out / 'adapter'} belongs to a model '{base['stage']}' that is not there any "
                "more; the run that made it makes it again"
            )
        return merge(below, out / "adapter", self.root / run_folder.MERGED)

    def model_digest(self, name: str) -> str:
        """What the ledger knows a model by: its content, and the engine's settings that matter."""
        if self.engine.model is not None:  # a server's: its name is all that is known
            return digest(["served", without_runtime(self.engine)])
        settings = [without_runtime(self.engine), numerics(self.engine)]
        return digest([self._content(name), *settings])

    def _content(self, name: str) -> str:
        return digest(fingerprint(self.model)) if name == "base" else self.inputs[name].digest

    def adapter_base(self, name: str) -> AdapterBase:
        """The named model as what an adapter belongs to."""
        return {"stage": name, "output": self._content(name)}

    def open_model(self, name: str) -> Engine:
        """An engine on the named model; a server serves it under that name."""
        served = self.engine.kind == "openai"
        return self.engine_opener(self.engine, name if served else self.model_path(name))

    def ledger(self) -> Ledger:
        return Ledger(self.root / "ledger.sqlite")

    @contextmanager
    def models(self) -> Iterator["OpenModel"]:
        """Gives a function that opens models behind the ledger, and closes all at the end."""
        with ExitStack() as stack:
            ledger = stack.enter_context(closing(self.ledger()))

            def open_model(
                name: str, engine: EngineConfig | None = None, model: ModelConfig | None = None
            ) -> Recorded:
                context = replace(self, engine=engine or self.engine, model=model or self.model)
                recorded = context._recorded(ledger, "base" if model else name)
                stack.callback(recorded.close)
                return recorded

            yield open_model

    def _recorded(self, ledger: Ledger, name: str) -> Recorded:
        title = self.engine.model or (self.model.name if name == "base" else name)
        return Recorded(
            lambda: self.open_model(name),
            ledger,
            self.stage,
            self.model_digest(name),
            self._count,
            title,
        )

    def _count(self, completions: Sequence[Completion], from_ledger: bool) -> None:
        new_tokens = sum(completion.new_tokens for completion in completions)
        self.progress.advance(len(completions), new_tokens, from_ledger)

    @cached_property
    def overlaps(self) -> dict[str, HeldOut]:
        """For each of the suites' sets, what tells that a text repeats one of its human turns."""
        return {
            name: HeldOut.of_dialogues(
                row for row, _ in load_dialogues([name], self.held_out, SPLIT_SEED).dialogues
            )
            for name in self.held_out
        }

    def is_held_out(self, text: str) -> bool:
        """Whether a text repeats a human turn of an evaluation suite, so it is not trained on."""
        return any(text in overlap for overlap in self.overlaps.values())

    def decontaminate(self, prompts: Sequence[Prompt]) -> tuple[list[Prompt], int]:
        """The prompts that no evaluation suite holds, and the number of those that one does."""
        clean = [prompt for prompt in prompts if not self.is_held_out(prompt.text)]
        return clean, len(prompts) - len(clean)


class OpenModel(Protocol):
    """Opens the run's model `name`; an `engine` or a `model` replaces the run's own."""

    def __call__(
        self, name: str, engine: EngineConfig | None = None, model: ModelConfig | None = None
    ) -> Recorded: ...


def verb_context(
    verb: str, config: Config, root: Path, constitution: str, inputs: Mapping[str, Input]
) -> Context:
    """What opens models for a verb that is no stage."""
    return Context(
        stage=verb,
        seed=config.seed,
        root=root,
        scratch=root,
        model=config.model,
        engine=config.engine,
        data=config.data,
        held_out={},
        constitution=constitution,
        inputs=inputs,
        progress=Progress(verb, quiet=True),
    )


def split_failed(
    prompts: Sequence[Prompt], results: Sequence[T | RequestFailed]
) -> tuple[list[tuple[Prompt, T]], list[Row]]:
    """(prompt, result) of the answered rows, and the failed ones as rows with their reason."""
    answered, failed = [], []
    for prompt, result in zip(prompts, results, strict=True):
        if isinstance(result, RequestFailed):
            messages = as_dicts(prompt.messages)
            row = {"id": prompt.id, "source": prompt.source, "prompt": messages}
            failed.append(row | {"reason": str(result)})
        else:
            answered.append((prompt, result))
    return answered, failed


def write_failed(work: Path, failed: list[Row]) -> int:
    """Writes work/failed.parquet where a row has failed. Returns how many have."""
    (work / "failed.parquet").unlink(missing_ok=True)  # of an earlier try that was stopped
    if failed:
        write_rows(work / "failed.parquet", failed)
    return len(failed)
