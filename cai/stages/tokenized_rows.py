"""What `sft` and `sl_cai` are trained on as tokens, and its audit. Imports transformers."""

from dataclasses import dataclass

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from cai.config.schema import SftConfig
from cai.data.audit import text_metrics
from cai.data.prompts import shuffled
from cai.data.split import opening_turn, validation_first
from cai.models.load import load_tokenizer
from cai.models.markers import adopt_markers
from cai.stages.base import Context
from cai.stages.revision_rows import CUT
from cai.stages.training_rows import Audit, training_rows
from cai.training.tokens import tokenize_dialogues


@dataclass(frozen=True)
class TokenizedRows:
    tokenizer: PreTrainedTokenizerBase
    markers: list[int]  # the tokens that the chat template adds to the model (models/markers.py)
    rows: Dataset  # of token ids and labels; the first `audit.held_out` are held out
    audit: Audit


def tokenized_rows(config: SftConfig, context: Context) -> TokenizedRows:
    """The rows that are held out come first, and both parts are shuffled."""
    tokenizer = load_tokenizer(context.model_path(config.start))
    markers = adopt_markers(tokenizer)
    drawn_rows, counts = training_rows(config, context)
    drawn_rows = shuffled(drawn_rows, context.seed)
    prompts = [opening_turn(dialogue) for dialogue, _ in drawn_rows]
    order, held_out = validation_first(prompts, config.validation)
    drawn_rows = [drawn_rows[row] for row in order]
    dialogues = [dialogue for dialogue, _ in drawn_rows]
    places = [tags.get("place", tags["source"]) for _, tags in drawn_rows]
    cut = [tags.get("answer") == CUT for _, tags in drawn_rows]
    rows, tokens = tokenize_dialogues(tokenizer, dialogues, config.max_length, places, cut)
    if tokens["dropped"] or tokens["refused"] or tokens["split"]:  # then rows are no dialogues
        first = (dialogues[:held_out], config.max_length, places[:held_out], cut[:held_out])
        held_out = len(tokenize_dialogues(tokenizer, *first)[0])
    if tokens["refused"]:
        lines = "\n  ".join(tokens["refused_first"])
        context.progress.say(
            f"{context.stage}: left out {tokens['refused']} rows that the chat template refuses, "
            f"first\n  {lines}"
        )
    audit = Audit(**counts, **tokens, texts=text_metrics(drawn_rows), held_out=held_out)
    return TokenizedRows(tokenizer, markers, rows, audit)
