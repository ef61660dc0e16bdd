"""The engine on vLLM, offline: continuous batching, cached prefixes, tensors parallel by options.

An adapter's folder is served as it is, beside its base's weights. vLLM is an optional extra, so
only the engine's methods import it.
"""

import gc
import importlib.util
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from cai.config.schema import EngineConfig, Sampling
from cai.engines.base import Completion, OnText, Request
from cai.engines.batcher import Batcher
from cai.errors import UsageError
from cai.models.chat_template import render
from cai.models.source import adapter_base, split_revision, tokenizer_source

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for


def check(config: EngineConfig, key: str) -> None:
    """Raises UsageError where vllm.LLM would refuse the options later."""
    if config.options.get("data_parallel_size", 1) != 1:
        raise UsageError(
            f"{key}.options.data_parallel_size: vLLM has copies of a model only as a server: start "
            f"`vllm serve MODEL --data-parallel-size N` and take {key}=openai (see docs/scale.md)"
        )


@dataclass(frozen=True)
class Job:
    """A request that waits for its batch."""

    request: Request
    prompt_ids: list[int]
    option_ids: list[list[int]]  # of the continuations


def ready(config: EngineConfig) -> None:
    """Raises UsageError where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise UsageError("engine=vllm: vLLM is not installed; pip install vllm")


class VllmEngine:
    """One vLLM `LLM`. Its seeds are vLLM's own: it samples other texts than transformers does."""

    def __init__(self, config: EngineConfig, model: str):
        from vllm import LLM  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        options: dict[str, Any] = {
            "dtype": config.dtype,
            "trust_remote_code": False,
            "disable_log_stats": True,
        }
        self.adapter: LoRARequest | None = None
        base = adapter_base(model)
        if base is not None:
            options |= adapter_options(model)
            self.adapter = LoRARequest("adapter", 1, model)
            if tokenizer_source(model) == model:
                options["tokenizer"] = model
        name, revision = split_revision(base or model)
        self.llm: LLM = LLM(model=name, revision=revision, **(options | config.options))
        self.tokenizer = self.llm.get_tokenizer()
        self.config = config
        self._context_length = self.llm.model_config.max_model_len
        self._batcher = Batcher(
            lambda waiting: list(range(min(len(waiting), config.batch_rows))), self._run
        )

    async def complete(self, request: Request, on_text: OnText | None = None) -> Completion:
        prompt_ids = self._encode(render(self.tokenizer, request.messages))
        option_ids = [self._encode(text) for text in request.continuations]
        if request.sampling:
            new_tokens = request.sampling.max_new_tokens
        else:
            new_tokens = max(map(len, option_ids)) + 1  # vLLM writes at least one token
        if len(prompt_ids) + new_tokens > self._context_length:
            return Completion("", "too_long", len(prompt_ids), 0, 0.0)
        return await self._batcher.complete(Job(request, prompt_ids, option_ids))

    def close(self) -> None:
        """Lets go of what it can. Only a process of its own (launcher=process) gives back all."""
        del self.llm
        gc.collect()

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _run(self, batch: list[Job]) -> list[Completion]:
        """One call for replies and scores together. A score is a prompt's log-probabilities."""
        started = time.perf_counter()
        prompts: list[list[int]] = []
        parameters = []
        for job in batch:
            sampling, seed = job.request.sampling, job.request.seed
            if sampling is not None:
                prompts.append(job.prompt_ids)
                parameters.append(self._sampling_params(sampling, seed))
            for option_ids in job.option_ids:
                prompts.append(job.prompt_ids + option_ids)
                parameters.append(self._sampling_params(None, 0))
        outputs = iter(
            self.llm.generate(
                [{"prompt_token_ids": ids} for ids in prompts],
                parameters,
                use_tqdm=False,
                lora_request=self.adapter,
            )
        )
        seconds = (time.perf_counter() - started) / len(batch)
        return [self._completion(job, outputs, seconds) for job in batch]

    @staticmethod
    def _completion(job: Job, outputs: Any, seconds: float) -> Completion:
        """Takes from `outputs` those of the job: its reply, or one for each continuation."""
        reply = next(outputs).outputs[0] if job.request.sampling is not None else None
        scores = []
        for option_ids in job.option_ids:
            logprobs = next(outputs).prompt_logprobs[-len(option_ids) :]
            pairs = zip(option_ids, logprobs, strict=True)
            scores.append(sum(by_token[token].logprob for token, by_token in pairs))
        if reply is None:
            return Completion("", "score", len(job.prompt_ids), 0, seconds, tuple(scores))
        reason = "length" if reply.finish_reason == "length" else "stop"
        new_tokens = len(reply.token_ids)
        return Completion(reply.text.strip(), reason, len(job.prompt_ids), new_tokens, seconds)

    @staticmethod
    def _sampling_params(sampling: Sampling | None, seed: int) -> Any:
        from vllm import SamplingParams  # pyright: ignore

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


def adapter_options(folder: str) -> dict[str, Any]:
    """vLLM's options that make room for an adapter. Raises UsageError where vLLM can't take it."""
    config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    try:
        with safe_open(Path(folder) / "adapter_model.safetensors", "pt") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"{folder}: no adapter_model.safetensors that can be read ({error})"
        ) from None
    # vLLM would wrap lm_head too if the modules were not named
    modules = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names})
    largest = max([config.get("r", 0), *(config.get("rank_pattern") or {}).values()])
    rank = next((rank for rank in LORA_RANKS if rank >= largest), None)
    if rank is None or config.get("peft_type") != "LORA" or "lm_head" in modules:
        raise UsageError(
            f"{folder}: of adapters, engine=vllm takes LoRA with r up to {LORA_RANKS[-1]} and "
            "without lm_head (vLLM can't score prompts with that); engine=transformers takes any"
        )
    return {"enable_lora": True, "max_lora_rank": rank, "lora_target_modules": modules}
