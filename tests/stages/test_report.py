"""The report: what it says, and that no text of a model or a data set becomes markup."""

import dataclasses
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from cai.config.schema import EngineConfig, ModelConfig, Price, ReportConfig
from cai.data.audit import length_metrics, text_metrics
from cai.data.parquet import read_rows, write_rows
from cai.digest import plain
from cai.engines.base import Completion
from cai.engines.ledger import Ledger
from cai.messages import assistant, user
from cai.method.constitution import Constitution
from cai.observe.progress import Progress
from cai.report import page as page_
from cai.run.plan import STAGES
from cai.scoring.adherence import Adherence, AdherenceRates, Reliability
from cai.scoring.statistics import CountedInterval, ModelComparison, share
from cai.stages import dpo, evaluate, label, report, revise, sft
from cai.stages.base import Context, Input
from cai.stages.judge_summary import Judge
from cai.stages.summary import Summary
from cai.stages.training_rows import Audit
from cai.store.files import write_json
from cai.store.manifest import read_manifest
from cai.store.run_folder import Run
from tests.report.test_page import EVIL, HOSTILE, JUDGED, KINDS, metrics

PRINCIPLES = """
principles:
  - id: kind
    critique: "Say what is <unkind>."
    revision: "Rewrite it."
    comparison: "Which is kinder?"
"""
AUDIT: dict[str, Any] = {
    **{
        "read": 9,
        "skipped": 0,
        "instructions": 6,
        "revisions": None,
        "no_answer": 2,
        "overlapping": 1,
        "not_drawn": 0,
        "rows": 6,
        "truncated": 3,
    },
    **{
        "lost_end_of_turn": 1,
        "dropped": 0,
        "trained_tokens": 77,
        "sources": {"seed": 6},
        "overlaps": {"red": 1},
    },
    "lengths": length_metrics([3, 4, 5, 6, 7, 900]),
}
JUDGE = Judge(
    name="sft",
    is_other_model=False,
    metrics={key: JUDGED[key] for key in JUDGED.keys() - {"doubts", "labelled"}},
    warnings=JUDGED["doubts"],
    labelled=JUDGED["labelled"],
)
SECTIONS = (
    "picture",
    "results",
    "stages",
    "training",
    "principles",
    "judge",
    "cost",
    "records",
    "configuration",
)


