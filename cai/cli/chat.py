"""`cai chat RUN`: a run's model and another of its models answer the same questions in the terminal."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from cai.config.schema import Sampling
from cai.digest import seed_of
from cai.engines.base import Completion, Engine, Request, RequestFailed
from cai.errors import UsageError, nearest
from cai.messages import Message, assistant, user
from cai.redact import safe
from cai.run.plan import trained
from cai.stages.base import verb_context
from cai.store.run_folder import Run

COMMANDS = {"/reset": "forgets what was said", "/quit": "ends, as Ctrl-D does"}

ENDINGS = {
    "length": "ends at --max-new-tokens",
    "too_long": "no room is left in its context: /reset starts anew",
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cai chat",
        description="Talk to a run's model beside another of its models. Nothing of it is kept.",
    )
    parser.add_argument(
        "run", nargs="?", help="a run's folder, e.g. outputs/quickstart (default: the newest)"
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="base, sft, sl_cai, dpo, ... (default: the last that is done)",
    )
    parser.add_argument(
        "--against", metavar="NAME", default="base", help="the other model (default: base)"
    )
    parser.add_argument("--alone", action="store_true", help="without another model")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the chat")
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="default: the run's evaluate.sampling"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="of an answer (default: 256)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Raises UsageError where the run has no such model."""
    from rich.console import Console

    from cai.config.compose import saved
    from cai.run.process import quiet
    from cai.store.run_folder import find_run

    quiet()
    options = parse(arguments)
    if options.max_new_tokens < 1 or (options.temperature is not None and options.temperature < 0):
        raise UsageError(
            "cai chat: --max-new-tokens must be at least 1, and --temperature 0 (greedy) or more"
        )
    root = find_run(options.run)
    config = saved(root)
    done = trained(config, Run(root))
    if not done:
        raise UsageError(f"{root}: no model is done yet; see `cai status {root}`")
    names = [options.model or list(done)[-1]]
    if not options.alone and options.against not in names:
        names.append(options.against)
    for name in names:
        if name != "base" and name not in done:
            known = ["base", *done]
            raise UsageError(
                f"{root} has no model '{name}'{nearest(name, known)} (it has {', '.join(known)})"
            )
    sampling = replace(config.evaluate.sampling, max_new_tokens=options.max_new_tokens)
    if options.temperature is not None:
        sampling = replace(sampling, temperature=options.temperature)
    inputs = {name: (Run(root).folder(name, one.key) / "out", one) for name, one in done.items()}
    context = verb_context("chat", config, root, config.constitution, inputs)
    console = Console(highlight=False, markup=False)
    with console.status("loading"):
        engines = {name: context.open_model(name) for name in names}
    chat = Chat(engines, sampling, config.seed, options.system, console)
    signal.signal(signal.SIGINT, _interrupt)  # asyncio would wait for the answer's end
    try:
        chat.run()
    finally:
        for engine in engines.values():
            engine.close()


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


class Chat:
    """What each model was asked and has answered: every one goes on from its own answers."""

    def __init__(
        self,
        engines: dict[str, Engine],
        sampling: Sampling,
        seed: int,
        system: str | None,
        console: "Console",
    ):
        self.engines, self.sampling, self.seed, self.console = engines, sampling, seed, console
        self._begin: tuple[Message, ...] = (Message("system", system),) if system else ()
        self._width = max(len("you"), *map(len, engines))
        self._asks = sys.stdin.isatty() and console.is_terminal
        self.reset()

    def reset(self) -> None:
        self._turns = 0
        self._said = dict.fromkeys(self.engines, self._begin)

    def run(self) -> None:
        """Until /quit or the end of the input."""
        for line in self._lines():
            if line == "/quit":
                return
            if line == "/reset":
                self.reset()
                self.console.print("a new chat", style="dim")
            elif line.startswith("/") and line[1:].isalpha():
                known = "; ".join(f"{name} {what}" for name, what in COMMANDS.items())
                self.console.print(
                    f"no command {safe(line)}{nearest(line, list(COMMANDS))} ({known})", style="dim"
                )
            elif line:
                self.ask(line)

    def _lines(self) -> Iterator[str]:
        if not self._asks:
            for line in sys.stdin.buffer:
                yield line.decode(errors="replace").strip()
            return
        import readline  # noqa: F401 - gives input() its editing and history

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
        """Every model's answer, one below the other. Ctrl-C ends an answer, which stays as far as it came."""
        if not self._asks:
            self._label("you")
            self.console.out(safe(question), highlight=False)
        seed = seed_of(self.seed, "chat", self._turns)
        self._turns += 1
        for name in self.engines:
            asked = (*self._said[name], user(question))
            if answer := self._answer(name, Request(asked, self.sampling, seed)):
                self._said[name] = (*asked, assistant(answer))
        self.console.print()

    def _answer(self, name: str, request: Request) -> str:
        heard: list[str] = []

        def hear(words: str) -> None:
            heard.append(words)
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
            if not self._asks:
                raise
            self._note("ended")
            return "".join(heard).strip()
        if not (heard and self.console.is_terminal):
            self._write(completion.text)
        self._note(ENDINGS.get(completion.finish_reason, ""))
        return completion.text

    def _label(self, name: str) -> None:
        self.console.out(f"{name:>{self._width}}  ", style="bold cyan", highlight=False, end="")

    def _write(self, words: str) -> None:
        self.console.out(safe(words), highlight=False, end="")

    def _note(self, text: str) -> None:
        self.console.out(f" [{safe(text)}]" if text else "", style="dim", highlight=False)
