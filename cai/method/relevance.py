"""Which principles a prompt is about: pieces of words in common, rare ones first (TF-IDF).

`python -m benchmarks.relevance` measures it on 60 harmful prompts, marked by hand.
"""

from collections.abc import Sequence

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import linear_kernel

from cai.messages import Prompt
from cai.method.principle import Principle

# Below this cosine a principle is about something else more often than not. Chosen on the
# benchmark's 60 prompts.
NEAR = 0.135


class Relevance:
    """Ranks principles for prompts by the cosine of their TF-IDF vectors."""

    def __init__(self, principles: Sequence[Principle]):
        self._principles = [principle for principle in principles if principle.weight]
        self._vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(4, 6), sublinear_tf=True)
        self._texts = self._vectors.fit_transform(map(_text, self._principles))

    def rank(self, prompt: Prompt) -> list[Principle]:
        """Those that are near to the prompt's human turns, the nearest first."""
        question = " ".join(turn.content for turn in prompt.messages if turn.role == "user")
        similarities = linear_kernel(self._vectors.transform([question]), self._texts)[0]
        order = sorted(range(len(self._principles)), key=lambda place: -similarities[place])
        return [self._principles[place] for place in order if similarities[place] > NEAR]


def _text(principle: Principle) -> str:
    parts = (principle.id, *principle.tags, principle.critique, principle.revision)
    return " ".join((*parts, principle.comparison))
