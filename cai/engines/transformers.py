"""The engine on plain transformers, on any device: batches of like requests, seeded row by row."""

import gc
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cai.config.schema import EngineConfig, Sampling
from cai.engines.base import Completion, OnText, Request, encode_request
from cai.engines.batcher import Batcher
from cai.engines.decoder import Decoder, Job, common_prefix_length, pad_left, positions
from cai.engines.prefix_cache import shares_prefix, use_shared_attention
from cai.errors import CaiError
from cai.models.load import load_model, load_tokenizer, pick_device

GROUPING_TOKENS = 64  # prompts that begin with the same ones are put into one batch

MIN_BATCH_ROWS = 8  # fewer are no batch of their own while others wait

SLACK = 9 / 8  # of batch_tokens: better than leaving a few rows for a batch of their own

SCORE_TOKENS = 64  # of continuations, about, when the size of a batch is chosen


class TransformersEngine:
    """One model on one device. `model` is a folder or a hub id, `id@revision`."""

    def __init__(self, config: EngineConfig, model: str):
        self.config = config
        self.device = pick_device(config.device)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model)
        self.model: PreTrainedModel = load_model(
            model, config.dtype, self.device, config.attention
        ).eval()
        use_shared_attention(self.model)
        if self.device == "cpu":
            store_weights_by_column(self.model)
        context_length = getattr(self.model.config, "max_position_embeddings", None)
        self._context_length: int = context_length or 1 << 30
        self._decoder = Decoder(self.model, self.tokenizer)
        self._batcher = Batcher(self._choose, self._run)
        self._jobs: set[Job] = set()  # under way

    async def complete(self, request: Request, on_text: OnText | None = None) -> Completion:
        prompt_ids, option_ids = encode_request(self.tokenizer, request)
        job = Job(request, prompt_ids, on_text, option_ids)
        if request.sampling:
            new_tokens = request.sampling.max_new_tokens
            rows = (row for row in self._decoder.finished if row.begins(job.prompt_ids))
            job.earlier = next(rows, None)
        else:
            new_tokens = max(map(len, option_ids))
        length = len(job.prompt_ids)
        if length + new_tokens > self._context_length:
            return Completion("", "too_long", length, 0, 0.0)
        self._jobs.add(job)
        try:
            return await self._batcher.complete(job)
        finally:
            self._jobs.discard(job)

    def close(self) -> None:
        self._forget()
        del self.model, self._decoder
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _forget(self) -> None:
        """Lets go of all keys and values that are kept for later batches."""
        self._decoder.forget()
        for job in self._jobs:
            job.earlier = None

    def _choose(self, waiting: list[Job]) -> list[int]:
        """Jobs of the same kind and sampling, the longest prompts first.

        Jobs that go on from the last batch come before others, while their keys and values are
        there. Else those that begin with the same tokens come together.
        """
        everything = range(len(waiting))
        continuing = [index for index in everything if waiting[index].earlier]
        if len(continuing) < min(MIN_BATCH_ROWS, len(waiting)):
            continuing = []
        chosen = largest_group(continuing or everything, lambda i: waiting[i].request.sampling)
        if not continuing:
            alike = largest_group(chosen, lambda i: tuple(waiting[i].prompt_ids[:GROUPING_TOKENS]))
            chosen = alike if len(alike) >= MIN_BATCH_ROWS else chosen
        chosen.sort(key=lambda index: -len(waiting[index].prompt_ids))
        chosen = chosen[: self.config.batch_rows]
        return chosen[: self._rows_that_fit([waiting[index] for index in chosen])]

    def _rows_that_fit(self, jobs: list[Job]) -> int:
        """How many of the jobs, the longest first, have room in batch_tokens."""
        sampling = jobs[0].request.sampling
        shared = 0  # tokens that count once for the whole batch
        if sampling and shares_prefix(self.model.config):
            shared = common_prefix_length([job.prompt_ids for job in jobs])
        new_tokens = sampling.max_new_tokens if sampling else SCORE_TOKENS
        row_tokens = len(jobs[0].prompt_ids) - shared + new_tokens
        rows = max(1, (self.config.batch_tokens - shared) // row_tokens)
        return len(jobs) if len(jobs) <= rows * SLACK else rows

    def _run(self, batch: list[Job]) -> list[Completion]:
        started = time.perf_counter()
        sampling = batch[0].request.sampling
        completions = None
        try:
            with torch.inference_mode():
                completions = self._sample(batch, sampling) if sampling else self._score(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise CaiError(
                    f"one request of {len(batch[0].prompt_ids)} tokens does not fit into the "
                    f"memory of {self.device}; take a smaller model, engine.dtype or "
                    "max_new_tokens"
                ) from None
        if completions is None:  # not in the `except` block, where the error's frames hold memory
            self._forget()
            half = len(batch) // 2
            return self._run(batch[:half]) + self._run(batch[half:])
        share = (time.perf_counter() - started) / len(batch)
        return [replace(completion, seconds=share) for completion in completions]

    def _sample(self, batch: list[Job], sampling: Sampling) -> list[Completion]:
        return self._decoder.sample(batch, sampling)

    def _score(self, batch: list[Job]) -> list[Completion]:
        """Summed log-probabilities of each continuation's tokens, given the prompt's."""
        options = [job.option_ids for job in batch]
        # one row scores all options of one token each; longer options are read in a row each
        rows: list[tuple[int, list[int]]] = []  # (place in the batch, the option that is read)
        for place, option_ids in enumerate(options):
            single = all(len(ids) == 1 for ids in option_ids)
            rows += [(place, [])] if single else [(place, ids) for ids in option_ids]
        scores: list[list[float]] = [[] for _ in batch]
        for start in range(0, len(rows), len(batch)):
            part = rows[start : start + len(batch)]
            tails = self._tail_logprobs([(batch[place].prompt_ids, ids) for place, ids in part])
            for (place, ids), tail in zip(part, tails, strict=True):
                if ids:
                    columns = torch.tensor(ids, device=tail.device)[:, None]
                    scores[place].append(float(tail[:-1].gather(1, columns).sum()))
                else:
                    scores[place] += [float(tail[-1, token]) for (token,) in options[place]]
        return [
            Completion("", "score", len(job.prompt_ids), 0, 0.0, tuple(logprobs))
            for job, logprobs in zip(batch, scores, strict=True)
        ]

    def _tail_logprobs(self, rows: list[tuple[list[int], list[int]]]) -> Iterator[Tensor]:
        """For each (prompt, option): (option's tokens + 1, vocabulary) log-probabilities.

        Those of the option's tokens, and of the token that would follow.
        """
        texts = [prompt_ids + option_ids for prompt_ids, option_ids in rows]
        ids, mask = pad_left(texts, self._decoder.pad_id, self.model.device)
        logits = self.model(
            ids,
            attention_mask=mask,
            position_ids=positions(mask),
            logits_to_keep=max(len(option_ids) for _, option_ids in rows) + 1,
            use_cache=False,
        ).logits
        for row, (_, option_ids) in enumerate(rows):
            yield torch.log_softmax(logits[row, -1 - len(option_ids) :].float(), dim=-1)


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has an error of its own; on a CPU only the text of the RuntimeError tells."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error)


def store_weights_by_column(model: PreTrainedModel) -> None:
    """Lays the weights of linear layers out column by column: the same matrices.

    A CPU multiplies these up to 1.5 times as fast where a batch has few rows, as in every step of
    decoding.
    """
    # looked up row by row, and often the output layer's too
    embedding = model.get_input_embeddings().weight
    for module in model.modules():
        if type(module) is torch.nn.Linear and module.weight is not embedding:
            module.weight.data = module.weight.data.t().contiguous().t()


def largest_group(indices: Iterable[int], key: Callable[[int], Hashable]) -> list[int]:
    """The largest group of indices with the same key; the first of several."""
    groups: dict[Hashable, list[int]] = {}
    for index in indices:
        groups.setdefault(key(index), []).append(index)
    return max(groups.values(), key=len)
