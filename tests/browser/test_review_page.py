"""`cai review` in a headless Chromium: fifty verdicts by keyboard, a kill, and nothing is lost."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cai.store.run_folder import Run
from tests.report.test_page import EVIL, HOSTILE, metrics
from tests.review.test_queue import made, publish, step, turns
from tests.stages.test_report import finished_run

pytestmark = pytest.mark.browser


class Servers:
    """`cai review` in processes of their own, which end with the test."""

    def __init__(self, folder: Path):
        self.folder, self.running = folder, []

    def start(self, *words: str) -> str:
        """The address that it prints."""
        command = [sys.executable, "-m", "cai", "review", *words]
        process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, text=True)
        self.running.append(process)
        assert process.stdout is not None
        return process.stdout.readline().strip()

    def kill(self) -> None:
        for process in self.running:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        self.running = []


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    servers = Servers(tmp_path)
    yield servers
    servers.kill()


@pytest.fixture
def opened(chromium: Any) -> Iterator[Any]:
    """`opened(address)`: the page in a tab. Errors, messages and foreign requests fail the test."""
    contexts, heard = [], []

    def hear(message: Any) -> None:
        if "net::ERR_CONNECTION_REFUSED" not in message.text:  # of a server that was killed
            heard.append(message.text)

    def open_page(address: str, **settings: Any) -> Any:
        home = address.split("?")[0]
        contexts.append(
            chromium.new_context(**{"viewport": {"width": 1280, "height": 800}} | settings)
        )
        page = contexts[-1].new_page()
        page.on("console", hear)
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
        page.on(
            "request", lambda request: request.url.startswith(home) or heard.append(request.url)
        )
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not heard


def counted(page: Any, text: str) -> None:
    """Waits until the line above the card says `text`; fails after 5 seconds."""
    from playwright.sync_api import expect

    expect(page.locator("#count")).to_have_text(text)


def saved(folder: Path, name: str = "mine") -> list[dict[str, Any]]:
    lines = (folder / "verdicts" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_fifty_verdicts_survive_a_reload_a_kill_and_a_restart(
    servers: Servers, opened: Any, tmp_path: Path
):
    made(tmp_path, 40)  # 80 revisions
    page = opened(servers.start("mine", "--reviewer", "ann"))
    counted(page, "0 of 80, this is number 1")
    for number in range(50):
        page.keyboard.press("2" if number % 3 == 0 else "1")
        counted(page, f"{number + 1} of 80, this is number {number + 2}")
    page.reload()
    counted(page, "50 of 80, this is number 51")
    servers.kill()
    page.keyboard.press("1")
    page.wait_for_selector("#status.bad")
    assert "does not answer" in page.locator("#status").inner_text()
    page = opened(servers.start("mine", "--reviewer", "ann"))
    counted(page, "50 of 80, this is number 51")
    words = [line["verdict"] for line in saved(tmp_path)]
    assert words == ["bad" if number % 3 == 0 else "good" for number in range(50)]
    assert len({line["revision"] for line in saved(tmp_path)}) == 50


def test_every_key_does_what_the_help_says(servers: Servers, opened: Any, tmp_path: Path):
    made(tmp_path, 4)
    page = opened(servers.start("mine", "--reviewer", "ann"))
    press = page.keyboard.press
    press("?")
    assert page.locator("#keys").is_visible()
    press("1")  # goes to nobody
    press("Escape")
    counted(page, "0 of 8, this is number 1")
    press("j")
    counted(page, "0 of 8, this is number 2")
    press("k")
    counted(page, "0 of 8, this is number 1")
    press("e")
    page.locator("#edited").fill("12 e j u: a text of mine")
    press("Control+Enter")
    counted(page, "1 of 8, this is number 2")
    press("e")
    press("Escape")
    page.wait_for_selector("#editor", state="hidden")
    press("2")
    counted(page, "2 of 8, this is number 3")
    for number in (2, 1):
        press("k")
        counted(page, f"2 of 8, this is number {number}")
    assert "12 e j u: a text of mine" in page.locator("#card").inner_text()
    press("n")
    counted(page, "2 of 8, this is number 3")
    press("u")
    counted(page, "1 of 8, this is number 2")
    page.locator("[data-kind=pair]").click()
    counted(page, "0 of 4, this is number 1")
    for number, key in enumerate(["1", "2", " "], 1):
        press(key)
        counted(page, f"{number} of 4, this is number {number + 1}")
    words = [line["verdict"] for line in saved(tmp_path)]
    assert words == ["edit", "bad", "undone", "a", "b", "tie"]
    assert "feedback" not in page.locator("header").inner_text()


def hostile_run(root: Path) -> Run:
    run = made(root, 1)
    texts = [text.encode("utf-8", "replace").decode() for text in HOSTILE]
    revisions = [
        {"id": f"{number}", "source": "s", "prompt": turns("user", text), "answer": text}
        | {"steps": [step(f"{text} {number}") | {"critique": text, "principle": text[:99]}]}
        for number, text in enumerate(texts)
    ]
    training = [{"id": row["id"], "round": 1, "last": True} for row in revisions]
    pairs = [
        {"id": f"{number}", "prompt": turns("user", text), "principles": [text[:99]]}
        | {"chosen": turns("assistant", text), "rejected": turns("assistant", f"{text} {number}")}
        for number, text in enumerate(texts)
    ]
    for stage, files in (
        ("revise", {"revisions": revisions, "training": training}),
        ("label", {"pairs": pairs}),
    ):
        (run.root / "latest" / stage).unlink()
        for folder in (run.root / stage).iterdir():
            folder.rename(folder.with_name("old"))
        publish(run, stage, files, {})
    return run


def test_a_click_while_an_answer_is_awaited_is_not_lost(
    servers: Servers, opened: Any, tmp_path: Path
):
    hostile_run(tmp_path)
    page = opened(servers.start("mine"))
    counted(page, f"0 of {len(HOSTILE)}, this is number 1")
    page.evaluate(
        """() => {
          document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "j", bubbles: true }));
          document.querySelector("[data-kind=pair]").click();
        }"""
    )
    page.wait_for_selector("[data-kind=pair][aria-pressed=true]")
    counted(page, f"0 of {len(HOSTILE)}, this is number 1")


def test_hostile_texts_are_text(servers: Servers, opened: Any, tmp_path: Path):
    hostile_run(tmp_path)
    page = opened(servers.start("mine"))
    for kind in ("revision", "pair"):  # it opens with revisions
        if kind == "pair":
            page.locator("[data-kind=pair]").click()
        page.wait_for_selector(f"[data-kind={kind}][aria-pressed=true]")
        seen = ""
        for number in range(1, len(HOSTILE) + 1):
            counted(page, f"0 of {len(HOSTILE)}, this is number {number}")
            seen += page.locator("#card").inner_text()
            page.keyboard.press("j")
        assert EVIL in seen and "</script><img src=x onerror=alert(2)>" in seen
        assert "\u202e" not in seen and "\x1b" not in seen
        assert page.locator("#card script, #card img, #principle img").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_stranger_gets_403(servers: Servers, opened: Any, chromium: Any, tmp_path: Path):
    made(tmp_path, 2)
    address = servers.start("mine")
    home = address.split("?")[0]
    # a page of another origin, which even knows the token
    stranger = chromium.new_context()
    tab = stranger.new_page()
    tab.goto("data:text/html,<p>elsewhere")
    script = """async ([home, token]) => {
      const headers = { "x-review-token": token };
      try { return (await fetch(home + "api/card?kind=pair", { headers })).status; }
      catch { return "refused"; }
    }"""
    assert tab.evaluate(script, [home, address.split("token=")[1]]) == "refused"
    for path in ("", "?token=wrong", "api/card?kind=pair"):
        reply = stranger.request.get(home + path)
        assert reply.status == 403
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        reply = stranger.request.get(address, headers=headers)
        assert reply.status == 403, headers
    stranger.close()
    # nor may the page be put into another's frame
    assert "frame-ancestors 'none'" in opened(address).evaluate(
        "fetch(location).then((reply) => reply.headers.get('content-security-policy'))"
    )


def test_all_records_are_searched_and_turned(servers: Servers, opened: Any, tmp_path: Path):
    from playwright.sync_api import expect

    texts = [f"Tell me about number {number}, please." for number in range(300)]
    root = tmp_path / "outputs" / "large"
    root.mkdir(parents=True)
    finished_run(root, texts, metrics((10, 60), (2, 3)))
    (root / "run.json").write_text("{}")
    page = opened(servers.start("large", "--view"))
    status = page.locator("#status")
    expect(status).to_have_text("1 to 25 of 300")
    page.keyboard.press("j")
    expect(status).to_have_text("26 to 50 of 300")
    page.locator("#query").fill("NUMBER 271,")
    expect(status).to_have_text("1 to 1 of 1")
    assert "number 271," in page.locator("#list article").inner_text()
    page.locator("#query").fill("nothing says this")
    expect(status).to_have_text("No record fits.")
    page.locator("#query").fill("")
    page.locator("[data-kind=answers]").click()
    expect(status).to_have_text("1 to 25 of 600")
    page.locator("#suite").select_option("mild")
    expect(status).to_have_text("1 to 25 of 300")
    page.locator("#model").select_option("dpo")
    expect(page.locator("#list article").first).not_to_contain_text("base")


@pytest.mark.parametrize("width", [1280, 375])
def test_it_needs_no_sideways_scrolling(servers: Servers, opened: Any, tmp_path: Path, width: int):
    made(tmp_path, 2)
    page = opened(servers.start("mine"), viewport={"width": width, "height": 800})
    counted(page, "0 of 4, this is number 1")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
