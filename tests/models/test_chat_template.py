"""Chat templates for models that have none: the text, the new tokens, and what is published."""

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from cai.config.compose import compose
from cai.config.schema import DataConfig, EngineConfig, ModelConfig, Sampling, SftConfig
from cai.engines.base import Request
from cai.engines.transformers import TransformersEngine
from cai.errors import UsageError
from cai.messages import Message, as_dicts, assistant, user
from cai.models.convert import locate
from cai.models.load import load_model, load_tokenizer
from cai.models.markers import adopt_markers, embed_markers, train_markers
from cai.models.source import fingerprint
from cai.observe.progress import Progress
from cai.run.plan import plan_run
from cai.stages import sft
from cai.stages.base import Context
from cai.store.run_folder import Run
from cai.training.arguments import lora_config

LORA = {"r": 8, "target_modules": "all-linear"}
TALK = (
    Message("system", "Be brief."),
    user("Hi"),
    assistant("Hello"),
    user("Bye"),
    assistant("Good bye"),
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["untied"])
def bare_model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A base model: no chat template, and of special tokens only the end of the sequence."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        [""], trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>")
    tokenizer.save_pretrained(tmp_path / "bare")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=0,
        tie_word_embeddings=request.param == "tied",
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "bare")
    return tmp_path / "bare"


def config_of(folder: Path, template: str | None) -> ModelConfig:
    return ModelConfig(name="bare", kind="path", path=str(folder), template=template)


def context_of(model: ModelConfig, root: Path) -> Context:
    (root / "rows.jsonl").write_text('{"prompt": "Hi", "completion": "Hello"}\n' * 8)
    return Context(
        stage="sft",
        seed=0,
        root=root,
        scratch=root / "scratch",
        model=model,
        engine=EngineConfig(device="cpu"),
        data={"mine": DataConfig(kind="file", path=str(root / "rows.jsonl"))},
        held_out={},
        constitution="harmlessness",
        inputs={},
        progress=Progress("sft", quiet=True),
    )


def rendered(tokenizer: Any) -> str:
    return tokenizer.apply_chat_template(as_dicts(TALK), tokenize=False)


def test_a_configured_template_is_seen_by_every_engine_and_changes_no_weights(bare_model: Path):
    folder = Path(locate(config_of(bare_model, "inst")))
    tokenizer = AutoTokenizer.from_pretrained(folder)  # as vLLM loads it
    said = (
        "[INST] Be brief.\n\nHi [/INST] Hello<|endoftext|>[INST] Bye [/INST] Good bye<|endoftext|>"
    )
    assert rendered(tokenizer) == rendered(load_tokenizer(str(folder))) == said
    assert (folder / "model.safetensors").read_bytes() == (
        bare_model / "model.safetensors"
    ).read_bytes()
    assert load_model(str(folder), "auto", "cpu").config.vocab_size == len(tokenizer)
    assert adopt_markers(tokenizer) == []  # it needs none
    assert AutoTokenizer.from_pretrained(bare_model).chat_template is None
    assert (
        locate(config_of(bare_model, "inst"))
        == str(folder)
        != locate(config_of(bare_model, "chatml"))
    )


def test_two_folders_that_begin_alike_stay_apart(bare_model: Path, tmp_path: Path):
    shutil.copytree(bare_model, tmp_path / "copy")
    one, two = (
        Path(locate(config_of(folder, "inst"))) for folder in (bare_model, tmp_path / "copy")
    )
    (bare_model / "model.safetensors").write_bytes(b"another model")
    assert (two / "model.safetensors").read_bytes() == (
        tmp_path / "copy/model.safetensors"
    ).read_bytes()
    assert (one / "model.safetensors").read_bytes() == b"another model"


def test_the_end_of_turn_is_the_templates_where_the_vocabulary_has_it(
    tiny_model: Path, tmp_path: Path
):
    old = AutoTokenizer.from_pretrained(tiny_model)
    old.chat_template, old.eos_token = None, "<|pad|>"
    old.save_pretrained(tmp_path / "old")
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "old" / file).write_bytes((tiny_model / file).read_bytes())
    # transformers before 5 wrote this file, and it outdoes the others
    (tmp_path / "old/special_tokens_map.json").write_text('{"eos_token": "<|pad|>"}')
    tokenizer = load_tokenizer(locate(config_of(tmp_path / "old", "chatml")))
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|pad|>"
    assert rendered(tokenizer).count("<|im_end|>\n") == len(TALK) and adopt_markers(tokenizer) == []
    assert load_tokenizer(locate(config_of(tmp_path / "old", "inst"))).eos_token == "<|pad|>"
    assert (
        load_tokenizer(str(tmp_path / "old")).eos_token == "<|im_end|>"
    )  # ChatML, where nothing is configured


