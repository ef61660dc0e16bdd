"""How many tokens each stage reads, writes and trains on, before it has run.

Counted from the settings and the data sets' sizes. Every revision is taken to pass its gates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cai.config.names import BUILT, PROBES, evaluated_models
from cai.config.schema import Config, DpoConfig, Prompts, SftConfig, Suite
from cai.data.mixture import shares_by_size
from cai.data.survey import Size, survey
from cai.method.constitution import Constitution
from cai.stages.base import Stage
from cai.training.forecast import DPO_LENGTH

FILLED = 0.5  # rows fill this share of max_length, where their set is unknown
PROMPT = 60  # tokens, where the set is unknown
REQUEST, EXEMPLAR = 80, 250  # tokens of a principle's request, and of an exemplar
# tokens of a request for probes, with its examples, and of what scores a list's prompts
PROBE_REQUEST, PROBE_SCORES = 500, 1500
PROBE = 20  # tokens of a prompt that the stage probe has written


@dataclass(frozen=True)
class Work:
    """Tokens. `repeated`: of those read, what an engine has read before and keeps."""

    read: float = 0
    written: float = 0
    trained: float = 0
    repeated: float = 0

    @property
    def total(self) -> float:
        return self.read + self.written + self.trained

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.read + other.read,
            self.written + other.written,
            self.trained + other.trained,
            self.repeated + other.repeated,
        )


def work_of(stage: Stage, config: Config) -> Work | None:
    """A stage's tokens; None where nobody can say without the whole data."""
    counter = COUNTERS.get(stage.kind)
    return counter(config) if counter else None


def fill(limit: int) -> float:
    """Tokens of an answer that may have `limit`: nearly all of a few, and half of many."""
    return min(limit, 32 + limit / 2)


def _size(name: str, config: Config) -> Size | None:
    return _probe_size(name, config) if name in PROBES else survey(name, config.data[name])


def _probe_size(name: str, config: Config) -> Size:
    """As large as it is where the model writes as many prompts as are asked for."""
    kinds = 1 if "kind" in PROBES[name] else 2
    share = config.probe.test if PROBES[name]["split"] == "test" else 1 - config.probe.test
    rows = round(_drawable_principles(config) * config.probe.target * kinds * share)
    return Size(rows, PROBE, PROBE)


def _drawable_principles(config: Config) -> int:
    return sum(p.weight > 0 for p in Constitution.load(config.constitution).principles)


def count_prompts(chosen: Prompts, config: Config) -> tuple[int, float] | None:
    """How many prompts are taken, and their mean tokens; None where a set's size decides that."""
    sizes = [_size(name, config) for name in chosen.data]
    surveyed = [size for size in sizes if size is not None]
    rows = sum(size.rows for size in surveyed)
    tokens = sum(size.prompt * size.rows for size in surveyed) / rows if rows else PROMPT
    if len(surveyed) < len(sizes):
        return None if chosen.limit is None else (chosen.limit, tokens)
    left = max(0, rows - chosen.offset)
    return (left if chosen.limit is None else min(chosen.limit, left)), tokens


def _epochs(section: SftConfig | DpoConfig) -> float:
    return section.args.get("num_train_epochs", 3) * (1 - section.validation)


def _set_rows(section: SftConfig, names: Sequence[str], config: Config) -> tuple[int, float] | None:
    """Rows that are drawn of data sets, and all their tokens."""
    sizes = {name: None if name == BUILT else _size(name, config) for name in names}
    surveyed = {name: size for name, size in sizes.items() if size is not None}
    if len(surveyed) < len(sizes):
        limit = section.limit
        return None if limit is None else (limit, limit * FILLED * section.max_length)
    rows = {name: size.rows for name, size in surveyed.items()}
    counts = shares_by_size(
        rows, section.limit, section.weights, section.mixing_temperature, section.mixing_cap
    )
    tokens = sum(
        count * min(surveyed[name].whole, section.max_length) for name, count in counts.items()
    )
    return sum(counts.values()), tokens


def _sft(config: Config) -> Work | None:
    rows_of_sft = _set_rows(config.sft, config.sft.data, config)
    return Work(trained=rows_of_sft[1] * _epochs(config.sft)) if rows_of_sft else None


def _sl_cai(config: Config) -> Work | None:
    """The revisions, where every gate is passed, and the helpful rows beside them."""
    section, selection = config.sl_cai, count_prompts(config.revise.prompts, config)
    if selection is None:
        return None
    revisions = selection[0] * (config.revise.rounds if section.revisions == "all" else 1)
    length = selection[1] + fill(config.revise.sampling.revision.max_new_tokens)
    helpful = _helpful(config)
    if helpful is None and section.helpful_ratio is None:
        return None
    rows, tokens = helpful or (0, 0.0)
    if section.helpful_ratio is not None:
        target = revisions * section.helpful_ratio
        mean = tokens / rows if rows else FILLED * section.max_length
        tokens = mean * (min(target, rows) if rows else target)
    total = revisions * min(length, section.max_length) + tokens
    return Work(trained=total * _epochs(section))


def _helpful(config: Config) -> tuple[int, float] | None:
    """The helpful rows of sl_cai, and all their tokens."""
    section, sampled = config.sl_cai, config.revise.helpful
    if section.helpful == "data":
        return _set_rows(section, section.data, config)
    selection = count_prompts(sampled.prompts, config) if sampled else None
    if selection is None or sampled is None:
        return None
    rows = selection[0] * sampled.samples
    return rows, rows * (selection[1] + fill(config.revise.sampling.answer.max_new_tokens))


