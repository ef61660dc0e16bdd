"""Preference pairs for DPO, of several kinds (`label.kind`).

- feedback: a judge compares answers of the policy under the constitution's principles (Bai et al.
  2022, section 4.1). The policy is sl_cai's model, or in later rounds that of the round before.
- contrast: a judge's log-ratio between a prompt with and without a principle says which answer is
  better (cai/method/contrast.py).
- revision: revisions are preferred to first answers; mixed: both.
- rule: rules say which of the policy's answers is better.

People's pairs (`label.human`; the paper's helpfulness pairs are such) and demonstrations over the
policy's own answers may join them.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from cai.config.names import policy_of, reads_probes, suite_data, unprobed
from cai.config.schema import Config, LabelConfig, Prompts
from cai.data.parquet import write_rows
from cai.digest import JsonObject
from cai.errors import CaiError
from cai.method.constitution import Constitution
from cai.method.contrast import contrast_laws
from cai.method.preferences import mix_pairs, shuffle_pairs
from cai.report.metrics import format_share
from cai.report.stage_view import Table
from cai.stages.base import Context, Stage, own_model_part, write_failed
from cai.stages.judge_summary import Judge
from cai.stages.pairs import (
    Pairs,
    as_row,
    demonstration_pairs,
    human_pairs,
    revision_pairs,
    rule_pairs,
    without_judged,
)
from cai.stages.summary import Summary as BaseSummary
from cai.stages.summary import nonzero

COMPARED = ("feedback", "mixed")  # the kinds that ask a judge to compare, under principles
REVISED = ("revision", "mixed")  # the kinds that pair revisions with first answers
JUDGED = (*COMPARED, "contrast")  # the kinds that ask a judge
ANSWERED = "answered further prompts twice; a judge said which answer a drawn principle prefers"
DESCRIPTIONS = {
    "feedback": ANSWERED,
    "contrast": "answered further prompts, harmful and harmless, several times; preferred the "
    "answer that a drawn principle makes likelier than its opposite does, by a judge's "
    "log-probabilities",
    "revision": "preferred each prompt's last good revision to its first answer, without a judge",
    "mixed": f"{ANSWERED}; beside them, revisions preferred to first answers without a judge",
    "rule": "answered further prompts, harmful and harmless, several times; rules preferred what "
    "declines the harmful and helps with the harmless",
}
COUNTS = {  # what a kind counts -> how it is shown
    "prompts": "prompts",
    "benign_prompts": "of them harmless",
    "overlapping": "left out because an evaluation suite holds them",
    "prompt_too_long": "prompts beyond the model's context",
    "identical": "prompts with nearly equal or empty answers",
    "ended_once": "prompts with fewer than two answers that ended",
    "all_good": "prompts with good answers alone",
    "none_good": "prompts without a good answer",
    "unread": "prompts with an answer that is not in English, which the rules can't read",
    "cut_off": "answers cut off, which are never chosen",
    "judged": "comparisons",
    "too_long": "too long for the judge",
    "labelled_too_long": "labelled pairs too long for the judge",
    "uncertain": "not sure enough",
    "no_letter": "pairs on which the judge wants to write neither letter",
    "revised_prompts": "revised prompts",
    "unrevised": "without a good revision that differs",
    "called_bad": "revisions that people called bad",
    "edited": "revisions in whose place people wrote a text",
    "revisions": "pairs of a revision and the first answer",
    "harmful": "pairs on harmful prompts",
    "harmless": "pairs on harmless prompts",
    "chosen_longer": "pairs with the longer answer chosen",
    "demonstrations": "pairs of a data set's answer and the model's own",
    "demonstrations_refused": "of them with a refusal of the model's own",
    "demonstrations_too_long": "demonstrations beyond the model's context",
    "demonstrations_overlapping": "demonstrations that an evaluation suite holds",
    "human": "pairs that people have labelled",
    "decided": "pairs that a person's choice between the same answers replaces",
    "human_overlapping": "pairs of people's that an evaluation suite holds",
    "human_unfit": "rows of people's that hold no pair",
    "failed": "prompts that no engine answered",
}
RULES_NOTE = (
    "No judge was asked: the rules that find refusals said which of the model's own answers is "
    "preferred. Refusal rates by these rules flatter what was trained so; read its answers."
)


@dataclass(frozen=True)
class Summary(BaseSummary):
    kind: str
    model: str  # the starting model's name
    pairs: int
    numbers: dict[str, int]  # see COUNTS
    judge: Judge | None

    counted: ClassVar = ("pairs",)

    def description(self) -> str:
        return DESCRIPTIONS[self.kind]

    def lines(self) -> list[tuple[str, str]]:
        counts = [(title, self.numbers.get(name, 0)) for name, title in COUNTS.items()]
        judge = self.judge.lines() if self.judge else []
        return [*nonzero(("pairs", self.pairs), *counts), *judge]

    def tables(self) -> list[Table]:
        return self.judge.tables() if self.judge else []

    def dataset(self) -> str:
        whose = ("", "; no judge was asked")
        if self.judge:
            whose = (", the judge's", ", with the principles it was asked about")
        return (
            f"{self.pairs} pairs of answers to one prompt: `chosen`, `rejected`, and `probability`"
            f"{whose[0]} that `chosen` is the better (0.5 to 1){whose[1]}."
        )

    def warnings(self) -> list[str]:
        return self.judge.warnings if self.judge else []

    def notes(self) -> list[str]:
        notes = []
        if self.kind == "rule":
            notes.append(RULES_NOTE)
        elif self.judge is None:
            notes.append("No judge was asked: every revision is preferred to the first answer.")
        elif self.judge.is_other_model:
            name = self.judge.name
            notes.append(f"The preferences came from another model, {name}, not from people.")
        else:
            notes.append(
                f"The model judged itself. The preferences came from {self.judge.name}, of the "
                f"same model family that is trained ({self.model}), not from people and not from "
                "a stronger model."
            )
        flipped = self.judge.metrics.get("flipped") if self.judge else None
        if flipped and flipped["value"] <= 0.5:  # above that, a warning says it
            notes.append(
                f"{format_share(flipped)} of the judge's preferences turned when the two "
                "answers were swapped (position bias)."
            )
        if people := self.numbers.get("human"):
            notes.append(
                f"Of the {self.pairs} preference pairs, people have labelled {people} "
                "(label.human)."
            )
        if self.judge and not self.judge.labelled:
            notes.append(
                "The judge's accuracy is not known: label.calibrate names no labelled pairs."
            )
        return notes


def run(config: LabelConfig, work: Path, context: Context) -> Summary:
    """Writes work/pairs.parquet in trl's preference format, with probabilities."""
    from cai.stages.contrast import contrast_pairs
    from cai.stages.feedback import feedback_pairs

    judge, generated, revised = None, Pairs(), Pairs()
    if config.kind == "contrast":
        generated, judge = contrast_pairs(config, context)
    elif config.kind in COMPARED:
        generated, judge = feedback_pairs(config, context)
    elif config.kind == "rule":
        generated = rule_pairs(config, context)
    if config.kind in REVISED:
        revised = revision_pairs(config, context)
    if config.kind == "mixed":
        pairs = mix_pairs(generated.pairs, revised.pairs, config.ratio, config.limit, context.seed)
    else:
        pairs = (generated.pairs or revised.pairs)[: config.limit]
    demonstrations = demonstration_pairs(config, context)
    people = human_pairs(config, context)
    pairs = [*pairs, *demonstrations.pairs]
    undecided = without_judged(pairs, people)
    if config.human:
        people.numbers["decided"] = len(pairs) - len(undecided)
    counts = generated.numbers | revised.numbers | demonstrations.numbers | people.numbers
    if not pairs:
        raise CaiError(
            f"no preference pair is left ({counts}); see label.min_margin, label.min_letters, "
            "label.max_similarity, label.answers, label.sampling.max_new_tokens and prompts"
        )
    if people.pairs or demonstrations.pairs:
        pairs = shuffle_pairs([*undecided, *people.pairs], context.seed)
    write_rows(work / "pairs.parquet", [as_row(pair) for pair in pairs])
    counts["failed"] = write_failed(work, generated.failed + demonstrations.failed)
    counts["revisions"] = sum(pair.kind == "revision" for pair in pairs)
    return Summary(config.kind, context.model.name, len(pairs), counts, judge)


