"""Templates that write the date, or draw: a dialogue is rendered alike on every day."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from cai.errors import UsageError
from cai.messages import user
from cai.models.chat_template import CHATML, render
from cai.models.load import load_model, load_tokenizer, save_model
from tests.models.test_turn_end import bundled, tokenizer_for

WRITES_DATE = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML


@pytest.fixture
def on_day(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_day(day: int) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> "Clock":
                return cls(2030, 1, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    return set_day


def folder_with(template: str, tiny_model: Path, folder: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_two_stages_on_two_days_render_the_same(tiny_model: Path, tmp_path: Path, on_day: Any):
    folder = folder_with(WRITES_DATE, tiny_model, tmp_path / "dated")
    texts = []
    for day in (1, 2):
        on_day(day)
        tokenizer = load_tokenizer(folder)
        # as trl renders pairs, too
        texts += [render(tokenizer, (user("Hi"),))]
        texts += [
            tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        ]
    assert texts[:2] == texts[2:] and texts[0].startswith("Today: 26 Jul 2024\n")


def test_a_published_folder_has_the_template_that_the_model_brought(
    tiny_model: Path, tmp_path: Path
):
    folder = folder_with(WRITES_DATE, tiny_model, tmp_path / "dated")
    save_model(
        load_model(str(tiny_model), "float32", "cpu"), load_tokenizer(folder), tmp_path / "x"
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "x").chat_template == WRITES_DATE
    assert "26 Jul 2024" in render(load_tokenizer(str(tmp_path / "x")), (user("Hi"),))


@pytest.mark.parametrize("name", ["llama3_2.jinja", "gptoss.jinja"])
def test_the_templates_that_packages_ship_are_fixed(name: str, tmp_path: Path, on_day: Any):
    tokenizer_for(bundled(name)).save_pretrained(tmp_path)
    on_day(1)
    first = render(load_tokenizer(str(tmp_path)), (user("Hi"),))
    on_day(2)
    assert render(load_tokenizer(str(tmp_path)), (user("Hi"),)) == first
    assert "2030" not in first and "2024" in first


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ [1, 2, 3] | random }}" + CHATML, "random"),
        ("{{ lipsum(1) }}" + CHATML, "lipsum"),
        ("{% set f = '%Y' %}{{ strftime_now(f) }}" + CHATML, "strftime_now"),
    ],
)
def test_a_template_that_would_change_is_refused(
    template: str, name: str, tiny_model: Path, tmp_path: Path
):
    with pytest.raises(UsageError, match=f"its chat template uses {name}, so that"):
        load_tokenizer(folder_with(template, tiny_model, tmp_path / "moving"))
