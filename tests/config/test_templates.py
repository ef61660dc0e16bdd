"""Templates of data sets in Jinja's marks, which would stay in the text."""

import pytest

from cai.config.compose import compose
from cai.errors import UsageError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Q: {{question}}", "template 1 has Jinja's '{{question}}'; write {question} for the"),
        ("{{ body.text | trim }}", "write {body.text} for the column; braces that belong to the"),
        ("{% if x %}{x}{% endif %}", "has Jinja's '{% if x %}'; cai's templates know no cond"),
    ],
)
@pytest.mark.parametrize("side", ["prompt", "completion"])
def test_jinja_in_a_template_is_refused(text: str, message: str, side: str):
    template = {"prompt": "{a}", "completion": "{b}"} | {side: text}
    pairs = ", ".join(f"{name}: '{value}'" for name, value in template.items())
    override = f"+data.seed.templates=[{{{pairs}}}]"
    with pytest.raises(UsageError) as caught:
        compose([override])
    assert message in str(caught.value)
    assert str(caught.value).startswith("data.seed.templates (override '+data.seed.templates=")


def test_other_braces_are_text():
    text = r'{"a": {x}} { {x} } {{"a": 1}} {a, b} 100 %'
    (template,) = (
        compose([f"+data.seed.templates=[{{prompt: '{text}', completion: '{{y}}'}}]"])
        .data["seed"]
        .templates
    )
    assert template.prompt == text
