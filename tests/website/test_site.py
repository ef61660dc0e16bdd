"""The site: lists, links that leave it, llms.txt, and the strict build."""

from pathlib import Path

import pytest

import cai
from website.__main__ import with_folders
from website.api import page, public_names
from website.links import fault, loaded_from_elsewhere, outside_links
from website.lists import widened
from website.llms import llms_txt
from website.pages import written

LIST = """\
1. Write it:

   ```yaml
   principles:
     - id: calm
   ```

2. Read it
   again.
   - twice
10. Ten.

    More.

- One
lazy
  two.

After.
"""

WIDE = """\
1. Write it:

    ```yaml
    principles:
      - id: calm
    ```

2. Read it
    again.
    - twice
10. Ten.

    More.

- One
  lazy
    two.

After.
"""


def test_lists_are_indented_by_four_columns():
    assert widened(LIST) == WIDE
    assert widened("```\n- a\n  b\n```\n") == "```\n- a\n  b\n```\n"


def test_links_that_leave_the_site_have_a_sound_form():
    links = list(outside_links(written()))
    assert len(links) >= 3
    assert [(name, link) for name, link in links if fault(link)] == []


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://arxiv.org/abs/2212.08073", ""),
        ("https://learn.microsoft.com/windows/wsl/install#first", ""),
        ("http://arxiv.org/abs/2212.08073", "https"),
        ("ftp://arxiv.org/abs", "https"),
        ("https://localhost:8000/v1", "host"),
        ("https:///abs", "host"),
        ("https://arxiv.org/abs/2212.08073.", "punctuation"),
        ("https://arxiv.org//abs", "//"),
        ("https://arxiv.org/a b", "space"),
    ],
)
def test_a_link_of_another_form_is_named(address: str, message: str):
    assert (message in fault(address)) if message else not fault(address)


def test_links_in_code_are_none():
    text = "[a](https://a.org/x) `[b](http://b)`\n\n```\n[c](http://c)\n```\n<https://d.org>\n"
    assert list(outside_links({"p": text})) == [("p", "https://a.org/x"), ("p", "https://d.org")]


def test_a_page_that_loads_something_from_elsewhere_is_named(tmp_path: Path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "a.html").write_text('<a href="https://a.org/x">a</a><script src="a.js"></script>')
    assert loaded_from_elsewhere(tmp_path) == []
    (tmp_path / "conf/b.html").write_text(
        '<script async src="https://cdn.org/b.js"></script><link rel=x href="//fonts.org/c.css">'
    )
    assert loaded_from_elsewhere(tmp_path) == [
        "conf/b.html: loads https://cdn.org/b.js",
        "conf/b.html: loads //fonts.org/c.css",
    ]


def test_llms_txt_has_each_page_with_its_first_sentence(tmp_path: Path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "a.md").write_text("# `A`\n\n| x |\n| - |\n\nSee [B](b.md) et al. 2022. More.\n")
    (tmp_path / "conf/index.md").write_text("# Settings\n\nAll of\nthem. And more.\n")
    (tmp_path / "conf/dpo.md").write_text("# dpo\n\n- a list\n")
    (tmp_path / "api.md").write_text("# API\n\nNames.\n\n::: cai.Run\n")
    nav = with_folders([{"Home": "a.md"}, {"Other": [{"Settings": "conf/"}, "api.md"]}], tmp_path)
    assert llms_txt("cai", "What it is.", nav, tmp_path) == (
        "# cai\n\n> What it is.\n\n"
        "## Home\n\n- [`A`](a.md): See B et al. 2022.\n\n"
        "## Other\n\n- [Settings](conf/index.md): All of them.\n- [dpo](conf/dpo.md)\n"
        "- [API](api.html): Names.\n"
    )


def test_the_page_of_the_api_has_every_public_name():
    assert set(public_names()) == set(cai.__all__)
    assert all(f"::: {module}.{name}\n" in page() for name, module in public_names().items())
