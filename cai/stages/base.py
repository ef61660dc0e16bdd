"""What a stage gets, and nothing else: whatever is in its spec is in its key."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cai.config import DataConfig, EngineConfig, ModelConfig
from cai.constitution import Constitution
from cai.data.audit import Overlap
from cai.data.formats import load_dialogues
from cai.dialogue import Prompt, as_dicts
from cai.digest import digest
from cai.engines.base import Completion, Recorded, RequestFailed, open_engine
from cai.ledger import Ledger
from cai.progress import Progress

T = TypeVar("T")


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

    def load_constitution(self) -> Constitution:
        return Constitution.load(self.constitution)

    def model_path(self, name: str) -> str:
        """A folder or hub id: `base`, or the model that a stage has trained."""
        from cai.training.model import locate

        return locate(self.model) if name == "base" else str(Path(self.inputs[name].path) / "model")

    def model_digest(self, name: str) -> str:
        """What the ledger knows the model by: its content, and the parts of the engine's config that matter."""
        from cai.config import without_runtime
        from cai.training.model import fingerprint

        if self.engine.model is not None:  # a server's: its name, which the config holds, is all that is known
            return digest(["served", without_runtime(self.engine)])
        content = digest(fingerprint(self.model)) if name == "base" else self.inputs[name].digest
        return digest([content, without_runtime(self.engine)])

    def recorded(self, ledger: Ledger, name: str) -> Recorded:
        """An engine on the named model, behind the ledger, that counts into the progress bar."""

        def open_model() -> Any:
            served = self.engine.kind == "openai"  # under the run's own name for it
            return open_engine(self.engine, name if served else self.model_path(name))

        def seen(completions: Sequence[Completion], hit: bool) -> None:
            self.progress.advance(len(completions), sum(c.new_tokens for c in completions), hit)

        return Recorded(open_model, ledger, self.stage, self.model_digest(name), seen)

    def recorded_model(self, ledger: Ledger, model: ModelConfig) -> Recorded:
        """The same on a model of its own."""
        return dataclasses.replace(self, model=model).recorded(ledger, "base")

    def on(self, engine: EngineConfig | None) -> "Context":
        """The same with another engine, where there is one."""
        return dataclasses.replace(self, engine=engine) if engine else self

    def ledger(self) -> Ledger:
        return Ledger(self.root / "ledger.sqlite")


def held_out_overlaps(context: Context) -> dict[str, Overlap]:
    """For each of the evaluation suites' sets, what tells that a text repeats one of its human turns."""
    found = {}
    for name in context.held_out:
        dialogues = load_dialogues([name], context.held_out, context.seed).dialogues
        found[name] = Overlap(m.content for dialogue, _ in dialogues for m in dialogue if m.role == "user")
    return found


def held_apart(prompts: list[Prompt], context: Context) -> tuple[list[Prompt], list[Prompt]]:
    """(kept, dropped): training prompts that no evaluation suite holds, and those that one does."""
    overlaps = held_out_overlaps(context).values()
    held = [any(p.text in overlap for overlap in overlaps) for p in prompts]
    return [p for p, out in zip(prompts, held, strict=True) if not out], [
        p for p, out in zip(prompts, held, strict=True) if out
    ]


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


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Parquet, with the same bytes for the same rows. Lone surrogates, which UTF-8 has no place for, become U+FFFD."""
    import pyarrow
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.Table.from_pylist([_clean(row) for row in rows]), path, compression="zstd")


def read_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as parquet

    return parquet.read_table(path).to_pylist()


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list | tuple) else value