def finished_run(root: Path, texts: list[str], measured: dict[str, Any], count: int = 1) -> Context:
    """A finished run, with `texts` wherever a model, a data set or a person can put them."""
    run, inputs = Run(root), {}
    messages = [[{"role": "user", "content": text}] for text in texts] * count
    answers = [
        {"model": m, "suite": s, "id": f"{i}", "prompt": p, "answer": p[0]["content"]}
        | {"reference": p[0]["content"], "refuses": False}
        for m in measured
        for s in ("red", "mild")
        for i, p in enumerate(messages)
    ]
    step = {"principle": "kind", "gates": ["unchanged"], "seeds": [1, 2], "tokens": 3}
    revisions = [
        {"id": f"{i}", "source": "set", "prompt": p, "answer": p[0]["content"]}
        | {
            "steps": [step | {"critique": p[0]["content"], "revision": p[0]["content"]}],
            "final": "",
        }
        for i, p in enumerate(messages)
    ]
    pairs = [
        {
            "id": f"{i}",
            "prompt": p,
            "chosen": p,
            "rejected": p,
            "probability": 0.6,
            "orders": [0.4, 0.8],
            "kind": "feedback",
        }
        | {"principles": ["kind"]}
        for i, p in enumerate(messages)
    ]
    history = [{"loss": 3.0, "step": 1}, {"eval_loss": 2.5, "step": 2}, {"loss": 2.0, "step": 2}]
    probed = text_metrics(
        [((user(texts[0]), assistant(text)), {"task": text}) for text in texts]
    ) | {"openings": {texts[0]: 1}, "different_openings": 1}
    audit = Audit(**AUDIT, skipped_first=texts, texts=probed)
    suites = {
        name: {"kind": kind, "prompts": {"data": [texts[0]]}, "shots": [0], "attacks": []}
        for name, kind in KINDS.items()
    }
    suites["loss"]["shots"] = [0, 2]
    rules = root / "rules.yaml"
    rules.write_text(PRINCIPLES, encoding="utf-8")
    revised = revise.Revised(len(messages), 0, 0, 0, {}, 0.0, 0.0)
    stages: dict[str, Summary] = {
        "sft": sft.Summary("sft", audit, 0, 2, 2.5),
        "revise": revise.Summary(
            prompts=len(messages),
            overlapping=0,
            rows=0,
            failed=0,
            kept=0,
            gates={"unchanged": 1},
            principles={texts[0]: revised, "kind": revised},
            rounds={"1": revised},
        ),
        "sl_cai": sft.Summary("sl_cai", audit, 0, 2, None),
        "label": label.Summary("feedback", texts[0], 8, {"uncertain": 2, "judged": 10}, JUDGE),
        "dpo": dpo.Summary(
            pairs=8,
            dropped=0,
            held_out_rows=0,
            steps=2,
            metrics={"rewards/margins": -0.25, "rewards/accuracies": 0.0},
            guards=[f"At step 4 {EVIL}"],
        ),
        "evaluate": evaluate.Summary(
            {"red": 100}, measured, {"by": "rules"}, None, [], [], [], [], 0
        ),
    }
    sections: dict[str, Any] = {
        "revise": {"model": None},
        "label": {"judge": "sft"},
        "evaluate": {"suites": suites},
    }
    for number, (stage, summary) in enumerate(stages.items()):
        key = f"{number}" * 64
        work, _ = run.begin(stage, key)
        if stage in ("sft", "sl_cai", "dpo"):
            write_json(work / "history.json", history)
        if stage == "revise":
            write_rows(work / "revisions.parquet", revisions)
        if stage == "label":
            write_rows(work / "pairs.parquet", pairs)
        if stage == "evaluate":
            write_rows(work / "answers.parquet", answers)
            write_json(work / "metrics.json", measured)
        section = {stage: sections[stage]} if stage in sections else {}
        section |= (
            {"constitution": Constitution.load(str(rules)).revision_digests()}
            if stage == "revise"
            else {}
        )
        published = plain(summary)
        done = run.publish(stage, 1, key, section, published, time.time())
        inputs[stage] = Input(str(run.folder(stage, key) / "out"), done.output)
    write_json(root / "run.json", {"schema": 1, "config": {"name": texts[0], "note": texts}})
    model = ModelConfig(texts[0], "hub", "someone/model")
    progress = Progress("report", quiet=True)
    context = Context(
        "report", 0, root, root, model, EngineConfig(), {}, {}, str(rules), inputs, progress
    )
    ledger = Ledger(root / "ledger.sqlite")
    ledger.put(
        "evaluate",
        context.model_digest("base"),
        [("ab" * 32, Completion("hello", "stop", 10, 50, 2.0))],
    )
    ledger.put("evaluate", "c0ffee00" * 8, [("cd" * 32, Completion("hello", "stop", 10, 50, 2.0))])
    ledger.close()
    return context


def summarised(context: Context) -> Context:
    """The context as the worker makes it: with the summaries of the inputs."""
    summaries = {}
    for name in context.inputs:
        manifest = read_manifest(context.output(name).parent)
        assert manifest is not None
        stage = next(stage for stage in STAGES if stage.kind == manifest.kind)
        summaries[name] = stage.summary.load(manifest)
    return dataclasses.replace(context, summaries=summaries)


def rewrite(context: Context, stage: str, summary: Summary, **parts: Any) -> None:
    """Puts another summary, and other ingredients, into a finished stage's manifest."""
    file = context.output(stage).parent / "manifest.json"
    manifest = json.loads(file.read_text())
    ingredients = manifest["ingredients"] | parts
    changed = {"summary": plain(summary), "ingredients": ingredients, "checksum": ""}
    file.write_text(json.dumps(manifest | changed))


def page_of(context: Context, records: int = 50) -> str:
    work = context.root / "page"
    work.mkdir(exist_ok=True)
    report.run(ReportConfig(records), work, summarised(context))
    return (work / "report.html").read_text(encoding="utf-8")