def _revise(config: Config) -> Work | None:
    section, selection = config.revise, count_prompts(config.revise.prompts, config)
    helpful = count_prompts(section.helpful.prompts, config) if section.helpful else (0, 0.0)
    if selection is None or helpful is None:
        return None
    sampling = section.sampling
    answer = fill(sampling.answer.max_new_tokens)
    critique = fill(sampling.critique.max_new_tokens) if section.critique else 0
    revision = fill(sampling.revision.max_new_tokens)
    prompts, length = selection
    exemplars = EXEMPLAR * section.exemplars
    request = exemplars + length + answer + REQUEST
    read, repeated = length + section.rounds * request, section.rounds * (exemplars + length)
    if section.critique:  # a revision's request is that of its critique, and more
        read += section.rounds * (request + critique + REQUEST)
        repeated += section.rounds * request
    written = answer + section.rounds * (critique + revision)
    work = Work(prompts * read, prompts * written, repeated=prompts * repeated)
    samples = helpful[0] * (section.helpful.samples if section.helpful else 0)
    return work + Work(read=samples * helpful[1], written=samples * answer)


def _label(config: Config) -> Work | None:
    section, selection = config.label, count_prompts(config.label.prompts, config)
    benign = count_prompts(section.benign, config) if section.benign else (0, 0.0)
    if section.kind == "revision":
        return Work()
    if selection is None or benign is None:
        return None
    prompts = selection[0] + benign[0]
    answer = fill(section.sampling.max_new_tokens)
    work = Work(read=prompts * selection[1], written=prompts * section.answers * answer)
    if section.kind == "rule":
        return work
    comparisons = prompts * section.answers * (section.answers - 1) // 2
    orders = 2 * section.principles * max(1, section.thoughts)
    thoughts = fill(section.thought.max_new_tokens) * bool(section.thoughts)
    read = REQUEST + selection[1] + 2 * answer + thoughts
    return work + Work(comparisons * orders * read, comparisons * orders * thoughts)


def _dpo(config: Config) -> Work | None:
    section, label = config.dpo, config.label
    selection = count_prompts(label.prompts, config)
    benign = count_prompts(label.benign, config) if label.benign else (0, 0.0)
    if label.kind == "revision":
        selection, benign = count_prompts(config.revise.prompts, config), (0, 0.0)
    if selection is None or benign is None:
        return None
    pairs = label.limit or selection[0] + benign[0]
    longest = section.args.get("max_length", DPO_LENGTH)
    tokens = pairs * min(selection[1] + fill(label.sampling.max_new_tokens), longest)
    for brought in (label.human, label.demonstrations):
        tokens += FILLED * longest * ((brought.limit or 0) if brought else 0)
    guarded = section.guards.prompts if section.validation else 0
    # before training, and at each evaluation
    looks = 1 + 1 / section.args.get("eval_steps", 1) if guarded else 0
    written = looks * guarded * fill(section.guards.new_tokens) if looks < 100 else 0
    return Work(written=written, trained=2 * tokens * _epochs(section))


def _evaluate(config: Config) -> Work | None:
    section, work = config.evaluate, Work()
    for suite in section.suites.values():
        selection = count_prompts(suite.prompts, config)
        if selection is None:
            return None
        work += _suite(suite, *selection, config)
    if section.adherence is None:
        return work
    selection = count_prompts(section.adherence, config)
    return work + _adherence(*selection, config) if selection else None


def _adherence(prompts: int, length: float, config: Config) -> Work:
    """The tagged prompts' answers and their verdicts; how many more are routed, nobody can say."""
    section = config.evaluate
    answers = len(evaluated_models(config)) * section.seeds * prompts
    answer = fill(section.sampling.max_new_tokens)
    work = Work(read=answers * length, written=answers * answer)
    return work + Work(read=2 * answers * (REQUEST + length + answer))


def _suite(suite: Suite, prompts: int, length: float, config: Config) -> Work:
    """Of all models."""
    section, models = config.evaluate, len(evaluated_models(config))
    answer = fill(section.sampling.max_new_tokens)
    if suite.kind == "instructions":
        prompt_tokens = sum(length * (1 + shots) for shots in suite.shots)
        # once to answer, and once with the reference
        read, written = 2 * prompt_tokens, answer * len(suite.shots)
        return Work(read=models * prompts * read, written=models * prompts * written)
    work = Work(read=models * prompts * length, written=models * prompts * section.seeds * answer)
    compared = min(prompts, section.judge.limit or prompts)
    request = REQUEST + length + answer
    if section.harm and suite.kind == "red_team":
        work += Work(read=2 * models * section.seeds * compared * request)
    wins = 2 * section.judge.principles * len(section.wins)
    return work + Work(read=wins * compared * (request + answer))


def _build(config: Config) -> Work | None:
    section = config.build
    instructions = section.sampling.instructions.max_new_tokens
    written = section.rounds * section.requests * fill(instructions)
    written += section.target * fill(section.sampling.answer.max_new_tokens)
    read = section.rounds * section.requests * section.shown * PROMPT + section.target * PROMPT
    return Work(read=read, written=written) if section.prompts is None else None


def _probe(config: Config) -> Work:
    section = config.probe
    lists = 2 * _drawable_principles(config) * section.rounds * section.requests
    read = PROBE_REQUEST + (PROBE_SCORES if section.on_topic else 0)
    return Work(read=lists * read, written=lists * fill(section.sampling.max_new_tokens))


COUNTERS: dict[str, Callable[[Config], Work | None]] = {
    "build": _build,
    "probe": _probe,
    "sft": _sft,
    "revise": _revise,
    "sl_cai": _sl_cai,
    "label": _label,
    "dpo": _dpo,
    "evaluate": _evaluate,
    "report": lambda config: Work(),
}
