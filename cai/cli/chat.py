"""`cai chat RUN`: a run's model and another of its models answer the same questions."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from rich.console import Console

from cai.cli.options import add_run, number_from_0, positive_int, verb_parser
from cai.config.compose import saved
from cai.config.schema import Sampling
from cai.digest import seed_of
from cai.engines.base import Completion, Engine, Request, RequestFailed
from cai.engines.vllm_options import share_device
from cai.errors import UsageError, nearest
from cai.messages import Message, assistant, user
from cai.redact import safe
from cai.run.plan import trained, trained_inputs
from cai.run.process import quiet
from cai.stages.base import verb_context
from cai.store.manifest import Manifest
from cai.store.run_folder import Run, find_run

COMMANDS = {"/reset": "forgets what was said", "/quit": "ends, as Ctrl-D does"}

ENDINGS = {
    "length": "ends at --max-new-tokens",
    "too_long": "no room is left in its context: /reset starts anew",
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = verb_parser(
        "chat",
        "Talk to a run's model beside another of its models. Nothing of it is kept.",
        "outputs/quickstart --model dpo --against sft",
    )
    add_run(parser)
    text = "base, sft, sl_cai, dpo, ... (default: the last that is done)"
    parser.add_argument("--model", metavar="NAME", help=text)
    text = "the other model (default: base)"
    parser.add_argument("--against", metavar="NAME", default="base", help=text)
    parser.add_argument("--alone", action="store_true", help="without another model")
    parser.add_argument(
        "--system", metavar="TEXT", help="a system message before the chat (default: the run's)"
    )
    text = "default: the run's evaluate.sampling"
    parser.add_argument("--temperature", type=number_from_0, metavar="T", help=text)
    text = "of an answer (default: 256)"
    parser.add_argument("--max-new-tokens", type=positive_int, default=256, metavar="N", help=text)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Raises UsageError where the run has no such model."""
    quiet()
    options = parse(arguments)
    root = find_run(options.run)
    config = saved(root)
    manifests = trained(config, Run(root))
    names = _model_names(root, manifests, options)
    sampling = replace(config.evaluate.sampling, max_new_tokens=options.max_new_tokens)
    if options.temperature is not None:
        sampling = replace(sampling, temperature=options.temperature)
    inputs = trained_inputs(config, root)
    if config.engine.kind == "vllm":
        config = replace(config, engine=share_device(config.engine, len(names)))
    context = verb_context("chat", config, root, config.constitution, inputs)
    console = Console(highlight=False, markup=False)
    with console.status("loading"):
        engines = {name: context.open_model(name) for name in names}
    chat = Chat(engines, sampling, config.seed, options.system or config.system_prompt, console)
    signal.signal(signal.SIGINT, _interrupt)  # asyncio would wait for the answer's end
    try:
        chat.run()
    finally:
        for engine in engines.values():
            engine.close()


def _model_names(
    root: Path, manifests: Mapping[str, Manifest], options: argparse.Namespace
) -> list[str]:
    """The models that answer."""
    if not manifests:
        raise UsageError(f"{root}: no model is done yet; see `cai status {root}`")
    names = [options.model or list(manifests)[-1]]
    if not options.alone and options.against not in names:
        names.append(options.against)
    models = ["base", *manifests]
    for name in names:
        if name not in models:
            raise UsageError(
                f"{root} has no model '{name}'{nearest(name, models)} (it has {', '.join(models)})"
            )
    return names


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class Chat:
    """What each model was asked and has answered: every one goes on from its own answers."""

    def __init__(
        self,
        engines: dict[str, Engine],
        sampling: Sampling,
        seed: int,
        system: str | None,
        console: Console,
    ):
        self.engines, self.sampling, self.seed, self.console = engines, sampling, seed, console
        self._start: tuple[Message, ...] = (Message("system", system),) if system else ()
        self._label_width = max(len("you"), *map(len, engines))
        self._is_interactive = sys.stdin.isatty() and console.is_terminal
        self.reset()

    def reset(self) -> None:
        self._turns = 0
        self._dialogues = dict.fromkeys(self.engines, self._start)

    def run(self) -> None:
        """Until /quit or the end of the input."""
        for line in self._lines():
            if line == "/quit":
                return
            if line == "/reset":
                self.reset()
                self.console.print("a new chat", style="dim")
            elif line.startswith("/") and line[1:].isalpha():
                commands = "; ".join(f"{name} {effect}" for name, effect in COMMANDS.items())
                hint = nearest(line, list(COMMANDS))
                self.console.print(f"no command {safe(line)}{hint} ({commands})", style="dim")
            elif line:
                self.ask(line)

    def _lines(self) -> Iterator[str]:
        if not self._is_interactive:
            for line in sys.stdin.buffer:
                yield line.decode(errors="replace").strip()
            return
        import readline  # noqa: F401 - gives input() its editing and history; not on Windows

        self.console.print(f"{', '.join(self.engines)}; {', '.join(COMMANDS)}", style="dim")
        while True:
            try:
                yield input("> ").encode(errors="replace").decode().strip()
            except EOFError:
                self.console.print()
                return
            except KeyboardInterrupt:
                self.console.print("\n/quit or Ctrl-D ends", style="dim")

    def ask(self, question: str) -> None:
        """Every model's answer, one below the other.

        Ctrl-C ends an answer, which stays as far as it came.
        """
        if not self._is_interactive:
            self._label("you")
            self.console.out(safe(question), highlight=False)
        seed = seed_of(self.seed, "chat", self._turns)
        self._turns += 1
        for name in self.engines:
            dialogue = (*self._dialogues[name], user(question))
            if answer := self._answer(name, Request(dialogue, self.sampling, seed)):
                self._dialogues[name] = (*dialogue, assistant(answer))
        self.console.print()

    def _answer(self, name: str, request: Request) -> str:
        pieces: list[str] = []

        def hear(words: str) -> None:
            pieces.append(words)
            if self.console.is_terminal:
                self._write(words)

        async def answer() -> Completion:
            return await self.engines[name].complete(request, hear)

        self._label(name)
        try:
            completion = asyncio.run(answer())
        except RequestFailed as failure:
            self._note(str(failure))
            return ""
        except KeyboardInterrupt:
            if not self._is_interactive:
                raise
            self._note("ended")
            return "".join(pieces).strip()
        if not (pieces and self.console.is_terminal):
            self._write(completion.text)
        self._note(ENDINGS.get(completion.finish_reason, ""))
        return completion.text

    def _label(self, name: str) -> None:
        label = f"{name:>{self._label_width}}  "
        self.console.out(label, style="bold cyan", highlight=False, end="")

    def _write(self, words: str) -> None:
        self.console.out(safe(words), highlight=False, end="")

    def _note(self, text: str) -> None:
        self.console.out(f" [{safe(text)}]" if text else "", style="dim", highlight=False)
