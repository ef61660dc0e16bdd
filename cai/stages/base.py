"""What a stage gets, and nothing else: whatever is in its spec is in its key."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from cai.config.schema import Config, DataConfig, EngineConfig, ModelConfig, policy_of
from cai.data.decontaminate import HeldOut
from cai.data.mixture import mix
from cai.data.parquet import write_rows
from cai.data.prompts import UnfitRows, load_dialogues, read_dialogues
from cai.digest import digest
from cai.engines.base import Completion, Engine, RequestFailed, open_engine
from cai.engines.ledger import Ledger, Recorded
from cai.messages import Dialogue, Prompt, as_dicts
from cai.method.constitution import Constitution
from cai.observe.progress import Progress
from cai.store.manifest import Manifest

T = TypeVar("T")

POOL = 1000  # rows that examples are drawn from


@dataclass(frozen=True)
class Input:
    """A finished stage that this one reads."""

    path: str  # its out/ folder
    digest: str  # of its output


@dataclass(frozen=True)
class Context:
    """The surroundings of one stage run."""

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

    @property
    def policy(self) -> str:
        """The stage whose model answers in `label`, and is trained further in `dpo`."""
        return policy_of(self.round)

    def load_constitution(self) -> Constitution:
        return Constitution.load(self.constitution)

    def owns(self, name: str) -> bool:
        """Whether the named model is the run's: `base`, or what a stage has trained."""
        return name == "base" or name in self.inputs

    def model_path(self, name: str) -> str:
        """A folder or hub id: `base`, or the model that a stage has trained."""
        from cai.models.convert import locate

        return locate(self.model) if name == "base" else str(Path(self.inputs[name].path) / "model")

    def model_digest(self, name: str) -> str:
        """What the ledger knows the model by: its content, and the parts of the engine's config that matter."""
        from cai.config.schema import without_runtime
        from cai.models.source import fingerprint

        if (
            self.engine.model is not None
        ):  # a server's: its name, which the config holds, is all that is known
            return digest(["served", without_runtime(self.engine)])
        content = digest(fingerprint(self.model)) if name == "base" else self.inputs[name].digest
        return digest([content, without_runtime(self.engine)])

    def open_model(self, name: str) -> Engine:
        """An engine on the named model; a server serves it under that name."""
        return open_engine(
            self.engine, name if self.engine.kind == "openai" else self.model_path(name)
        )

    def recorded(self, ledger: Ledger, name: str, model: ModelConfig | None = None) -> Recorded:
        """An engine on the named model, behind the ledger, that counts into the progress bar.

        Another `model`, where one is given, takes its place.
        """
        if model is not None:
            return dataclasses.replace(self, model=model).recorded(ledger, "base")

        shown = self.engine.model or (self.model.name if name == "base" else name)

        def seen(completions: Sequence[Completion], hit: bool) -> None:
            self.progress.advance(len(completions), sum(c.new_tokens for c in completions), hit)

        return Recorded(
            lambda: self.open_model(name), ledger, self.stage, self.model_digest(name), seen, shown
        )

    def on(self, engine: EngineConfig | None) -> "Context":
        """The same with another engine, where there is one."""
        return dataclasses.replace(self, engine=engine) if engine else self

    def ledger(self) -> Ledger:
        return Ledger(self.root / "ledger.sqlite")

    @cached_property
    def overlaps(self) -> dict[str, HeldOut]:
        """For each of the evaluation suites' sets, what tells that a text repeats one of its human turns."""
        found = {}
        for name in self.held_out:
            found[name] = HeldOut.of_dialogues(
                row for row, _ in load_dialogues([name], self.held_out, self.seed).dialogues
            )
        return found

    def holds_out(self, text: str) -> bool:
        """Whether a text repeats a human turn of an evaluation suite, so that nothing may be trained on it."""
        return any(text in overlap for overlap in self.overlaps.values())


def decontaminated(prompts: list[Prompt], context: Context) -> tuple[list[Prompt], list[Prompt]]:
    """(kept, dropped): training prompts that no evaluation suite holds, and those that one does."""
    dropped = [prompt for prompt in prompts if context.holds_out(prompt.text)]
    ids = {prompt.id for prompt in dropped}
    return [prompt for prompt in prompts if prompt.id not in ids], dropped


def sample_dialogues(
    names: Sequence[str], context: Context, keep: Callable[[Dialogue], bool]
) -> list[Dialogue]:
    """At most POOL rows of the named sets that `keep` takes, drawn by the seed."""

    def kept(name: str) -> Iterator[Dialogue]:
        for dialogue, _ in read_dialogues(name, context.data[name], context.seed, UnfitRows()):
            if keep(dialogue):
                yield dialogue

    drawn, _ = mix({name: kept(name) for name in names}, context.seed, POOL)
    return [dialogue for rows in drawn.values() for dialogue in rows]


def split_failed(
    prompts: Sequence[Prompt], results: Sequence[T | RequestFailed]
) -> tuple[list[tuple[Prompt, T]], list[dict[str, Any]]]:
    """(prompt, result) of the rows that were answered, and the others as rows with the reason why not."""
    pairs = list(zip(prompts, results, strict=True))
    good = [(prompt, result) for prompt, result in pairs if not isinstance(result, RequestFailed)]
    failed = [
        {"id": p.id, "source": p.source, "prompt": as_dicts(p.messages), "reason": str(why)}
        for p, why in pairs
        if isinstance(why, RequestFailed)
    ]
    return good, failed


def write_failed(work: Path, failed: list[dict[str, Any]]) -> dict[str, int]:
    """Writes work/failed.parquet where a row has failed. Returns the summary's entry."""
    (work / "failed.parquet").unlink(missing_ok=True)  # of a run before that was stopped
    if failed:
        write_rows(work / "failed.parquet", failed)
    return {"failed": len(failed)}


def verb_context(
    verb: str,
    config: Config,
    root: Path,
    constitution: str,
    inputs: Mapping[str, tuple[Path, Manifest]],
) -> Context:
    """What opens models for a verb that is no stage; `inputs`: a model's name -> its stage's out/ and manifest."""
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
        inputs={name: Input(str(out), manifest.output) for name, (out, manifest) in inputs.items()},
        progress=Progress(verb, quiet=True),
    )
