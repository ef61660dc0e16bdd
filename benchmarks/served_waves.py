"""The waves of benchmarks/served.py, run by the Python of vLLM's environment, which has no cai.

Reads a line of JSON for each wave, prompts as token ids, and answers with a line of texts.
"""

# pyright: reportMissingImports=false
import json
import os
import sys

if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no answer
    from vllm import LLM, SamplingParams

    llm = LLM(**json.loads(sys.argv[1]), disable_log_stats=True)
    greedy = SamplingParams(temperature=0, max_tokens=int(sys.argv[2]))
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        prompts = [{"prompt_token_ids": ids} for ids in json.loads(line)]
        outputs = llm.generate(prompts, greedy, use_tqdm=False)
        print(
            json.dumps([output.outputs[0].text.strip() for output in outputs]), file=out, flush=True
        )
