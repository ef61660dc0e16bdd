"""What a stage's bar and its plain lines say."""

import time

import pytest

from cai.observe.progress import Progress


def test_the_time_left_is_the_stages_and_the_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    lines = []
    for later in (None, 300.0, 2 * 3600.0):
        progress = Progress("revise", later=later)
        progress.start(10, "completions")
        now[0] += 20  # 5 seconds each
        progress.advance(4)
        lines.append(capsys.readouterr().err.strip())
    assert lines == [
        "revise: 4/10 completions, ETA 0:30",
        "revise: 4/10 completions, ETA 0:30, run 5:30",
        "revise: 4/10 completions, ETA 0:30, run 2.0 h",
    ]
