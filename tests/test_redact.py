"""Secrets: refused in a configuration, and taken out of what is shown or written."""

import pytest

from cai.config.compose import compose
from cai.errors import UsageError
from cai.redact import HIDDEN, printable, redact, redacted

KEY = "planted+Key/0123456789=="


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HTTP 401: wrong key sk-proj-abcdefghijklmnop1234.", f"HTTP 401: wrong key {HIDDEN}."),
        ("token hf_abcdefghijklmnopqrstuvwx", f"token {HIDDEN}"),
        ("https://me:pass@host/simple", f"https://{HIDDEN}@host/simple"),
        ("Authorization: Bearer abcdefgh12", f"Authorization: Bearer {HIDDEN}"),
        ("task-based, risk-averse; max_new_tokens=8", "task-based, risk-averse; max_new_tokens=8"),
        ("see https://host:8000/v1 and mail@host", "see https://host:8000/v1 and mail@host"),
    ],
)
def test_known_forms_are_taken_out_and_nothing_else(text: str, expected: str):
    assert redact(text) == expected


def test_values_of_the_environment_are_taken_out_of_nested_data(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_API_KEY", KEY)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # too short to be one
    found = redacted({"a": [f"x {KEY} y", 1, None, False], KEY: "false"})
    assert found == {"a": [f"x {HIDDEN} y", 1, None, False], HIDDEN: "false"}


@pytest.mark.parametrize(
    "override", ["+dpo.args.hub_token=", "+engine.options.api_key=", "model.path="]
)
def test_a_secret_in_the_configuration_is_refused_without_showing_it(
    override: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MY_API_KEY", "planted-0123456789")
    with pytest.raises(UsageError, match="holds a secret") as caught:
        compose(["experiment=smoke", f"{override}planted-0123456789"])
    assert override.strip("+=") in str(caught.value) and "planted" not in str(caught.value)


def test_a_message_can_not_steer_the_terminal():
    assert printable("a.yaml:1:1: unknown key '\x1b[2J\u202ex\ud800'\n\tand more") == (
        "a.yaml:1:1: unknown key '�[2J�x�'\n\tand more"
    )
