"""Models that answer: `open_engine`."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack, get_args

import yaml

from cai.api import loop
from cai.api.quiet import quiet
from cai.api.settings import EngineSettings, read_settings
from cai.config.checks import check_licence
from cai.config.compose import from_json
from cai.config.names import other_model
from cai.config.schema import EngineConfig, ModelConfig
from cai.config.types import EngineKind
from cai.engines import base
from cai.engines.base import Completion, Request, check_engine, check_ready
from cai.engines.ledger import Ledger, Recorded
from cai.errors import UsageError, nearest
from cai.models.source import split_revision
from cai.observe.progress import Progress
from cai.paths import shipped
from cai.stages.base import Context

VERB = "api"  # who has asked, in the ledger


class Engine:
    """A model that `open_engine` has opened. Use it in a `with` statement, or close it."""

    def __init__(self, config: EngineConfig, model: ModelConfig, ledger: str | Path | None):
        """Use open_engine, which reads the settings."""
        self.config = config
        self.progress = Progress(VERB, quiet=True)  # of the call under way
        self._closed = False
        self._context = Context(
            stage=VERB,
            seed=0,
            root=Path(),
            scratch=Path(),
            model=model,
            engine=config,
            data={},
            held_out={},
            constitution="",
            inputs={},
            progress=self.progress,
        )
        self._engine, self._ledger, self._recorded = loop.run(self._open(ledger))

    async def _open(self, ledger: str | Path | None) -> tuple[base.Engine, Ledger, Recorded]:
        """In the loop's thread, where all else is asked: SQLite's connections stay in one."""
        opened = Ledger(Path(":memory:" if ledger is None else ledger))
        try:
            with quiet():
                engine = self._context.open_model("base")
                digest = self._context.model_digest("base")
        except BaseException:
            opened.close()
            raise
        return engine, opened, Recorded(lambda: engine, opened, VERB, digest, self._count)

    def _count(self, completions: Sequence[Completion], from_ledger: bool) -> None:
        new_tokens = sum(completion.new_tokens for completion in completions)
        self.progress.advance(len(completions), new_tokens, from_ledger)

    async def complete(self, request: Request) -> Completion:
        """For `revise` and `compare`."""
        if self._closed:
            raise UsageError("this engine is closed; open_engine opens another")
        return await self._recorded.complete(request)

    def close(self) -> None:
        """Gives the memory back, and ends the server that it has started. Twice does no harm."""
        if not self._closed:
            self._closed = True
            loop.run(self._close())

    async def _close(self) -> None:
        self._engine.close()
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_engine(
    model: str | Path,
    kind: EngineKind = "transformers",
    *,
    ledger: str | Path | None = None,
    template: str | None = None,
    accept_license: bool = False,
    **settings: Unpack[EngineSettings],
) -> Engine:
    """Opens a model.

    `model`: a folder, a model of conf/model ("smollm2-135m"), a hub id (`id@revision`), or, of kind
    openai, the name that the servers know it by.
    `kind`: transformers (in this process), vllm (a server that is started now), or openai (servers
    that run: `server={"urls": ["http://127.0.0.1:8000/v1"], "key": "NAME"}`, where NAME is the
    environment variable that holds the key).
    `ledger`: a file that keeps every completion, so that the same call goes on after an
    interruption, in another process too. Without it they are kept until the engine is closed.
    `template`: a chat template in place of the model's own: chatml, inst, or a .jinja file. A model
    that has none has chatml.
    `accept_license`: for a model whose terms have to be accepted.
    `settings`: those of conf/engine/*.yaml, by their names. `max_failures`, the share of rows that
    may fail, is 0 unless it is set.

    Raises UsageError where a setting is wrong, and CaiError where the model can't be loaded.
    """
    name = os.fspath(model)
    if kind not in get_args(EngineKind):
        hint = nearest(kind, get_args(EngineKind))
        raise UsageError(f"there is no engine '{kind}'{hint} (transformers, vllm, openai)")
    names = [*EngineSettings.__annotations__]
    values = {"max_failures": 0.0, **settings}
    config = read_settings(EngineConfig, f"engine/{kind}", values, names)
    if kind == "openai":
        if template is not None:
            raise UsageError("template: a server has its model's own; start it with another")
        config = replace(config, model=name)
        source = ModelConfig(name, "hub", name)
    else:
        source = _source(name)
        source = replace(source, template=template or source.template)
        check_licence(replace(source, accept_license=accept_license), "open_engine")
    check_engine(config, "engine")
    check_ready(config)
    return Engine(config, source, ledger)


def _source(name: str) -> ModelConfig:
    """A folder, a model of conf/model, or a hub id."""
    file = shipped("conf") / "model" / f"{name}.yaml"
    if name != "path" and "/" not in name and not Path(name).is_dir() and file.is_file():
        return from_json(ModelConfig, yaml.safe_load(file.read_text(encoding="utf-8")))
    return other_model(*split_revision(name))