def test_the_end_of_turn_is_the_end_of_the_sequence_where_the_vocabulary_has_none(bare_model: Path):
    tokenizer = load_tokenizer(locate(config_of(bare_model, "chatml")))
    assert tokenizer.eos_token == "<|endoftext|>" and rendered(tokenizer).count(
        "<|endoftext|>\n"
    ) == len(TALK)


def test_a_template_out_of_a_file(bare_model: Path, tmp_path: Path):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}")
    tokenizer = load_tokenizer(locate(config_of(bare_model, str(file))))
    assert rendered(tokenizer).endswith(
        "<|user|>Bye<|endoftext|><|assistant|>Good bye<|endoftext|>"
    )
    adopted = adopt_markers(tokenizer)
    assert tokenizer.convert_ids_to_tokens(adopted) == ["<|user|>", "<|assistant|>", "<|system|>"]
    assert adopted == [257, 258, 259] and adopt_markers(tokenizer) == []
    assert (
        tokenizer.decode([*adopted, *tokenizer("Hi")["input_ids"]], skip_special_tokens=True)
        == "Hi"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read"),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            "writes no end of turn after an answer",
        ),
        (
            "{% for m in messages %}{{ m.content }}<{{ m.role }}>{% endfor %}",
            "writes no end of turn after an answer",
        ),
        ("{{ raise_exception('no') }}", "can't be rendered: no"),
        ("{{ 1 / 0 }}", "can't be rendered: ZeroDivisionError: division by zero"),
        ("{{ messages + 1 }}", "can't be rendered: TypeError: can only concatenate list"),
        ("{% include 'other' %}", "can't be rendered: TypeError: no loader for this environment"),
        ("{{ range(1000000) }}", "can't be rendered: OverflowError: Range too big"),
    ],
)
def test_a_template_that_can_not_be_used_is_named(
    bare_model: Path, tmp_path: Path, text: str | None, message: str
):
    file = tmp_path / "mine.jinja"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        locate(config_of(bare_model, str(file)))
    assert f"model.template={file}" in str(caught.value)


def test_a_template_that_is_not_jinja_is_refused_before_a_model_is_opened(
    tiny_model: Path, tmp_path: Path
):
    file = tmp_path / "mine.jinja"
    words = ["experiment=smoke", "model=path", f"model.path={tiny_model}", f"model.template={file}"]
    good = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% continue %}"
        "{% endfor %}"
    )
    file.write_text(good)
    plan_run(compose(words), Run(tmp_path))  # a training template, with transformers' own tags
    file.write_text(f"{good}\n{{% if bos_token %}}")
    with pytest.raises(
        UsageError, match=rf"{file}:2: not a Jinja template: Unexpected end of template"
    ):
        plan_run(compose(words), Run(tmp_path))


def test_a_template_that_the_model_brought_gets_no_markers(tiny_model: Path):
    """TinyLlama writes <|user|> as plain text, and has learnt it so."""
    tokenizer = load_tokenizer(str(tiny_model))
    brought = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    for template in (brought, {"default": brought, "tool_use": brought}):
        tokenizer.chat_template = template
        assert adopt_markers(tokenizer) == []


def test_the_ledger_knows_a_template_by_its_text_alone(tiny_model: Path, tmp_path: Path):
    one, two = tmp_path / "one.jinja", tmp_path / "two.jinja"
    for file in (one, two):
        file.write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    names = [None, "chatml", "inst", str(one), str(two)]
    none, chatml, inst, *same = [
        context_of(config_of(tiny_model, name), tmp_path).model_digest("base") for name in names
    ]
    assert len({none, chatml, inst, same[0]}) == 4 and same[0] == same[1]
    assert fingerprint(config_of(tiny_model, None)).keys() == {"files"}


