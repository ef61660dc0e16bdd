"""What a published model keeps of what training gained. Light: a stage's summary holds it."""

from dataclasses import dataclass

SMALLEST_GAIN = 0.01  # nats; of a smaller gain nothing can be said
SHARE = 0.9  # of the gain that a published model should keep


@dataclass(frozen=True)
class KeptGain:
    """Scores on the same rows, in nats. More is better: a loss is negative."""

    metric: str  # "loss" or "reward margin"
    start: float  # of the model that training started at
    trained: float  # of the trained weights
    published: float  # of the published folder, loaded as it is served
    rows: int
    held_out: bool  # whether the rows were held out of training

    @property
    def share(self) -> float | None:
        """The share of the gain that was kept. None: there is no gain to speak of."""
        gain = self.trained - self.start
        return (self.published - self.start) / gain if gain >= SMALLEST_GAIN else None

    def lines(self) -> list[tuple[str, str]]:
        where = "held-out" if self.held_out else "training"
        if self.metric == "loss":
            values = [f"{-score:.3f}" for score in (self.start, self.trained, self.published)]
            text = f"{values[0]} before, {values[1]} trained, {values[2]} published"
        else:
            margins = [f"{score - self.start:.3f}" for score in (self.trained, self.published)]
            text = f"{margins[0]} trained, {margins[1]} published"
        return [(f"{self.metric} of {self.rows} {where} rows", text)]

    def warnings(self, stage: str) -> list[str]:
        if self.share is None or self.share >= SHARE:
            return []
        return [
            f"The published model keeps {max(self.share, 0):.0%} of what {stage} gained in "
            f"{self.metric}. Small changes were rounded away: take "
            f"{stage}.publish_dtype=float32, and engine.dtype=float32 to serve it so."
        ]
