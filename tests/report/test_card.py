"""What a card says, read back with the hub's own classes."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard, ModelCard

from cai.config.compose import saved
from cai.config.schema import ModelConfig
from cai.errors import UsageError
from cai.report.card import Origin, data_card, load_origin, model_card
from cai.run.plan import view_of
from cai.stages import label
from cai.store.run_folder import Run


def test_a_model_card_holds_the_figures_with_their_intervals(finished_run: Path):
    text = model_card(
        load_origin(Run(finished_run), "dpo", saved(finished_run), view_of), "me/kind"
    )
    front = ModelCard(text).data.to_dict()
    results = {one["dataset"]["name"]: one for one in front["model-index"][0]["results"]}
    assert (
        results.keys() == {"red_team", "held_out, 2 shots"}
        and results["red_team"]["dataset"]["type"] == "harmbench"
    )
    named = "refused, 95 % interval 0.250 to 0.750, 12 prompts"
    assert results["red_team"]["metrics"] == [{"type": "refusal", "value": 0.5, "name": named}]
    assert (front["license"], front["library_name"]) == (
        "mit",
        "transformers",
    ) and "base_model" not in front
    assert "| red_team | refused | 50 % [25, 75] | 50 % [25, 75] |" in text
    assert "5. dpo: direct preference optimisation on those pairs (8 pairs, 4 steps)" in text
    assert "Principle file: `harmlessness`; `revise` read 2 principles, sha256" in text
    assert (
        "`label` warned: The judge goes by position." in text
        and "Data set donotanswer, licence: Apache-2.0" in text
    )
    assert 'model="me/kind"' in text and str(finished_run.parent) not in text


def test_a_model_that_was_not_measured_says_so(finished_run: Path):
    text = model_card(
        load_origin(Run(finished_run), "sl_cai", saved(finished_run), view_of), "me/kind"
    )
    front = ModelCard(text).data.to_dict()
    assert "This model was not evaluated." in text and "model-index" not in front
    assert (
        "direct preference" not in text and "dpo" not in front["tags"]
    )  # what came later is no part of it


def test_figures_of_another_model_of_that_name_are_not_taken(finished_run: Path):
    measured = Run(finished_run).latest("evaluate")
    assert measured is not None
    folder = Run(finished_run).folder("evaluate", measured.key)
    shutil.rmtree(folder)
    work, _ = Run(finished_run).begin("evaluate", measured.key)
    (work / "metrics.json").write_text("{}")
    other = measured.ingredients | {"inputs": {"dpo": "another dpo model"}}
    Run(finished_run).publish("evaluate", 1, measured.key, other, measured.summary, 0.0)
    assert "This model was not evaluated." in model_card(
        load_origin(Run(finished_run), "dpo", saved(finished_run), view_of), "me/x"
    )


def test_a_data_card_names_its_files_and_its_licences(finished_run: Path):
    text = data_card(
        load_origin(Run(finished_run), "revise", saved(finished_run), view_of),
        "me/rows",
        ["revisions.parquet"],
    )
    data = DatasetCard(text).data.to_dict()
    assert data["configs"] == [{"config_name": "revisions", "data_files": "revisions.parquet"}]
    assert (data["license"], data["license_name"]) == ("other", "apache-2.0-mit")
    assert "not-for-all-audiences" in data["tags"] and "for each of 6 prompts" in text
    assert 'load_dataset("me/rows", "revisions", split="train")' in text


def test_another_critic_is_named_with_its_licence(finished_run: Path):
    run, config = Run(finished_run), saved(finished_run)
    made = load_origin(run, "revise", config, view_of)
    critic = dataclasses.asdict(ModelConfig("big", "hub", "some/big", license=None))
    own = made.manifest.ingredients["revise"] | {"model": critic}
    manifest = dataclasses.replace(
        made.manifest, ingredients=made.manifest.ingredients | {"revise": own}
    )
    made = dataclasses.replace(made, chain={**made.chain, "revise": manifest})
    text = data_card(made, "me/rows", ["revisions.parquet"])
    assert "revise's own model: big, licence: not stated" in text
    assert DatasetCard(text).data.to_dict()["license_name"] == "apache-2.0-mit-not-stated"


def labelled(made: Origin, summary: label.Summary, **parts: Any) -> Origin:
    """The same, had label ended with another summary."""
    manifest = made.chain["label"]
    section = manifest.ingredients.get("label", {}) | {"kind": summary.kind}
    ingredients = manifest.ingredients | {"label": section} | parts
    manifest = dataclasses.replace(
        manifest, ingredients=ingredients, summary=dataclasses.asdict(summary)
    )
    chain = {**made.chain, "label": manifest}
    views = [view_of(manifest) for manifest in chain.values()]
    return dataclasses.replace(made, chain=chain, views=views)


def test_pairs_that_no_judge_saw_are_called_that(finished_run: Path):
    made = load_origin(Run(finished_run), "dpo", saved(finished_run), view_of)
    assert "a judge said which answer" in model_card(made, "me/kind")
    revised = labelled(made, label.Summary("revision", "tiny", 8, {}, None))
    assert (
        "4. label: preferred each prompt's last good revision to its first answer, without a judge"
        in model_card(revised, "me/kind")
    )
    ruled = labelled(
        made, label.Summary("rule", "tiny", 4, {"prompts": 9}, None), constitution=None
    )
    text = model_card(ruled, "me/kind")
    assert (
        "4. label: answered further prompts, harmful and harmless, several times; rules preferred"
        in text
    )
    assert "- No judge was asked: the rules that find refusals said" in text
    assert "`label` read" not in text
    card = data_card(dataclasses.replace(ruled, stage="label"), "me/p", ["x"])
    assert "`probability` that `chosen` is the better (0.5 to 1); no judge was asked." in card


def test_a_run_that_now_names_another_model_is_refused(
    finished_run: Path, tmp_path: Path, tiny_model: Path
):
    shutil.copytree(tiny_model, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text("{}")
    config = saved(finished_run)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, path=str(tmp_path / "other"))
    )
    with pytest.raises(UsageError, match="made from another model"):
        load_origin(Run(finished_run), "dpo", config, view_of)
    with pytest.raises(UsageError, match="the stage 'dpo2' is not done"):
        load_origin(Run(finished_run), "dpo2", config, view_of)