def _data_sets(config: Config, round: int) -> list[str]:
    label = config.label
    chosen = [label.prompts, label.benign, label.calibrate, label.demonstrations]
    if round == 1:
        chosen.append(label.human)
    verdicts = config.verdicts if label.kind in REVISED else []
    return [*(name for prompts in chosen if prompts for name in prompts.data), *verdicts]


def _inputs(config: Config, round: int) -> list[str]:
    label = config.label
    names = {"revise"} if label.kind in REVISED else set()
    if label.kind in JUDGED:
        names |= {policy_of(round), policy_of(round) if label.model else label.judge}
    if label.kind == "rule" or label.demonstrations:
        names |= {policy_of(round)}
    probes = reads_probes([*_data_sets(config, round), *suite_data(config)])
    return [*probes, *sorted(names - {"base"})]


def _settings(section: LabelConfig, config: Config, round: int) -> LabelConfig:
    """A later round labels the next prompts, and trains on no pairs of people's."""
    if round == 1:
        return section

    def following(prompts: Prompts) -> Prompts:
        # with several rounds the limit is set: see config/check_training.py
        return replace(prompts, offset=prompts.offset + (round - 1) * (prompts.limit or 0))

    benign = section.benign and following(section.benign)
    return replace(section, human=None, prompts=following(section.prompts), benign=benign)


def _key_parts(config: Config, law: Constitution) -> JsonObject:
    law_part: JsonObject = {}
    if config.label.kind in COMPARED:
        law_part = {"constitution": law.comparison_digests()}
    elif config.label.kind == "contrast":
        law_part = {"constitution": law.contrast_digests()}
        if benign := config.label.benign:
            benign_law = Constitution.load(benign.constitution)
            law_part["benign_constitution"] = benign_law.contrast_digests()
    if config.label.kind in REVISED and config.verdicts:
        # label.human may name the same sets, for their pairs
        law_part |= {"verdicts": config.verdicts}
    return law_part | own_model_part("judge", "label", config)


def _check(config: Config) -> None:
    if config.label.kind == "contrast":
        benign = config.label.benign
        contrast_laws(config.constitution, benign and benign.constitution)


STAGE = Stage(
    kind="label",
    version=6,
    run=run,
    summary=Summary,
    inputs=_inputs,
    data=lambda config, round: unprobed(_data_sets(config, round)),
    key_parts=_key_parts,
    settings=_settings,
    check=_check,
    decontaminates=True,
    repeats=True,
)
