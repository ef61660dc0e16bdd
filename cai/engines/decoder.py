"""Decodes the replies of a transformers batch, and reads no token twice where that can be helped.

It reads once: a prefix that the rows of a batch share, a prompt that is there several times, and
what a row has in common with its last request and the reply to it. (A request for a revision begins
with the request for the critique.)
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    TextStreamer,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput

from cai.config.schema import Sampling
from cai.engines.base import Completion, OnText, Request
from cai.engines.prefix_cache import (
    FinishedRow,
    append_rows,
    cache_after_prefix,
    finished_row,
    holds_all_tokens,
    open_cache,
)
from cai.engines.sampler import EnoughRowsEnded, SeededSampler
from cai.engines.thoughts import PROMPT_END, answer_of, marks_thoughts
from cai.models.chat_template import stop_ids

MIN_TOKENS_SAVED = 256  # for fewer, a forward pass of its own is not worth it


@dataclass(eq=False)
class Job:
    """A request that waits for its batch."""

    request: Request
    prompt_ids: list[int]
    on_text: OnText | None
    option_ids: list[list[int]] = field(default_factory=list)  # of the continuations
    earlier: FinishedRow | None = None  # a row of the last batch that this one goes on from


@dataclass
class RunningRows:
    """The rows of a batch that have not ended yet."""

    places: list[int]  # in the batch
    ids: Tensor  # (rows, width)
    mask: Tensor  # (rows, width)
    cache: DynamicCache | None  # None: the model makes what it needs

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows alone, or with repeated ones."""
        self.places = [self.places[row] for row in rows.tolist()]
        self.ids, self.mask = self.ids[rows], self.mask[rows]
        if self.cache is not None:  # without a cache, a model reads its rows again
            # every kind of cache has this method; batch_select_indices not
            self.cache.reorder_cache(rows)  # pyright: ignore[reportArgumentType]