def test_new_markers_begin_as_the_mean_and_leave_padding_rows_out(bare_model: Path):
    import torch

    model: Any = load_model(str(bare_model), "auto", "cpu")
    model.resize_token_embeddings(
        300, mean_resizing=False
    )  # as models are that round their vocabulary up
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad():
        for layer in layers:
            layer.weight[257:] = 9.0
    embed_markers(model, [257, 258])
    for layer in layers:
        assert layer.weight.shape[0] == 300 and torch.equal(layer.weight[258], layer.weight[257])
        assert (
            torch.allclose(layer.weight[257], layer.weight[:257].mean(0))
            and (layer.weight[259:] == 9).all()
        )


def test_an_adapter_that_trains_all_embeddings_needs_no_markers_named(bare_model: Path):
    import peft

    model = load_model(str(bare_model), "auto", "cpu")
    embed_markers(model, [257])
    whole = LORA | {"modules_to_save": ["embed_tokens"]}
    assert train_markers(model, [], LORA) == LORA and train_markers(model, [257], whole) == whole
    assert train_markers(model, [257], LORA) == LORA | {
        "trainable_token_indices": {"embed_tokens": [257]}
    }
    peft.get_peft_model(model, lora_config("sft.peft", train_markers(model, [257], whole)))


@pytest.mark.parametrize("bare_model", ["untied", "tied"], indirect=True)
@pytest.mark.parametrize("peft", [None, LORA], ids=["full", "lora"])
def test_adopted_markers_are_trained_and_published(
    bare_model: Path, tmp_path: Path, peft: dict[str, Any] | None
):
    """Through the whole stage, then loaded as anyone would, and by the transformers engine."""
    import torch
    from safetensors import safe_open

    context = context_of(config_of(bare_model, None), tmp_path)  # ChatML, since it has no template
    args = {
        "per_device_train_batch_size": 8,
        "learning_rate": 0.01,
        "max_steps": 60,
        "lr_scheduler_type": "constant",
    }
    config = SftConfig(
        start="base", data=["mine"], validation=0, max_length=256, peft=peft, args=args
    )
    for name in (
        "work",
        "again",
    ):  # the second goes on from the first's last checkpoint, and has nothing left to do
        (tmp_path / name).mkdir()
        summary = sft.run(config, tmp_path / name, context)
        assert summary.audit.trained_tokens == 8 * len("Hello") + 8  # and the ends of turn
    folder = tmp_path / "work/model"
    assert (folder / "model.safetensors").read_bytes() == (
        tmp_path / "again/model/model.safetensors"
    ).read_bytes()

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    base: Any = AutoModelForCausalLM.from_pretrained(bare_model)
    before = base.get_input_embeddings().weight
    (marker,) = tokenizer("<|im_start|>", add_special_tokens=False)["input_ids"]
    assert marker == len(before) and len(tokenizer) == marker + 1 == model.config.vocab_size
    weights, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert weights.shape == output.shape == (marker + 1, 32)
    tied = base.config.tie_word_embeddings
    assert (weights is output) == tied == model.config.tie_word_embeddings
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) != tied  # noqa: SIM118 - not a dict
    assert torch.dist(weights[marker], before.mean(0)) > 0.1  # it was learnt
    assert torch.equal(weights[:marker], before) == (
        peft is not None
    )  # and by an adapter, it alone
    assert (
        rendered(tokenizer) == rendered(load_tokenizer(str(folder)))
        and adopt_markers(tokenizer) == []
    )

    engine = TransformersEngine(EngineConfig(device="cpu"), str(folder))
    greedy = Sampling(temperature=0, max_new_tokens=16)
    reply = asyncio.run(engine.complete(Request((user("Hi"),), greedy)))
    assert (reply.text, reply.finish_reason) == ("Hello", "stop")


def test_a_template_for_a_hub_model(bare_model: Path, tmp_path: Path):
    """Out of the hub's own cache, offline: a commit's snapshot, as huggingface_hub lays it out."""
    repository = tmp_path / "hub/models--someone--bare"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    shutil.copytree(bare_model, repository / "snapshots" / ("0" * 40))
    lines = (
        "from cai.config.schema import ModelConfig",
        "from cai.models.convert import locate",
        "from cai.models.load import load_model, load_tokenizer",
        "path = locate(ModelConfig(name='bare', kind='hub', path='someone/bare', template='inst'))",
        "print(load_model(path, 'auto', 'cpu').config.vocab_size)",
        "print('[INST]' in load_tokenizer(path).chat_template)",
    )
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=offline,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["257", "True"], done.stderr
