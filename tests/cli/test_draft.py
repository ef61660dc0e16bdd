"""`cai principles draft`: a model's requests for sentences, kept in a file that people edit."""

from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from cai.digest import file_digest
from cai.method.constitution import Constitution
from tests.model_server import ModelHandler, served

Command = Callable[..., CompletedProcess[str]]
SENTENCES = ("Never give doses.", "Speak kindly.")


def reply(order: str) -> str:
    """What the server's model writes; it cannot write comparisons of kindness."""
    rule = order.split("A rule for an assistant: ")[1].split("\n")[0]
    if "one question" in order:
        return "I can't do that." if "kindly" in rule else '"Which of these\ngives no dose?"'
    return f"{'Rewrite' if 'again' in order else 'Criticise'} for: {rule}"


class Handler(ModelHandler):
    def do_POST(self) -> None:
        text = reply(self.body()["messages"][-1]["content"])
        self.reply({"message": {"role": "assistant", "content": text}})


@pytest.fixture
def model() -> Iterator[list[str]]:
    """The overrides that name a server's model."""
    with served(Handler, "writer") as overrides:
        yield overrides


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "shop.md"
    path.write_text("".join(f"- {sentence}\n" for sentence in SENTENCES))
    return path


def test_draft_edit_and_draft_again(cai: Command, model: list[str], source: Path):
    done = cai("principles", "draft", "shop.md", *model)
    assert done.returncode == 0, done.stderr
    assert "speak-kindly: the model's comparison is not taken: it asks no question" in done.stdout
    assert "- The rule: Never give doses." in done.stdout
    assert "+ Which of these gives no dose?" in done.stdout
    doses, kind = Constitution.load(str(source)).principles
    assert doses.comparison == "Which of these gives no dose?"
    assert doses.critique == "Criticise for: Never give doses."
    assert kind.revision == "Rewrite for: Speak kindly." and "Which of these" in kind.comparison

    drafts = source.with_name("shop.drafts.yaml")
    entries = yaml.safe_load(drafts.read_text())
    assert {entry["by"] for entry in entries} == {"writer"}
    assert {entry["source"] for entry in entries} == {f"sha256:{file_digest(source)[:16]}"}

    edited = drafts.read_text().replace("Criticise for: Never", "Look for doses: never")
    drafts.write_text(edited + "# mine\n")
    source.write_text(f"- {SENTENCES[0]}\n- Be brief.\n")
    assert cai("principles", "draft", "shop.md", *model).returncode == 0
    assert drafts.read_text().startswith(edited + "# mine\n")
    found = {p.id: p.critique for p in Constitution.load(str(source)).principles}
    assert found == {
        "never-give-doses": "Look for doses: never give doses.",
        "be-brief": "Criticise for: Be brief.",
    }
    checked = cai("principles", "check", "shop.md").stdout
    assert "Look for doses: never give doses." in checked
    assert "shop.drafts.yaml: not used, for no sentence reads: Speak kindly." in checked
    assert "nothing to draft" in cai("principles", "draft", "shop.md", *model).stdout


def test_templates_are_saved_to_be_edited(cai: Command, source: Path):
    before = Constitution.load(str(source))
    assert "by templates" in cai("principles", "draft", "shop.md", "--templates").stdout
    assert Constitution.load(str(source)) == before
    assert "nothing to draft" in cai("principles", "draft", "shop.md", "--templates").stdout


def test_the_sentences_of_an_extended_file_are_drafted_beside_it(cai: Command, source: Path):
    (source.parent / "mine.yaml").write_text("extends: shop.md\nprinciples: [Be brief.]\n")
    assert cai("principles", "draft", "mine.yaml", "--templates").returncode == 0
    assert len(yaml.safe_load((source.parent / "shop.drafts.yaml").read_text())) == 2
    assert len(yaml.safe_load((source.parent / "mine.drafts.yaml").read_text())) == 1


def test_a_random_models_words_are_not_taken(cai: Command, source: Path, tiny_model: Path):
    words = ["model=path", f"model.path={tiny_model}", "revise.sampling.revision.max_new_tokens=4"]
    done = cai("principles", "draft", "shop.md", *words)
    assert done.returncode == 0, done.stderr
    assert "is not taken: it was cut off" in done.stdout
    assert not source.with_name("shop.drafts.yaml").exists()
