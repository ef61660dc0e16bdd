"""The evaluation suites: their held-out prompts and references."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cai.config.schema import EvaluateConfig, Suite
from cai.data.decontaminate import HeldOut
from cai.data.prompts import SPLIT_SEED, load_dialogues, load_prompts, sample_dialogues
from cai.digest import seed_of
from cai.errors import CaiError
from cai.messages import Dialogue, Prompt, as_dicts, under_system, with_system
from cai.method.attacks import OPENINGS, attacked
from cai.stages.base import Context
from cai.stages.summary import attack_title, suite_title


@dataclass(frozen=True)
class Reference:
    """A held-out prompt after its examples, and its reference answer.

    The prompt's id is that of the prompt without examples.
    """

    prompt: Prompt
    answer: str


@dataclass(frozen=True)
class Suites:
    """What every model is asked, by the suite's title."""

    prompts: Mapping[str, list[Prompt]]
    references: Mapping[str, list[Reference]]
    # suite -> how the assistant's turn has begun, where it has
    openings: Mapping[str, str] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        return {
            title: len(rows) for title, rows in (*self.prompts.items(), *self.references.items())
        }

    def under(self, system: str) -> "Suites":
        """The same behind a system message; a prompt's own follows it."""

        def behind(prompt: Prompt) -> Prompt:
            return replace(prompt, messages=under_system(prompt.messages, system))

        prompts = {title: list(map(behind, rows)) for title, rows in self.prompts.items()}
        references = {
            title: [replace(row, prompt=behind(row.prompt)) for row in rows]
            for title, rows in self.references.items()
        }
        return replace(self, prompts=prompts, references=references)

    def requests(self, samples: int) -> int:
        """Of one model. A reference is answered and scored."""
        prompts = sum(len(rows) for rows in self.prompts.values())
        return samples * prompts + 2 * sum(len(rows) for rows in self.references.values())


def load_suites(config: EvaluateConfig, context: Context) -> Suites:
    """Raises CaiError where a suite has no row."""
    prompts: dict[str, list[Prompt]] = {}
    references: dict[str, list[Reference]] = {}
    openings: dict[str, str] = {}
    for name, suite in config.suites.items():
        if suite.kind == "instructions":
            references |= load_references(name, suite, context)
            continue
        prompts[name] = load_prompts(suite.prompts, context.data, SPLIT_SEED)
        if not prompts[name]:
            raise CaiError(f"evaluate.suites.{name}: no row is left; see its limit and offset")
        for attack in suite.attacks:
            title = attack_title(name, attack)
            prompts[title] = [attacked(prompt, attack) for prompt in prompts[name]]
            if attack in OPENINGS:
                openings[title] = OPENINGS[attack]
    return Suites(prompts, references, openings)


def load_references(name: str, suite: Suite, context: Context) -> dict[str, list[Reference]]:
    """For each number of shots: the suite's prompts with that many examples before them.

    A prompt's examples follow from the prompt alone; fewer shots are the first of more.
    Raises CaiError where no row is left, or where there are not enough examples.
    """
    loaded = load_dialogues(suite.prompts.data, context.data, SPLIT_SEED)
    dialogues = [dialogue for dialogue, _ in loaded.dialogues]
    system = {dialogue: context.data[tags["source"]].system for dialogue, tags in loaded.dialogues}
    answered = [turns for turns in dialogues if len(turns) > 1 and turns[-1].role == "assistant"]
    rows = list({turns[:-1]: turns for turns in answered}.values())  # no prompt twice
    rows.sort(key=lambda turns: seed_of(SPLIT_SEED, as_dicts(turns)))
    rows = rows[suite.prompts.offset :][: suite.prompts.limit]
    if not rows:
        raise CaiError(f"evaluate.suites.{name}: no row is left; see its limit and offset")
    most_shots = max(suite.shots)
    pool = example_pool(suite, dialogues, context) if most_shots else []
    if len(pool) < most_shots:
        raise CaiError(
            f"evaluate.suites.{name}.shots: {most_shots} examples are needed, and "
            f"{', '.join(suite.examples)} has {len(pool)}: rows of one request and its answer that "
            "repeat no held-out prompt; name other data in examples"
        )
    references: dict[str, list[Reference]] = {suite_title(name, shots): [] for shots in suite.shots}
    for turns in rows:
        plain = Prompt.of(turns[:-1], name)
        turns = with_system(turns, system[turns])
        rng = random.Random(seed_of(SPLIT_SEED, plain.id, "shots"))  # noqa: S311 - a draw
        examples = rng.sample(pool, most_shots)
        head = int(turns[0].role == "system")
        for shots in suite.shots:
            shot_messages = tuple(message for example in examples[:shots] for message in example)
            messages = (*turns[:head], *shot_messages, *turns[head:-1])
            reference = Reference(replace(plain, messages=messages), turns[-1].content)
            references[suite_title(name, shots)].append(reference)
    return references


def example_pool(suite: Suite, held_out: Sequence[Dialogue], context: Context) -> list[Dialogue]:
    """Training rows of one request and its answer; none repeats a held-out prompt."""
    overlap = HeldOut.of_dialogues(held_out)

    def usable(dialogue: Dialogue) -> bool:
        roles = [message.role for message in dialogue]
        return roles == ["user", "assistant"] and dialogue[0].content not in overlap

    return sample_dialogues(suite.examples, context.data, SPLIT_SEED, usable)
