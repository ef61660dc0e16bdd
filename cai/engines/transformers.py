"""The engine on plain transformers: batches by shared prefix and length, any device, sampling seeded row by row.

Nothing is read twice where that can be helped: a prefix that the rows of a batch share, and what a row has in
common with its last request and the reply to it (the request for a revision is that for the critique, and more).
"""

import random
import time
from collections.abc import Callable
from typing import Any

from cai.config.schema import EngineConfig, Sampling
from cai.engines.base import Completion, Request
from cai.engines.batcher import Batcher
from cai.engines.prefix_cache import Kept, append, behind, keep, keeps, open_cache, share, shares
from cai.errors import CaiError
from cai.models.chat_template import render

SHARED = 64  # tokens: requests that begin with the same ones are put into one batch

SPARED = 256  # tokens that need not be read again: for fewer, a pass of its own is not worth it

SHED = 1 / 8  # the share of a batch's rows that have ended at which they leave it

FEW = 8  # rows: fewer are no batch of their own while others wait

SLACK = 9 / 8  # of batch_tokens: rather than leave a few rows for a batch of their own


class TransformersEngine:
    """One model on one device. `model` is a folder or a hub id, `id@revision`."""

    def __init__(self, config: EngineConfig, model: str):
        from cai.models.load import load_model, load_tokenizer, pick_device

        self.config = config
        self.device = pick_device(config.device)
        self.tokenizer: Any = load_tokenizer(model)
        self.model: Any = load_model(model, config.dtype, self.device, config.attention).eval()
        share(self.model)
        if self.device == "cpu":
            _by_columns(self.model)
        self.heard: Callable[[str], object] | None = (
            None  # told a reply's words as they come, where it is alone
        )
        self._batcher = Batcher(self._choose, self._run)
        self._tokens: dict[Request, list[int]] = {}
        self._prefix: tuple[tuple[int, ...], Any] = (
            (),
            None,
        )  # the last shared prefix and its keys and values
        self._kept: list[Kept] = []  # the rows of the last batch
        self._known: dict[Request, Kept] = {}  # waiting requests that go on from such a row

    async def complete(self, request: Request) -> Completion:
        ids = self._encode(render(self.tokenizer, request.messages))
        room = getattr(self.model.config, "max_position_embeddings", None) or 1 << 30
        options = map(self._encode, request.continuations)
        if (
            len(ids)
            + (request.sampling.max_new_tokens if request.sampling else max(map(len, options)))
            > room
        ):
            return Completion("", "too_long", len(ids), 0, 0.0, ())
        self._tokens[request] = ids
        if request.sampling and (row := next((row for row in self._kept if row.begins(ids)), None)):
            self._known[request] = row
        try:
            return await self._batcher.complete(request)
        finally:
            self._tokens.pop(request, None)
            self._known.pop(request, None)

    def close(self) -> None:
        import gc

        import torch

        self.model = None
        self._forget()
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _forget(self) -> None:
        self._prefix = ((), None)
        self._kept = []
        self._known.clear()

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _choose(self, waiting: list[Request]) -> list[int]:
        """Requests alike in kind and sampling: those that go on from the last batch before others, while their keys and
        values are there; else those with a shared prefix together. The longest first."""
        known = [index for index, request in enumerate(waiting) if request in self._known]
        known = known if len(known) >= min(FEW, len(waiting)) else []
        groups: dict[Any, list[int]] = {}
        for index in known or range(len(waiting)):
            groups.setdefault(waiting[index].sampling, []).append(index)
        picked = max(groups.values(), key=len)
        prefixes: dict[tuple[int, ...], list[int]] = {}
        for index in picked:
            prefixes.setdefault(tuple(self._tokens[waiting[index]][:SHARED]), []).append(index)
        largest = max(prefixes.values(), key=len)
        if len(largest) >= FEW and not known:
            picked = largest
        picked = sorted(picked, key=lambda index: -len(self._tokens[waiting[index]]))[
            : self.config.batch_rows
        ]
        sampling = waiting[picked[0]].sampling
        rows = [self._tokens[waiting[index]] for index in picked]
        shared = (
            _common(rows) if sampling and shares(self.model.config) else 0
        )  # once for all of them
        own = len(rows[0]) - shared + (sampling.max_new_tokens if sampling else 64)
        most = max(1, (self.config.batch_tokens - shared) // own)
        return picked if len(picked) <= most * SLACK else picked[:most]

    def _run(self, batch: list[Request]) -> list[Completion]:
        import torch

        started = time.perf_counter()
        results = None
        try:
            with torch.inference_mode():
                results = (
                    self._score(batch)
                    if batch[0].sampling is None
                    else self._sample(batch, batch[0].sampling)
                )
        except (
            RuntimeError,
            MemoryError,
        ) as error:  # CUDA's error is a RuntimeError; on a CPU only its text tells
            if not (
                isinstance(error, torch.OutOfMemoryError | MemoryError)
                or "can't allocate memory" in str(error)
            ):
                raise
            if len(batch) == 1:
                raise CaiError(
                    f"one request of {len(self._tokens[batch[0]])} tokens does not fit into the memory of "
                    f"{self.device}; take a smaller model, engine.dtype or max_new_tokens"
                ) from None
        if results is None:  # not above: the error's frames would hold the memory
            self._forget()
            half = len(batch) // 2
            return self._run(batch[:half]) + self._run(batch[half:])
        share = (time.perf_counter() - started) / len(batch)
        return [
            Completion(text, reason, len(self._tokens[request]), new, share, logprobs)
            for request, (text, reason, new, logprobs) in zip(batch, results, strict=True)
        ]

    def _sample(
        self, batch: list[Request], sampling: Sampling
    ) -> list[tuple[str, str, int, tuple[float, ...]]]:
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        rows = [self._tokens[request] for request in batch]
        cache, ids, mask = self._begin(rows, [self._known.pop(request, None) for request in batch])
        picker = _Sampler(sampling, [request.seed for request in batch])
        ends = self._stops()
        stops = torch.tensor(ends, device=ids.device)
        running, replies = list(range(len(rows))), [[] for _ in rows]
        while running:
            width = ids.shape[1]
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                max_new_tokens=sampling.max_new_tokens - len(replies[running[0]]),
                do_sample=False,  # the processor has drawn already: one token of each row is left
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
                pad_token_id=self._pad_id,
                logits_processor=LogitsProcessorList([picker] if sampling.temperature > 0 else []),
                stopping_criteria=StoppingCriteriaList([_Enough(stops, width)]),
                streamer=self._streamer() if self.heard and len(batch) == 1 else None,
                return_dict_in_generate=True,
            )
            for row, new in zip(running, output.sequences[:, width:].tolist(), strict=True):
                replies[row] += new
            ids, cache = output.sequences, output.past_key_values
            mask = torch.cat([mask, mask.new_ones(len(running), ids.shape[1] - width)], dim=1)
            ended = torch.isin(ids[:, width:], stops).any(1) | (
                len(replies[running[0]]) >= sampling.max_new_tokens
            )
            if cache is not None and keeps(cache):
                for place in ended.nonzero()[:, 0].tolist():
                    prompt, reply = rows[running[place]], replies[running[place]]
                    end = next((i for i, token in enumerate(reply, 1) if token in ends), None)
                    self._kept.append(
                        keep(cache, place, mask[place], prompt + reply[:end], len(prompt))
                    )
            if ended.all():
                break
            staying = (~ended).nonzero()[:, 0]
            running = [running[place] for place in staying.tolist()]
            picker.generators = [picker.generators[place] for place in staying.tolist()]
            ids, mask = ids[staying], mask[staying]
            if cache is not None:  # a model that keeps its state elsewhere reads its rows again
                cache.reorder_cache(staying)  # every kind of cache has it, batch_select_indices not
        results = []
        for row in replies:
            new = next((place for place, token in enumerate(row, 1) if token in ends), 0)
            text = self.tokenizer.decode(row[: new or len(row)], skip_special_tokens=True).strip()
            results.append((text, "stop" if new else "length", new or len(row), ()))
        return results

    def _begin(self, rows: list[list[int]], known: list[Kept | None]) -> tuple[Any, Any, Any]:
        """A cache with what the rows share and what is known of each; (rows, width) ids and mask of all their tokens.

        A row lies there as: the shared prefix, padding, what else is known of it, padding, the rest.
        """
        import torch

        self._kept = []
        prefix, its_cache = self._shared(rows)
        cache: Any = open_cache(self.model.config)
        kept = [row for row in known if row is not None and row.shared <= len(prefix)]
        going_on = len(kept) == len(rows)
        # a prompt's several answers begin with the same tokens, which are read once
        different = [list(row) for row in dict.fromkeys(map(tuple, rows))]
        spared = sum(len(row) - len(prefix) - 1 for row in rows) - sum(
            len(row) - len(prefix) - 1 for row in different
        )
        first = different if not going_on and keeps(cache) and spared >= SPARED else rows
        if prefix:
            cache = behind(self.model.config, its_cache, len(first))
        read = [len(prefix)] * len(first)
        masks = [torch.ones(len(first), len(prefix), dtype=torch.long, device=self.device)]
        if going_on:
            read = [max(len(prefix), row.common(ids)) for row, ids in zip(kept, rows, strict=True)]
            masks.append(append(cache, kept, len(prefix), read))
        elif not prefix and not keeps(cache):
            cache = None  # the model knows best what it needs
        ids, mask = self._pad([row[known:] for row, known in zip(first, read, strict=True)])
        mask = torch.cat([*masks, mask], dim=1)
        before = ids.new_full(
            (len(first), mask.shape[1] - ids.shape[1]), self._pad_id
        )  # the cache has them
        ids = torch.cat([before, ids], dim=1)
        if first is different:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            self.model(
                ids[:, len(prefix) : -1],  # the last is left for `generate`
                attention_mask=mask[:, :-1],
                position_ids=positions[:, len(prefix) : -1],
                past_key_values=cache,
                logits_to_keep=1,
            )
            each = torch.tensor([different.index(row) for row in rows], device=self.device)
            ids, mask = ids[each], mask[each]
            cache.reorder_cache(each)
        return cache, ids, mask

    def _streamer(self) -> Any:
        from transformers import TextStreamer

        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)

        def tell(text: str, stream_end: bool = False) -> None:
            if self.heard is not None:
                self.heard(text)

        streamer.on_finalized_text = tell
        return streamer

    def _shared(self, rows: list[list[int]]) -> tuple[list[int], Any]:
        """The prefix that all rows share and a cache of it alone; ([], None) if too short."""
        import torch

        length = _common(rows)
        if length * (len(rows) - 1) < SPARED:
            return [], None
        prefix = rows[0][:length]
        if self._prefix[0] != tuple(prefix):
            cache = open_cache(self.model.config)
            self.model(
                torch.tensor([prefix], device=self.device), past_key_values=cache, logits_to_keep=1
            )
            self._prefix = (tuple(prefix), cache)
        return prefix, self._prefix[1]

    def _pad(self, rows: list[list[int]]) -> tuple[Any, Any]:
        """(rows, width) ids and mask, padded on the left."""
        import torch

        width = max(map(len, rows))
        ids = [[self._pad_id] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    def _score(self, batch: list[Request]) -> list[tuple[str, str, int, tuple[float, ...]]]:
        """Summed log-probabilities of each continuation's tokens, given the prompt's."""
        import torch

        pieces = [[self._encode(text) for text in request.continuations] for request in batch]
        # options of one token each share one row; longer continuations need a row each
        jobs: list[tuple[int, list[int], list[int]]] = []  # (request, tokens, which continuations)
        for index, options in enumerate(pieces):
            if all(len(option) == 1 for option in options):
                jobs.append((index, [], list(range(len(options)))))
            else:
                jobs += [(index, option, [which]) for which, option in enumerate(options)]
        scores: list[list[float]] = [[0.0] * len(options) for options in pieces]
        for start in range(0, len(jobs), len(batch)):
            part = jobs[start : start + len(batch)]
            rows = [self._tokens[batch[index]] + option for index, option, _ in part]
            ids, mask = self._pad(rows)
            keep = max(len(option) for _, option, _ in part) + 1
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            logits = self.model(
                ids,
                attention_mask=mask,
                position_ids=positions,
                logits_to_keep=keep,
                use_cache=False,
            ).logits
            for row, (index, option, which) in enumerate(part):
                wanted = option or [pieces[index][w][0] for w in which]
                tail = torch.log_softmax(logits[row, -1 - len(option) :].float(), dim=-1)
                if not option:
                    for w, token in zip(which, wanted, strict=True):
                        scores[index][w] = float(tail[-1, token])
                else:
                    scores[index][which[0]] = float(
                        tail[:-1].gather(1, torch.tensor(option, device=tail.device)[:, None]).sum()
                    )
        return [("", "score", 0, tuple(row)) for row in scores]

    @property
    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else self._stops()[0]

    def _stops(self) -> list[int]:
        stops = self.model.generation_config.eos_token_id
        stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
        extra = self.tokenizer.eos_token_id
        return stops if extra is None or extra in stops else [*stops, extra]


def _by_columns(model: Any) -> None:
    """Lays the weights of linear layers out column by column: the same matrices, which a CPU multiplies up to half as
    fast again where a batch has few rows, as every step of decoding has."""
    import torch

    embedded = (
        model.get_input_embeddings().weight
    )  # looked up row by row, and often the output layer's too
    for module in model.modules():
        if type(module) is torch.nn.Linear and module.weight is not embedded:
            module.weight.data = module.weight.data.t().contiguous().t()


def _common(rows: list[list[int]]) -> int:
    """How many tokens all rows begin with, but for the last of the shortest: every row keeps one of its own."""
    first, last = min(rows), max(rows)
    most = min(map(len, rows)) - 1
    return next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b or i == most), most
    )


