"""What a run will take, said before it starts, and put right by what its stages take."""

from collections.abc import Sequence

from cai.config.schema import Config
from cai.run.estimate import START, Estimate, Expected, estimate_run
from cai.run.machine import note_pace
from cai.run.plan import Step


class Outlook:
    """Of the stages that have to run."""

    def __init__(self, config: Config, steps: Sequence[Step]):
        to_run = {step.stage.name: step.stage for step in steps}
        self.names = list(to_run)
        estimate = estimate_run(config, to_run) if to_run else None
        self._estimate: Estimate | None = estimate
        self._expected = {stage.stage: stage for stage in estimate.stages} if estimate else {}
        self._spent = self._foreseen = 0.0

    def lines(self) -> list[str]:
        """What will run, about how long, and how much disk it takes."""
        if not self.names:
            return []
        lines = [f"will run {', '.join(self.names)}"]
        if self._estimate is not None and self._estimate.seconds:
            stages = [stage for stage in self._estimate.stages if (stage.seconds or 0) >= 1]
            parts = ", ".join(f"{stage.stage} {in_words(stage.seconds or 0)}" for stage in stages)
            whole = self._estimate.whole()
            unknown = f", and {', '.join(self._estimate.unknown)}" if self._estimate.unknown else ""
            lines.append(
                f"about {in_words(self._estimate.seconds)}{unknown} on "
                f"{self._estimate.machine.describe()}: {parts}; {whole.disk / 1e9:.2f} GB of disk"
            )
        return lines

    def later(self, stage: str) -> float | None:
        """Seconds of the stages after this one, at the pace so far. None: nobody can say."""
        if stage not in self._expected:
            return None
        names = list(self._expected)
        following = [self._expected[name].seconds for name in names[names.index(stage) + 1 :]]
        pace = self._spent / self._foreseen if self._foreseen else 1.0
        return None if None in following else pace * sum(seconds or 0 for seconds in following)

    def note(self, stage: str, seconds: float, whole: bool) -> None:
        """What a stage took. `whole`: no part of it had been done before."""
        expected = self._expected.get(stage)
        if expected is None or not expected.seconds:
            return
        self._spent += seconds
        self._foreseen += expected.seconds
        if whole:
            self._remember(expected, seconds)

    def _remember(self, expected: Expected, seconds: float) -> None:
        assert self._estimate is not None
        note_pace(
            expected.kind, self._estimate.machine.device, expected.arithmetic, seconds - START
        )


def in_words(seconds: float) -> str:
    """`40 s`, `8 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
