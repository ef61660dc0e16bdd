"""The report in a headless Chromium: what a reader sees, and that no record becomes markup."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.test_page import EVIL, HOSTILE, metrics
from tests.stages.test_report import SECTIONS, finished_run, page_of

pytestmark = pytest.mark.browser

LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 375, "height": 800}


@pytest.fixture
def opened(chromium: Any) -> Iterator[Any]:
    """`opened(file)`: the page in a tab. Errors, console messages and requests fail the test."""
    contexts, heard = [], []

    def open_page(file: Path, **settings: Any) -> Any:
        contexts.append(chromium.new_context(**{"viewport": LAPTOP} | settings))
        page = contexts[-1].new_page()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
        page.on(
            "request", lambda request: request.url == file.as_uri() or heard.append(request.url)
        )
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not heard


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    return saved(root, HOSTILE)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("large")
    texts = [f"Tell me about number {number}, please." for number in range(5000)]
    return saved(root, texts)


def saved(root: Path, texts: list[str]) -> Path:
    page_of(finished_run(root, texts, metrics((10, 60), (2, 3))), len(texts))
    return root / "page" / "report.html"


def said(page: Any, text: str) -> None:
    """Waits until the line above the records says `text`; fails after 5 seconds."""
    from playwright.sync_api import expect

    expect(page.locator("#status")).to_have_text(text)


def test_every_section_is_there(hostile: Path, opened: Any) -> None:
    page = opened(hostile)
    for name in SECTIONS:
        section = page.locator(f"#{name}")
        assert section.is_visible(), name
        assert section.bounding_box()["height"] > 40, name
    assert page.locator("#picture svg circle").count() >= 2
    assert page.locator("#stages polyline").count() >= 2


def test_hostile_records_are_text(hostile: Path, opened: Any) -> None:
    page = opened(hostile)
    for kind in ("revisions", "pairs", "answers"):
        page.locator(f"[data-kind={kind}]").click()
        seen = page.locator("#list").inner_text()
        assert EVIL in seen and "</script><img src=x onerror=alert(2)>" in seen, kind
        assert "\u202e" not in seen and "\x1b" not in seen, (
            kind
        )  # marks that turn or colour text are replaced
        assert page.locator("#list script, #list img").count() == 0, kind


def test_a_very_long_text_is_cut_until_it_is_asked_for(hostile: Path, opened: Any) -> None:
    page = opened(hostile)
    page.locator("#query").fill("xxxxxxxxxx")
    said(page, "1 to 1 of 1")
    assert page.locator("#list").inner_text().count("x") < 20_000
    page.locator("#list button.more").first.click()
    assert page.locator("#list").inner_text().count("x") >= 100_000
    assert page.evaluate("document.documentElement.scrollWidth") <= LAPTOP["width"]


def test_filters_and_search_narrow_the_records(large: Path, opened: Any) -> None:
    page = opened(large)
    said(page, "1 to 25 of 5000")
    page.locator("#query").fill("number 4321,")
    said(page, "1 to 1 of 1")
    assert "number 4321," in page.locator("#list article").inner_text()
    page.locator("#query").fill("nothing says this")
    said(page, "No record fits.")
    page.locator("#query").fill("")
    page.locator("[data-kind=answers]").click()
    page.locator("#suite").select_option("mild")
    assert all("mild" in text for text in page.locator("#list article").all_inner_texts())
    page.locator("#model").select_option("dpo")
    assert "base" not in page.locator("#list article").first.inner_text()


def test_five_thousand_records_are_turned_page_by_page(large: Path, opened: Any) -> None:
    page = opened(large)
    assert page.locator("#list article").count() == 25
    assert page.locator("#back").is_disabled()
    page.locator("#next").click()
    said(page, "26 to 50 of 5000")
    page.locator("#back").click()
    said(page, "1 to 25 of 5000")
    page.evaluate("turn(199)")
    said(page, "4976 to 5000 of 5000")
    assert page.locator("#next").is_disabled()
    page.locator("#back").focus()
    page.keyboard.press("Enter")
    said(page, "4951 to 4975 of 5000")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_schemes(hostile: Path, opened: Any, scheme: str) -> None:
    page = opened(hostile, color_scheme=scheme)
    styles = "((style) => [style.color, style.backgroundColor])(getComputedStyle(document.body))"
    ink, paper = (
        [float(part) for part in re.findall(r"[0-9.]+", colour)] for colour in page.evaluate(styles)
    )
    assert contrast(ink, paper) >= 7
    assert (sum(paper[:3]) < 3 * 128) == (scheme == "dark")


def contrast(one: list[float], other: list[float]) -> float:
    """The WCAG's ratio of two colours' luminances, 1 to 21."""

    def luminance(colour: list[float]) -> float:
        linear = [
            c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
            for c in (v / 255 for v in colour[:3])
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_phone_needs_no_sideways_scrolling(hostile: Path, opened: Any) -> None:
    page = opened(hostile, viewport=PHONE)
    for kind in ("revisions", "pairs", "answers"):
        page.locator(f"[data-kind={kind}]").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], kind


def test_it_prints(hostile: Path, opened: Any) -> None:
    page = opened(hostile)
    page.emulate_media(media="print")
    assert page.locator("#results").is_visible()
    assert page.pdf().startswith(b"%PDF")