def embedded(page: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


class Outline(HTMLParser):
    """Every element of a page with its attributes, and all text outside scripts and styles."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def prose(self) -> bool:
        return not self.elements or self.elements[-1][0] not in ("script", "style")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data if self.prose() else ""

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    page = page_of(finished_run(tmp_path, HOSTILE, metrics((1, 2), (1, 2))))
    outline = Outline(page)
    assert EVIL not in page
    assert "onerror=alert(2)>" not in page
    assert outline.count("script") == 2  # the records and the page's own
    assert outline.count("img") == 0
    assert not [a for _, a in outline.elements if any(name.startswith("on") for name in a)]
    assert EVIL in outline.text  # escaped, and so readable


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    context = finished_run(tmp_path, HOSTILE, metrics((1, 2), (1, 2)))
    data = embedded(page_of(context))
    stored = [
        text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in HOSTILE
    ]  # as write_rows
    assert [row["prompt"] for row in data["revisions"]] == stored
    assert [row["steps"][0]["revision"] for row in data["revisions"]] == stored
    assert [row["chosen"] for row in data["pairs"]] == stored
    assert [row["answers"]["dpo"]["text"] for row in data["answers"]] == stored * 2
    assert data["answers"][0]["suite"] == "red"


def test_every_section_is_there_and_nothing_is_fetched(tmp_path: Path) -> None:
    page = page_of(finished_run(tmp_path, ["How do I pick a lock?"], metrics((12, 31), (2, 3))))
    outline = Outline(page)
    ids = [attrs["id"] for _, attrs in outline.elements if "id" in attrs]
    assert [one for one in ids if one in SECTIONS] == list(SECTIONS)
    assert len(ids) == len(set(ids))
    links = {a[key] for _, a in outline.elements for key in ("src", "href") if key in a}
    assert links == {"data:,", *(f"#{section}" for section in SECTIONS)}
    assert (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
        in page
    )
    assert outline.count("h1") == outline.count("main") == 1
    assert all("scope" in attrs for tag, attrs in outline.elements if tag == "th")
    assert all("aria-labelledby" in attrs for tag, attrs in outline.elements if tag == "svg")
    assert "rows left out that do not fit" not in outline.text  # a fault that did not happen
    assert "reward margin -0.25" in outline.text
    assert "first unfitHow do I pick a lock?" in outline.text  # a row's heading and its figures
    assert "openings1 different: How do I pick a lock? 1" in outline.text
    assert f"dpo: At step 4 {EVIL}" in outline.text
    assert "(c0ffee00)" in outline.text  # a model of an earlier configuration
    assert re.search(r"<td>base</td><td class=\"n\">1</td>", page)


def test_shots_have_tables_of_their_own_with_every_figure(tmp_path: Path) -> None:
    page = page_of(finished_run(tmp_path, ["Hello"], metrics((1, 2), (1, 2))))
    tables = re.findall(r'aria-label="Results on ([^"]*)".*?</table>', page, re.DOTALL)
    assert tables == ["red", "mild", "loss", "loss, 2 shots"]
    few = page[page.index('aria-label="Results on loss, 2 shots"') :].split("</table>")[0]
    assert [
        few.index(head) for head in ("exact match", "ROUGE-L", "too long")
    ]  # the last: of dpo alone
    (_, base), (_, dpo) = re.findall(r'<th scope="row">(base|dpo)</th>(.*?)</tr>', few, re.DOTALL)
    assert (
        base.count("<td") == dpo.count("<td") == 3
        and "33 %" in base
        and "25 %" in dpo
        and "25 %" not in base
    )
    assert embedded(page)["answers"][0]["reference"] == "Hello"


def test_a_principle_is_quoted_only_while_its_file_says_the_same(tmp_path: Path) -> None:
    context = finished_run(tmp_path, ["Hello"], metrics((1, 2), (1, 2)))
    assert "Say what is &lt;unkind&gt;." in page_of(context)
    (tmp_path / "rules.yaml").write_text(PRINCIPLES.replace("<unkind>", "cruel"), encoding="utf-8")
    assert "Say what is" not in page_of(context)
    (tmp_path / "rules.yaml").unlink()
    assert "Say what is" not in page_of(context)


def test_no_picture_without_both_kinds_of_suite(tmp_path: Path) -> None:
    one_kind = {model: {"red": suites["red"]} for model, suites in metrics((1, 2), (0, 0)).items()}
    page = page_of(finished_run(tmp_path, ["Hello"], one_kind))
    assert "No picture" in page
    assert "No two models were evaluated on benign prompts" in page


def test_the_judges_section_shows_calibration_and_shows_where_there_is_none(tmp_path: Path) -> None:
    context = finished_run(tmp_path, ["Hello"], metrics((1, 2), (1, 2)))
    page = Outline(page_of(context))
    assert "right on labelled pairs55 % [34, 74]" in page.text.replace("\n", "")
    assert "0.5 to 0.6" in page.text and "4 points apart" in page.text and EVIL in page.text
    unsure = Judge("sft", False, {"flipped": JUDGED["flipped"]}, [], [])
    ruled = {"prompts": 9, "benign_prompts": 4, "harmful": 5, "harmless": 3, "all_good": 1}
    for summary, sentence in (
        (label.Summary("feedback", "m", 8, {"judged": 10}, unsure), "accuracy is not known"),
        (
            label.Summary("revision", "m", 8, {"revisions": 8}, None),
            "every revision is preferred to the first answer",
        ),
        (
            label.Summary("rule", "m", 8, ruled, None),
            "Refusal rates by these rules flatter what was trained so; read its answers.",
        ),
    ):
        rewrite(context, "label", summary)
        text = " ".join(Outline(page_of(context)).text.split())
        assert text.count(sentence) == 2  # among the notices, and in the judge's section
    for line in (
        "8 pairs",
        "of them harmless4",
        "pairs on harmful prompts5",
        "prompts with good answers alone1",
    ):
        assert line in text


def test_paired_differences_and_a_judges_wins_stand_with_the_results(tmp_path: Path) -> None:
    context = finished_run(
        tmp_path, ["Hello"], {**metrics((1, 2), (1, 2)), "/other": metrics((2, 2), (2, 2))["dpo"]}
    )
    rate, row = (
        {"value": 0.25, "low": -0.5, "high": 0.75, "count": 4},
        {"suite": "red_team", "figure": "refusal"},
    )
    differences = [
        {"first": first, "second": "dpo", "difference": rate, "p": 0.625} | row
        for first in ("base", "sft")
    ]
    win = {
        "first": "dpo",
        "second": "base",
        "suite": "red_team",
        "judge": EVIL,
        "judges_itself": True,
        "identical": 3,
    }
    measured = summarised(context).summaries["evaluate"]
    assert isinstance(measured, evaluate.Summary)
    wins = [win | dict.fromkeys(("win", "tie", "loss"), rate)]
    attack = {"model": "dpo", "suite": "red", "attack": "role_play", "rise": rate, "p": 0.375}
    refusal = {"by": "classifier"}
    changed = dataclasses.replace(
        measured, comparisons=differences, wins=wins, attacks=[attack], refusal=refusal
    )
    rewrite(context, "evaluate", changed)
    text = " ".join(Outline(page_of(context)).text.split())
    assert "role play 25 % [-50, 75]0.375" in text
    assert text.count("0.625") == 1  # of those with the first model alone
    assert (
        f"A judge ({EVIL}, one of the two itself)" in text
        and "dpo wins 25 % [-50, 75] against base" in text
    )
    assert "classifier fitted to people's labels" in text
    first_screen, results = text.split("Each model less base")[0].split(" Results ", 1)
    assert (
        "/other" in results and "/other" not in first_screen
    )  # the arrows and the verdict follow the stages


def test_a_judge_of_harm_and_tasks_of_the_harness_stand_with_the_results(tmp_path: Path) -> None:
    one = {"value": 0.25, "low": 0.125, "high": 0.75, "count": 4}
    measured = metrics((1, 2), (1, 2))
    measured["dpo"]["red"]["harmful"] = one
    measured["dpo"][f"{EVIL} (lm-eval)"] = {"acc": one}
    context = finished_run(tmp_path, ["Hello"], measured)
    harm = {"judge": EVIL, "judges_itself": ["dpo"], "flipped": one, "unjudged": 0}
    summary = summarised(context).summaries["evaluate"]
    assert isinstance(summary, evaluate.Summary)
    rewrite(context, "evaluate", dataclasses.replace(summary, harm=harm))
    text = " ".join(Outline(page_of(context)).text.split())
    assert (
        f"Harmful: {EVIL} says" in text
        and "(of dpo it judges itself)" in text
        and "harmful, says a judge" in text
    )
    assert "for 25 % [12, 75] of the answers" in text
    assert f"{EVIL} (lm-eval) lm-evaluation-harness (4 prompts)" in text


def test_adherence_stands_with_the_principles_and_in_the_verdict(tmp_path: Path) -> None:
    context = finished_run(tmp_path, ["Hello"], metrics((1, 2), (1, 2)))
    summary = summarised(context).summaries["evaluate"]
    assert isinstance(summary, evaluate.Summary)
    sure = Reliability(share(1, 20), share(0, 20), 0.9, "")
    fall: CountedInterval = {"value": -0.5, "low": -0.7, "high": -0.3, "count": 20}
    change = ModelComparison(
        first="base",
        second="dpo",
        suite=EVIL,
        figure="adherence",
        difference=fall,
        p=0.002,
    )
    rates = {"base": share(15, 20), "dpo": share(5, 20)}
    rows = [
        AdherenceRates(EVIL, 20, rates, sure, share(9, 10), [change]),
        AdherenceRates(
            "calm",
            20,
            rates,
            dataclasses.replace(sure, doubt="the judge goes by position"),
            None,
            [change],
        ),
    ]
    warnings = ["evaluate.adherence: No prompt is about rest."]
    measured = Adherence("big", [], 0, sure, share(9, 10), rows, [], ["calm"], ["rest"], warnings)
    rewrite(context, "evaluate", dataclasses.replace(summary, adherence=measured))
    text = " ".join(Outline(page_of(context)).text.replace("\u00a0", " ").split())
    assert (
        f"By principle, says a judge: got worse: {EVIL} from 75 % [53, 89] (base) to 25 % [11, 47] "
        "(dpo); for 1 of 2 the judge (big) can't be relied on." in text
    )
    assert "WORSE: dpo after base -50 points [-70, -30]" in text
    assert "calm 20 suites75 % [53, 89]25 % [11, 47]5 %NOT RELIABLE: the judge goes" in text
    assert "No prompt is about rest." in text


def test_a_stage_keeps_its_own_configuration_when_the_run_has_moved_on(tmp_path: Path) -> None:
    context = finished_run(tmp_path, ["Hello"], metrics((1, 2), (1, 2)))
    write_json(
        tmp_path / "run.json",
        {"schema": 1, "config": {"name": "later", "label": {"judge": "base"}}},
    )
    assert "The preferences came from sft," in page_of(context)
    (tmp_path / "run.json").unlink()
    assert "The preferences came from sft," in page_of(context)


def test_later_rounds_stand_beside_the_first(tmp_path: Path):
    measured = metrics((10, 40), (5, 10))
    measured = {"dpo2": measured["dpo"], **measured}
    context = finished_run(tmp_path, ["text"], measured, count=3)
    evaluated = summarised(context).summaries["evaluate"]
    assert isinstance(evaluated, evaluate.Summary)
    rate = {"count": 100}
    pair = {"first": "base", "second": "dpo2", "figure": "refusal", "p": 0.001}
    rise = pair | {"suite": "red_team", "difference": dict(rate, value=0.3, low=0.22, high=0.4)}
    rewrite(context, "evaluate", dataclasses.replace(evaluated, changes=[rise]))
    run, added = Run(tmp_path), {}
    coin = Judge("sft", False, {}, ["The judge throws coins."], [])
    for stage, kind, summary in (
        ("label2", "label", label.Summary("feedback", "m", 8, {"judged": 8}, coin)),
        ("dpo2", "dpo", dpo.Summary(8, 0, 0, 3, {}, ["At step 9 it broke."])),
    ):
        work, _ = run.begin(stage, stage.ljust(64, "0"))
        pairs = read_rows(Path(context.inputs["label"].path) / "pairs.parquet")
        write_rows(work / "pairs.parquet", [row | {"id": f"second{row['id']}"} for row in pairs])
        write_json(work / "history.json", [{"loss": 0.5, "step": 1}])
        parts = {"kind": kind}
        done = run.publish(stage, 1, stage.ljust(64, "0"), parts, plain(summary), time.time())
        added[stage] = Input(str(run.folder(stage, stage.ljust(64, "0")) / "out"), done.output)
    page = page_of(dataclasses.replace(context, inputs={**context.inputs, **added}), records=4)
    shown = Outline(page).text
    assert "label2: The judge throws coins." in shown and "dpo2: At step 9 it broke." in shown
    told = " ".join(shown.replace("\u00a0", " ").split())
    assert "rose from 10 % [6, 17] (base) to 40 % [31, 50] (dpo2), by 30 points [" in told
    assert "dpo2basered team 30 % [22, 40] 0.001shown" in told
    assert [row["id"] for row in embedded(page)["pairs"]] == ["0", "second0", "1", "second1"]


def test_a_price_is_of_prompt_and_new_tokens(tmp_path: Path) -> None:
    rows = [{"stage": "evaluate", "model": "ab" * 32, "completions": 2}]
    rows = [
        row | {"prompt_tokens": 3_000_000, "new_tokens": 500_000, "seconds": 2.0} for row in rows
    ]
    priced = page_.cost_rows(rows, {}, Price(prompt=0.5, new=2.0))
    assert [row["price"] for row in priced] == [2.5, 2.5]
    for priceless in (None, Price(hour=2.5)):
        assert "price" not in page_.cost_rows(rows, {}, priceless)[0]
    context = finished_run(tmp_path, ["hello"], metrics((1, 2), (1, 2)))
    work = tmp_path / "page"
    work.mkdir()
    report.run(ReportConfig(50, Price(1000.0, 1e6)), work, summarised(context))
    assert "50.0100" in (work / "report.html").read_text(
        encoding="utf-8"
    )  # 10 prompt tokens and 50 new ones
