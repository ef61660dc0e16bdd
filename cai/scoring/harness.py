"""lm-evaluation-harness, an extra: a model's figures on its tasks (Gao et al. 2021), by name or by a task file."""

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cai.config.schema import EngineConfig
from cai.errors import CaiError, UsageError, nearest
from cai.scoring.statistics import Estimate, Z, share

EXTRA = "evaluate.lm_eval: lm-evaluation-harness is not installed; pip install 'constitutional-ai[lm-eval]'"

SHARED = (
    "acc",
    "acc_norm",
    "exact_match",
    "em",
    "f1",
)  # lie between 0 and 1, and so do their intervals

FILES = (
    ".yaml",
    ".yml",
)  # of a task in the harness's own format; such a file may name Python code that is run


def task_manager(tasks: Sequence[str]) -> Any:
    """What the harness finds tasks by. Raises UsageError where it is missing, or knows no such task."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UsageError(EXTRA) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _read_index(TaskManager)
    for name in tasks:
        if Path(name).suffix not in FILES and name not in manager.task_index:
            raise UsageError(
                f"evaluate.lm_eval: '{name}' is no task of the harness{nearest(name, manager.all_tasks)}"
            )
    return manager


@cache
def _read_index(manager: Callable[[], Any]) -> Any:
    """The harness reads 14,000 files to know its tasks, for 10 s: once in a process is enough."""
    return manager()


def harness_figures(
    model: str, engine: EngineConfig, tasks: Sequence[str], limit: int | None, manager: Any
) -> dict[str, dict[str, Estimate]]:
    """Task -> figure -> estimate, on the model's plain text without its chat template; at most `limit` rows of a task.

    Raises CaiError where a task's data can't be had.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from cai.models.load import load_model, load_tokenizer, pick_device

    weights = load_model(model, engine.dtype, pick_device(engine.device), engine.attention)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        of_harness: Any = HFLM  # its own annotations hide the arguments
        language_model = of_harness(
            pretrained=weights, tokenizer=load_tokenizer(model), batch_size=engine.batch_rows
        )
        evaluated: Any = lm_eval.simple_evaluate
        try:
            results = evaluated(
                language_model,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                log_samples=False,
            )
        except (OSError, ValueError) as error:
            raise CaiError(
                f"evaluate.lm_eval: {', '.join(tasks)}: {str(error).strip().splitlines()[0]}"
            ) from None
    assert results is not None  # it is None only in a further process of several
    rows, parts = results["n-samples"], results["group_subtasks"]

    def count(task: str) -> int:
        return rows[task]["effective"] if task in rows else sum(map(count, parts.get(task, ())))

    figures = {task: estimates(found, count(task)) for task, found in results["results"].items()}
    return {task: own for task, own in figures.items() if own}


def estimates(found: Mapping[str, Any], count: int) -> dict[str, Estimate]:
    """Of one task's results: each figure that has a standard error, with a normal interval of 95 %.

    A share of 0 or 1, whose standard error is 0, has Wilson's.
    """
    figures = {}
    for key, value in found.items():
        name, _, way = key.partition(",")
        error = found.get(f"{name}_stderr,{way}")
        if not isinstance(value, int | float) or not isinstance(error, int | float):
            continue
        shown = name if way == "none" else f"{name}, {way}"
        if name in SHARED and value in (0, 1) and count:
            figures[shown] = share(value * count, count)
            continue
        low, high = (0.0, 1.0) if name in SHARED else (-math.inf, math.inf)
        figures[shown] = Estimate(
            value, max(low, value - Z * error), min(high, value + Z * error), count
        )
    return figures
