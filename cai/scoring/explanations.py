"""How often principles explain labelled pairs, against chance."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cai.method.explaining import Pair, Vote
from cai.method.principle import Principle
from cai.scoring.statistics import Estimate, by_prompt, share
from cai.text import word_count


@dataclass(frozen=True)
class Explanation:
    """What a judge chose by one principle alone."""

    principle: Principle
    agrees: int  # pairs where it chose as people did, in both orders
    against: int  # where it chose the other answer
    undecided: int  # where its choice turned with the order
    unjudged: int  # too long for the judge, or failed
    letters: float  # mean probability of both letters together
    explains: Estimate | None  # share of the decided pairs where it chose as people did

    @property
    def turned(self) -> float:
        """The share of judged pairs where the choice turned with the order."""
        return self.undecided / max(1, self.agrees + self.against + self.undecided)

    @property
    def gain(self) -> int:
        """Pairs explained, less those that it gets wrong: what proposals are chosen by."""
        return self.agrees - self.against

    @property
    def against_chance(self) -> str:
        """By the interval, which no correction widens for the number of principles."""
        if self.explains is None:
            return "decides nothing"
        if self.explains.low > 0.5:
            return "better"
        return "worse" if self.explains.high < 0.5 else "no better"


def explanation(principle: Principle, votes: Sequence[Vote | None]) -> Explanation:
    cast_votes = [vote for vote in votes if vote is not None]
    choices = Counter(vote.choice for vote in cast_votes)
    decided = by_prompt(
        (vote.prompt_id, float(vote.choice == "agrees"))
        for vote in cast_votes
        if vote.choice != "none"
    )
    return Explanation(
        principle=principle,
        agrees=choices["agrees"],
        against=choices["against"],
        undecided=choices["none"],
        unjudged=len(votes) - len(cast_votes),
        letters=sum(vote.letters for vote in cast_votes) / max(1, len(cast_votes)),
        explains=share(sum(decided.values()), len(decided)) if decided else None,
    )


def longer_share(pairs: Sequence[Pair]) -> Estimate | None:
    """How often the preferred answer is the longer one, which needs no principle."""
    lengths = [(p.prompt.id, word_count(p.better) - word_count(p.worse)) for p in pairs]
    votes = by_prompt((prompt, float(gap > 0)) for prompt, gap in lengths if gap)
    return share(sum(votes.values()), len(votes)) if votes else None
