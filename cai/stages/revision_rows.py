"""The rows of revisions.parquet and training.parquet (docs/run-folder.md has the columns)."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from cai.config.schema import ReviseConfig
from cai.data.parquet import Row, read_rows
from cai.data.prompts import TaggedDialogue
from cai.data.verdicts import RevisionVerdicts
from cai.messages import Dialogue, as_dicts, assistant, from_dicts
from cai.method.critique import Revision

MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
STEP = pa.struct(
    {
        "principle": pa.string(),
        "critique": pa.string(),
        "revision": pa.string(),
        "gates": pa.list_(pa.string()),
        "seeds": pa.list_(pa.int64()),
        "tokens": pa.int64(),
    }
)
CUT = "cut"  # an answer that ran into its limit: its end of turn is not trained

REVISIONS = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "about": pa.string(),
        "prompt": MESSAGES,
        "answer": pa.string(),
        "steps": pa.list_(STEP),
        "final": pa.string(),
    }
)
TRAINING = pa.schema(
    {
        "id": pa.string(),
        "round": pa.int64(),
        "principle": pa.string(),
        "messages": MESSAGES,
        "last": pa.bool_(),
    }
)


def rows_to_train_on(revision: Revision, config: ReviseConfig) -> list[Row]:
    """SL-CAI's rows: the prompt with each revision that passed its gates, the final one marked."""
    if config.when_gated == "drop" and revision.steps and revision.steps[-1].gates:
        return []
    passed = [(round, step) for round, step in enumerate(revision.steps, 1) if not step.gates]
    return [
        {
            "id": revision.prompt.id,
            "round": round,
            "principle": step.principle_id,
            "messages": as_dicts((*revision.prompt.messages, assistant(step.revision))),
            "last": step is passed[-1][1],
        }
        for round, step in passed
    ]


def as_row(revision: Revision) -> Row:
    """A row of revisions.parquet."""
    steps = [
        {
            "principle": step.principle_id,
            "critique": step.critique,
            "revision": step.revision,
            "gates": list(step.gates),
            "seeds": list(step.seeds),
            "tokens": step.tokens,
        }
        for step in revision.steps
    ]
    return {
        "id": revision.prompt.id,
        "source": revision.prompt.source,
        "about": revision.prompt.principle,
        "prompt": as_dicts(revision.prompt.messages),
        "answer": revision.answer,
        "steps": steps,
        "final": revision.final,
    }


def training_dialogues(path: Path, rounds: str, verdicts: RevisionVerdicts) -> list[TaggedDialogue]:
    """Prompts with their revisions as the answer: of `all` rounds (the paper), or the `last`.

    Without those that people called bad, and with what they wrote in place of others.
    """
    dialogues: list[TaggedDialogue] = []
    for row in read_rows(path):
        *turns, revision = from_dicts(row["messages"])
        if rounds == "last" and not row["last"]:
            continue
        text = verdicts.text_to_train_on(row["id"], revision.content)
        if text is not None:
            dialogue = last_answer_only((*turns, assistant(text)))
            dialogues.append((dialogue, {"source": "revisions"}))
    return dialogues


def last_answer_only(dialogue: Dialogue) -> Dialogue:
    """The dialogue of which training learns the last turn: a stage has written no other answer.

    The answers before it may be what a red team provoked.
    """
    return (*(replace(message, trained=False) for message in dialogue[:-1]), dialogue[-1])