class Decoder:
    """Decodes batches, and keeps what the next one may go on from."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer
        self.pad_id = cast(int, tokenizer.pad_token_id)
        self._skips_special = not marks_thoughts(tokenizer)
        self.finished: list[FinishedRow] = []  # of the last batch
        self._prefix_ids: list[int] = []  # the last one that a batch shared
        self._prefix_cache: DynamicCache | None = None

    def forget(self) -> None:
        """Lets go of all keys and values."""
        self.finished = []
        self._prefix_ids, self._prefix_cache = [], None

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end a reply: the model's, and what ends a turn of the chat template."""
        config = cast(GenerationConfig, self.model.generation_config)
        return stop_ids(self.tokenizer, cast(list[int] | int | None, config.eos_token_id))

    def sample(self, batch: list[Job], sampling: Sampling) -> list[Completion]:
        """Decodes in stretches: when enough rows have ended, the others go on without them."""
        rows = self._begin(batch)
        sampler = SeededSampler(sampling, [job.request.seed for job in batch])
        end_ids = torch.tensor(self.stop_ids, device=self.model.device)
        on_text = batch[0].on_text if len(batch) == 1 else None
        replies: list[list[int]] = [[] for _ in batch]
        while True:
            tokens_left = sampling.max_new_tokens - len(replies[rows.places[0]])
            new_ids = self._decode(rows, sampler, end_ids, tokens_left, on_text)
            for place, ids in zip(rows.places, new_ids.tolist(), strict=True):
                replies[place] += ids
            ended = torch.isin(new_ids, end_ids).any(1) | (new_ids.shape[1] >= tokens_left)
            self._keep(batch, replies, rows, ended)
            if ended.all():
                return [self._completion(job, ids) for job, ids in zip(batch, replies, strict=True)]
            staying = (~ended).nonzero()[:, 0]
            rows.select(staying)
            sampler.select_rows(staying.tolist())

    def _decode(
        self,
        rows: RunningRows,
        sampler: SeededSampler,
        end_ids: Tensor,
        tokens_left: int,
        on_text: OnText | None,
    ) -> Tensor:
        """Decodes until enough rows have ended. Returns the new tokens' ids, (rows, new tokens)."""
        width = rows.ids.shape[1]
        output = self.model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=rows.ids,
            attention_mask=rows.mask,
            past_key_values=rows.cache,
            max_new_tokens=tokens_left,
            do_sample=False,  # the sampler has drawn already: it leaves one token for each row
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            pad_token_id=self.pad_id,
            eos_token_id=self.stop_ids,
            logits_processor=LogitsProcessorList(
                [sampler] if sampler.sampling.temperature > 0 else []
            ),
            stopping_criteria=StoppingCriteriaList([EnoughRowsEnded(end_ids, width)]),
            streamer=CallbackStreamer(self.tokenizer, on_text) if on_text else None,
            return_dict_in_generate=True,
        )
        output = cast(GenerateDecoderOnlyOutput, output)
        rows.ids, rows.cache = output.sequences, cast(DynamicCache | None, output.past_key_values)
        new_ids = rows.ids[:, width:]
        rows.mask = torch.cat([rows.mask, torch.ones_like(new_ids)], dim=1)
        return new_ids

    def _begin(self, batch: list[Job]) -> RunningRows:
        """Reads what several rows share, so that each row's own tokens are left for `generate`."""
        prompts = [job.prompt_ids for job in batch]
        earlier = [job.earlier for job in batch]
        for job in batch:
            job.earlier = None
        self.finished = []
        prefix_length = self._read_prefix(prompts)
        usable = [row for row in earlier if row is not None and row.shared_length <= prefix_length]
        if len(usable) == len(prompts):
            return self._open_rows(prompts, prefix_length, usable)
        # several answers to one prompt begin with the same tokens, which are read once
        times = Counter(map(tuple, prompts))
        saved = sum((times[ids] - 1) * (len(ids) - prefix_length - 1) for ids in times)
        if saved < MIN_TOKENS_SAVED or not holds_all_tokens(open_cache(self.model.config)):
            return self._open_rows(prompts, prefix_length, [])
        distinct = [list(ids) for ids in times]
        rows = self._open_rows(distinct, prefix_length, [])
        self.model(
            rows.ids[:, prefix_length:-1],  # the last is left for `generate`
            attention_mask=rows.mask[:, :-1],
            position_ids=positions(rows.mask)[:, prefix_length:-1],
            past_key_values=rows.cache,
            logits_to_keep=1,
        )
        repeats = [distinct.index(ids) for ids in prompts]
        rows.select(torch.tensor(repeats, device=self.model.device))
        rows.places = list(range(len(prompts)))
        return rows

    def _read_prefix(self, prompts: list[list[int]]) -> int:
        """Reads the prefix that all prompts share into a cache of its own.

        Returns its length, 0 where it is too short to be worth it.
        """
        length = common_prefix_length(prompts)
        if length * (len(prompts) - 1) < MIN_TOKENS_SAVED:
            return 0
        ids = prompts[0][:length]
        if self._prefix_ids != ids:
            cache = open_cache(self.model.config)
            input_ids = torch.tensor([ids], device=self.model.device)
            self.model(input_ids, past_key_values=cache, logits_to_keep=1)
            self._prefix_ids, self._prefix_cache = ids, cache
        return length

    def _open_rows(
        self, prompts: list[list[int]], prefix_length: int, earlier: list[FinishedRow]
    ) -> RunningRows:
        """The prompts with a cache that has their first tokens: the prefix, and the earlier rows'.

        A row lies there as: the prefix, padding, its earlier row's tokens, padding, the rest.
        """
        if prefix_length and self._prefix_cache is not None:
            cache = cache_after_prefix(self.model.config, self._prefix_cache, len(prompts))
        else:
            cache = open_cache(self.model.config)
        cached = [prefix_length] * len(prompts)  # tokens
        masks = [
            torch.ones(len(prompts), prefix_length, dtype=torch.long, device=self.model.device)
        ]
        if earlier:
            pairs = zip(earlier, prompts, strict=True)
            cached = [max(prefix_length, row.common_length(ids)) for row, ids in pairs]
            masks.append(append_rows(cache, earlier, prefix_length, cached))
        rest = [ids[start:] for ids, start in zip(prompts, cached, strict=True)]
        ids, mask = pad_left(rest, self.pad_id, self.model.device)
        mask = torch.cat([*masks, mask], dim=1)
        # ids of tokens that the cache has are not read
        filler = ids.new_full((len(prompts), mask.shape[1] - ids.shape[1]), self.pad_id)
        places = list(range(len(prompts)))
        # of an empty cache the model may have a better kind
        used_cache = cache if prefix_length or holds_all_tokens(cache) else None
        return RunningRows(places, torch.cat([filler, ids], dim=1), mask, used_cache)

    def _keep(
        self, batch: list[Job], replies: list[list[int]], rows: RunningRows, ended: Tensor
    ) -> None:
        """Keeps the rows that have ended, for requests that go on from them."""
        if rows.cache is None or not holds_all_tokens(rows.cache):
            return
        for row in ended.nonzero()[:, 0].tolist():
            prompt_ids, reply_ids = batch[rows.places[row]].prompt_ids, replies[rows.places[row]]
            ids = prompt_ids + reply_ids[: self._reply_end(reply_ids)]
            self.finished.append(
                finished_row(rows.cache, row, rows.mask[row], ids, len(prompt_ids))
            )

    def _completion(self, job: Job, reply_ids: list[int]) -> Completion:
        end = self._reply_end(reply_ids)
        ids = reply_ids[:end]
        text_ids = ids if end is None else ids[:-1]  # a turn's end may be no special token
        text = cast(str, self.tokenizer.decode(text_ids, skip_special_tokens=self._skips_special))
        reason = "length" if end is None else "stop"
        opening = cast(str, self.tokenizer.decode(job.prompt_ids[-PROMPT_END:]))
        text, reason = answer_of(self.tokenizer, text, reason, opening)
        return Completion(text, reason, len(job.prompt_ids), len(ids), 0.0)

    def _reply_end(self, ids: list[int]) -> int | None:
        """The place behind the first stop token."""
        end_ids = self.stop_ids
        return next((end for end, token in enumerate(ids, 1) if token in end_ids), None)


class CallbackStreamer(TextStreamer):
    """Tells `on_text` a reply's words in place of printing them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: OnText):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.on_text(text)


def common_prefix_length(rows: list[list[int]]) -> int:
    """How many tokens all rows begin with. At most one less than the shortest has."""
    first, last = min(rows), max(rows)  # in the order of lists: these two differ the earliest
    longest = min(map(len, rows)) - 1
    for place in range(longest):
        if first[place] != last[place]:
            return place
    return longest


def pad_left(rows: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(rows, width) ids and mask."""
    width = max(map(len, rows))
    ids = [[pad_id] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def positions(mask: Tensor) -> Tensor:
    """Each token's place in its row, which is padded where `mask`, (rows, width), is 0."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
