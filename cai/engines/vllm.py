"""The engine on vLLM, offline: continuous batching, shared prefixes cached, tensors parallel by `engine.options`."""

import time
from typing import Any

from cai.config import EngineConfig, Sampling
from cai.dialogue import render
from cai.engines.base import Batcher, Completion, Request


class VllmEngine:
    """One vLLM `LLM`. Its seeds are vLLM's own: sampled texts differ from the transformers engine's."""

    def __init__(self, config: EngineConfig, model: str):
        from vllm import LLM  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue] - an extra

        name, _, revision = model.partition("@")
        options = {"dtype": config.dtype, "trust_remote_code": False, "disable_log_stats": True} | config.options
        self.llm: Any = LLM(model=name, revision=revision or None, **options)
        self.tokenizer: Any = self.llm.get_tokenizer()
        self.config = config
        self._room = self.llm.model_config.max_model_len
        self._batcher = Batcher(lambda waiting: list(range(min(len(waiting), config.batch_rows))), self._run)

    async def complete(self, request: Request) -> Completion:
        ids = self._prompt(request)
        options = map(self._encode, request.continuations)
        more = request.sampling.max_new_tokens if request.sampling else max(map(len, options)) + 1  # it adds a token
        if len(ids) + more > self._room:
            return Completion("", "too_long", len(ids), 0, 0.0)
        return await self._batcher.complete(request)

    def close(self) -> None:
        """A process of its own (launcher=process) gives back all memory; this lets go of what it can."""
        import gc

        self.llm = None
        gc.collect()

    def _prompt(self, request: Request) -> list[int]:
        return self._encode(render(self.tokenizer, request.messages))

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _run(self, batch: list[Request]) -> list[Completion]:
        """One call for replies and scores together; a score is a prompt's log-probabilities."""
        started = time.perf_counter()
        jobs: list[tuple[int, list[int], int, Any]] = []  # (request, tokens, how many are scored, parameters)
        for index, request in enumerate(batch):
            ids = self._prompt(request)
            if request.sampling is not None:
                jobs.append((index, ids, 0, self._parameters(request.sampling, request.seed)))
            for text in request.continuations:
                option = self._encode(text)
                jobs.append((index, ids + option, len(option), self._parameters(None, 0)))
        prompts = [{"prompt_token_ids": tokens} for _, tokens, _, _ in jobs]
        outputs = self.llm.generate(prompts, [parameters for *_, parameters in jobs], use_tqdm=False)
        share = (time.perf_counter() - started) / len(batch)
        replies: dict[int, Any] = {}
        scores: dict[int, list[float]] = {}
        for (index, tokens, scored, _), output in zip(jobs, outputs, strict=True):
            if scored:
                tail = zip(tokens[-scored:], output.prompt_logprobs[-scored:], strict=True)
                scores.setdefault(index, []).append(sum(entry[token].logprob for token, entry in tail))
            else:
                replies[index] = output.outputs[0]
        completions = []
        for index, request in enumerate(batch):
            size = len(self._prompt(request))
            if reply := replies.get(index):
                reason = "length" if reply.finish_reason == "length" else "stop"
                completions.append(Completion(reply.text.strip(), reason, size, len(reply.token_ids), share))
            else:
                completions.append(Completion("", "score", size, 0, share, tuple(scores[index])))
        return completions

    @staticmethod
    def _parameters(sampling: Sampling | None, seed: int) -> Any:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

        if sampling is None:
            return SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
        if sampling.temperature == 0:
            return SamplingParams(max_tokens=sampling.max_new_tokens, temperature=0)
        return SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=seed,
        )
