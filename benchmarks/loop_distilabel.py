"""The loop of benchmarks/loop.py as a distilabel pipeline.

Its steps run in processes of their own. So they stand here, where those processes find them, and
all that they need stands in the rows."""

# pyright: reportMissingImports=false, reportCallIssue=false
import os
import time
from itertools import pairwise
from random import Random
from typing import Any

from distilabel.models import TransformersLLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts, StepInput, step
from distilabel.steps.tasks import ChatGeneration

from cai.config.schema import Config
from cai.data.prompts import load_prompts
from cai.messages import as_dicts
from cai.method.constitution import Constitution
from cai.method.critique import choose_exemplars, draw_principles
from cai.method.requests import critique_request


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content.strip()}


@step(inputs=["messages"], outputs=["begun"])
def begin(inputs: StepInput) -> Any:
    yield [one | {"begun": time.time()} for one in inputs]


@step(inputs=["exemplars", "messages", "answer", "asks"], outputs=["messages"])
def ask_critique(inputs: StepInput) -> Any:
    yield [
        one
        | {
            "messages": [
                *one["exemplars"],
                *one["messages"],
                turn("assistant", one["answer"]),
                turn("user", one["asks"][0]),
            ]
        }
        for one in inputs
    ]


@step(inputs=["messages", "critique", "asks"], outputs=["messages"])
def ask_revision(inputs: StepInput) -> Any:
    yield [
        one
        | {
            "messages": [
                *one["messages"],
                turn("assistant", one["critique"]),
                turn("user", one["asks"][1]),
            ]
        }
        for one in inputs
    ]


def run(config: Config, model: str) -> dict[str, Any]:
    """Seconds from the first row on, with models loaded, and every text.

    The processor's seconds count the loading too."""
    constitution = Constitution.load(config.constitution)
    prompts = load_prompts(config.revise.prompts, config.data, config.seed)
    shown = choose_exemplars(constitution, config.revise, Random(0))
    limit = config.revise.sampling.answer.max_new_tokens

    def reply(name: str, column: str) -> Any:
        greedy = {
            "max_new_tokens": limit,
            "do_sample": False,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
        }
        llm = TransformersLLM(
            model=model, torch_dtype=config.engine.dtype, device="cpu", generation_kwargs=greedy
        )
        return ChatGeneration(name=name, llm=llm, output_mappings={"generation": column})

    rows = []
    for number, prompt in enumerate(prompts):
        rule = draw_principles(prompt, constitution, config.revise, config.seed)[0]
        exemplars = as_dicts(critique_request((), rule, shown)[:-1])
        rows.append({"row": number, "exemplars": exemplars, "messages": as_dicts(prompt.messages)})
        rows[-1] |= {"asks": [rule.critique, rule.revision]}
    with Pipeline("loop") as pipeline:
        steps = [
            LoadDataFromDicts(data=rows),
            begin(),
            reply("say_answer", "answer"),
            ask_critique(),
        ]
        steps += [
            reply("say_critique", "critique"),
            ask_revision(),
            reply("say_revision", "revision"),
        ]
        for one, following in pairwise(steps):
            one.connect(following)
    busy = sum(os.times()[:4])
    made = pipeline.run(use_cache=False)["default"]["train"].sort("row")
    ended, busy = time.time(), sum(os.times()[:4]) - busy
    replies = [
        text.strip() for one in made for text in (one["answer"], one["critique"], one["revision"])
    ]
    return {"seconds": ended - min(made["begun"]), "processor": busy, "texts": replies}
