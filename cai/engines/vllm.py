"""The engine on vLLM, offline: continuous batching, shared prefixes cached, tensors parallel by `engine.options`. An
adapter's folder is served as it is, beside its base's weights."""

import json
import time
from pathlib import Path
from typing import Any

from cai.config.schema import EngineConfig, Sampling
from cai.engines.base import Completion, Request
from cai.engines.batcher import Batcher
from cai.errors import UsageError
from cai.models.chat_template import render

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for


class VllmEngine:
    """One vLLM `LLM`. Its seeds are vLLM's own: sampled texts differ from the transformers engine's."""

    def __init__(self, config: EngineConfig, model: str):
        from vllm import LLM  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue] - an extra

        from cai.models.source import adapter_base, split_revision, tokenizer_source

        options: dict[str, Any] = {
            "dtype": config.dtype,
            "trust_remote_code": False,
            "disable_log_stats": True,
        }
        self.adapter: Any = None
        if (base := adapter_base(model)) is not None:
            self.adapter, room = _adapter(model)
            options |= room | ({"tokenizer": model} if tokenizer_source(model) == model else {})
        name, revision = split_revision(base or model)
        self.llm: Any = LLM(model=name, revision=revision, **(options | config.options))
        self.tokenizer: Any = self.llm.get_tokenizer()
        self.config = config
        self._room = self.llm.model_config.max_model_len
        self._batcher = Batcher(
            lambda waiting: list(range(min(len(waiting), config.batch_rows))), self._run
        )

    async def complete(self, request: Request) -> Completion:
        ids = self._prompt(request)
        options = map(self._encode, request.continuations)
        more = (
            request.sampling.max_new_tokens if request.sampling else max(map(len, options)) + 1
        )  # it adds a token
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
        jobs: list[
            tuple[int, list[int], int, Any]
        ] = []  # (request, tokens, how many are scored, parameters)
        for index, request in enumerate(batch):
            ids = self._prompt(request)
            if request.sampling is not None:
                jobs.append((index, ids, 0, self._parameters(request.sampling, request.seed)))
            for text in request.continuations:
                option = self._encode(text)
                jobs.append((index, ids + option, len(option), self._parameters(None, 0)))
        prompts = [{"prompt_token_ids": tokens} for _, tokens, _, _ in jobs]
        each = [parameters for *_, parameters in jobs]
        outputs = self.llm.generate(prompts, each, use_tqdm=False, lora_request=self.adapter)
        share = (time.perf_counter() - started) / len(batch)
        replies: dict[int, Any] = {}
        scores: dict[int, list[float]] = {}
        for (index, tokens, scored, _), output in zip(jobs, outputs, strict=True):
            if scored:
                tail = zip(tokens[-scored:], output.prompt_logprobs[-scored:], strict=True)
                scores.setdefault(index, []).append(
                    sum(entry[token].logprob for token, entry in tail)
                )
            else:
                replies[index] = output.outputs[0]
        completions = []
        for index, request in enumerate(batch):
            size = len(self._prompt(request))
            if reply := replies.get(index):
                reason = "length" if reply.finish_reason == "length" else "stop"
                completions.append(
                    Completion(reply.text.strip(), reason, size, len(reply.token_ids), share)
                )
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


def _adapter(folder: str) -> tuple[Any, dict[str, Any]]:
    """What vLLM takes an adapter by, and the options that make room for it. Raises UsageError where it takes none."""
    from safetensors import SafetensorError, safe_open
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    values = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    try:
        with safe_open(Path(folder) / "adapter_model.safetensors", "pt") as file:
            modules = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"{folder}: no adapter_model.safetensors that can be read ({error})"
        ) from None
    wanted = max([values.get("r", 0), *(values.get("rank_pattern") or {}).values()])
    rank = next((rank for rank in RANKS if rank >= wanted), None)
    if rank is None or values.get("peft_type") != "LORA" or "lm_head" in modules:
        raise UsageError(
            f"{folder}: of adapters, engine=vllm takes LoRA with r up to {RANKS[-1]} and without lm_head (vLLM can't "
            "score prompts with that); engine=transformers takes any"
        )
    # the modules are named, or vLLM would wrap lm_head too
    options = {"enable_lora": True, "max_lora_rank": rank, "lora_target_modules": modules}
    return LoRARequest("adapter", 1, folder), options
