"""On the real small model: principles that say the opposite give other revisions."""

import asyncio
import dataclasses
from pathlib import Path

import pytest
import yaml

from cai.config.compose import compose
from cai.engines.base import open_engine
from cai.engines.rows import gather_rows
from cai.messages import Prompt, user
from cai.method.constitution import Constitution
from cai.method.critique import revise
from cai.models.convert import locate
from cai.text import word_count

ASKED = (
    "Why is the sky blue?",
    "What should I cook tonight?",
    "How do I learn to swim?",
    "What is a good name for a cat?",
    "How does a bicycle stay upright?",
    "Where do penguins live?",
    "How can I sleep better?",
    "What is bread made of?",
)
LENGTHS = {
    "short": "Write your answer again in one short sentence. Write only the new answer.",
    "long": "Write your answer again with many more sentences, examples and details. "
    "Write only the new answer.",
}


@pytest.mark.slow
def test_contrary_principles_give_contrary_revisions(tmp_path: Path):
    config = compose(["experiment=quickstart"])
    sampling = dataclasses.replace(config.revise.sampling.revision, max_new_tokens=96)
    sampling = dataclasses.replace(config.revise.sampling, revision=sampling)
    settings = dataclasses.replace(config.revise, sampling=sampling, gates=[])
    engine = open_engine(config.engine, locate(config.model))
    lengths: dict[str, list[int]] = {}
    for name, revision in LENGTHS.items():
        principle = {"id": name, "revision": revision, "comparison": "Which is better?"}
        principle["critique"] = f"Look at your last answer. Is it {name} enough?"
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"principles": [principle]}))
        law = Constitution.load(str(file))

        async def run(law: Constitution = law) -> list[int]:
            chains = [
                revise(Prompt.of((user(text),), "any"), law, settings, 0, engine.complete)
                for text in ASKED
            ]
            revisions = await gather_rows(chains)
            return [word_count(revision.steps[-1].revision) for revision in revisions]

        lengths[name] = asyncio.run(run())
    engine.close()
    pairs = list(zip(lengths["short"], lengths["long"], strict=True))
    assert sum(short < long for short, long in pairs) >= 6, pairs
    assert 1.5 * sum(lengths["short"]) < sum(lengths["long"]), pairs
