"""A model's metrics on tasks of lm-evaluation-harness (Gao et al. 2021), which is an extra."""

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from cai.config.schema import EngineConfig
from cai.errors import CaiError, UsageError, nearest, not_installed
from cai.models.load import load_model, load_tokenizer, pick_device
from cai.scoring.statistics import Estimate, Z, share

# these lie between 0 and 1, and so do their intervals
SHARES = ("acc", "acc_norm", "exact_match", "em", "f1")

# in a batch, which has a score for each token of the vocabulary: a server's engine counts its
# requests in batch_rows, hundreds of them
MOST_ROWS = 32

# of a task in the harness's own format; such a file may name Python code that is run
TASK_FILES = (".yaml", ".yml")


def _harness() -> ModuleType:
    """lm_eval. Raises UsageError where the extra is not installed."""
    try:
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError:
        setting, library = "evaluate.lm_eval", "lm-evaluation-harness"
        raise not_installed(setting, library, ".[lm-eval]") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return lm_eval


def task_manager(tasks: Sequence[str]) -> Any:
    """The harness's own TaskManager.

    Raises UsageError where the harness is missing, or knows no such task.
    """
    manager = _read_index(_harness().tasks.TaskManager, not all(map(_stands_alone, tasks)))
    for name in tasks:
        if not _is_file(name) and name not in manager.task_index:
            hint = nearest(name, manager.all_tasks)
            raise UsageError(f"evaluate.lm_eval: '{name}' is no task of the harness{hint}")
    return manager


def _is_file(task: str) -> bool:
    return Path(task).suffix in TASK_FILES


def _stands_alone(task: str) -> bool:
    """Whether a task is a file that names no other task, as a group's does."""
    if not _is_file(task):
        return False
    try:
        root = yaml.compose(Path(task).read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError):  # the harness says what is wrong with it
        return False
    entries = root.value if isinstance(root, yaml.MappingNode) else []
    keys = {key.value: value for key, value in entries}
    return isinstance(keys.get("task"), yaml.ScalarNode) and "group" not in keys


@cache
def _read_index(manager: Callable[..., Any], of_harness: bool) -> Any:
    """The harness reads 14,000 files to know its own tasks, for 10 s: only where they are named,
    and once in a process."""
    return manager(include_defaults=of_harness)


def harness_metrics(
    model: str, engine: EngineConfig, tasks: Sequence[str], limit: int | None, manager: Any
) -> dict[str, dict[str, Estimate]]:
    """Task -> metric -> estimate, on the model's plain text without its chat template.

    At most `limit` rows of each task. Raises CaiError where a task's data can't be had.
    """
    lm_eval = _harness()
    weights = load_model(model, engine.dtype, pick_device(engine.device), engine.attention)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        language_model = lm_eval.models.huggingface.HFLM(
            pretrained=weights,
            tokenizer=load_tokenizer(model),
            batch_size=min(engine.batch_rows, MOST_ROWS),
        )
        try:
            evaluation = lm_eval.simple_evaluate(
                language_model,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                log_samples=False,
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CaiError(f"evaluate.lm_eval: {', '.join(tasks)}: {reason}") from None
    row_counts, subtasks = evaluation["n-samples"], evaluation["group_subtasks"]

    def count(task: str) -> int:
        if task in row_counts:
            return row_counts[task]["effective"]
        return sum(map(count, subtasks.get(task, ())))

    metrics = {task: estimates(row, count(task)) for task, row in evaluation["results"].items()}
    return {task: task_metrics for task, task_metrics in metrics.items() if task_metrics}


def estimates(results: Mapping[str, Any], count: int) -> dict[str, Estimate]:
    """One task's metrics that have a standard error, with a normal interval of 95 %.

    A share of 0 or 1, whose standard error is 0, has Wilson's interval.
    """
    metrics = {}
    for key, value in results.items():
        # "acc,none": the metric and the filter of the answers
        name, _, answer_filter = key.partition(",")
        error = results.get(f"{name}_stderr,{answer_filter}")
        if not isinstance(value, int | float) or not isinstance(error, int | float):
            continue
        title = name if answer_filter == "none" else f"{name}, {answer_filter}"
        if name in SHARES and value in (0, 1) and count:
            metrics[title] = share(value * count, count)
            continue
        lowest, highest = (0.0, 1.0) if name in SHARES else (-math.inf, math.inf)
        low, high = max(lowest, value - Z * error), min(highest, value + Z * error)
        metrics[title] = Estimate(value, low, high, count)
    return metrics