class _Enough:
    """A stopping criterion: so many rows have ended that the others go on faster without them."""

    def __init__(self, stops: Any, prompt: int):
        self.stops, self.prompt = stops, prompt

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        ended = torch.isin(input_ids[:, self.prompt :], self.stops).any(1)
        return torch.full_like(ended, bool(ended.float().mean() >= SHED))


class _Sampler:
    """A logits processor that draws each row's token with that row's own generator and leaves only it.

    One uniform number a row and step, inverted through the cumulative distribution in vocabulary order: a row's tokens
    don't depend on what else is in the batch (but for the rounding of batched arithmetic).
    """

    def __init__(self, sampling: Sampling, seeds: list[int]):
        self.sampling = sampling
        self.generators = [random.Random(seed) for seed in seeds]  # noqa: S311 - sampling, not secrecy

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        logits = scores.float() / self.sampling.temperature
        tokens = None
        if self.sampling.top_k:
            logits, tokens = logits.topk(min(self.sampling.top_k, logits.shape[-1]))
        probabilities = logits.softmax(-1)
        if self.sampling.top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            ordered[ordered.cumsum(-1) - ordered >= self.sampling.top_p] = (
                0  # the first token always stays
            )
            probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
        if tokens is not None:  # back to vocabulary order
            tokens, order = tokens.sort()
            probabilities = probabilities.gather(-1, order)
        cumulative = probabilities.double().cumsum(-1)
        uniform = torch.tensor(
            [[g.random()] for g in self.generators], dtype=torch.float64, device=scores.device
        )
        drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        drawn = drawn.clamp(max=cumulative.shape[-1] - 1)
        if tokens is not None:
            drawn = tokens.gather(-1, drawn)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)
