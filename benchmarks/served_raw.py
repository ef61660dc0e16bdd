"""vLLM's own client, `vllm bench serve`, for benchmarks/served.py; run by vLLM's Python.

    python served_raw.py SOCKET MODEL NEW_TOKENS

Reads a line of JSON, prompts as token ids, and answers with the seconds that their texts took.
"""

# pyright: reportMissingImports=false
import argparse
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no answer
    import aiohttp

    socket, model, new_tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
    aiohttp.TCPConnector = lambda **_: aiohttp.UnixConnector(path=socket)
    from vllm.benchmarks import serve
    from vllm.benchmarks.datasets import SampleRequest

    prompts = json.loads(sys.stdin.readline())
    serve.get_samples = lambda *_: [
        SampleRequest(prompt=ids, prompt_len=len(ids), expected_output_len=new_tokens)
        for ids in prompts
    ]
    parser = argparse.ArgumentParser()
    serve.add_cli_args(parser)
    with TemporaryDirectory() as folder:
        words = ["--backend=openai", "--base-url=http://vllm", "--model=base", "--temperature=0"]
        words += [f"--tokenizer={model}", f"--num-prompts={len(prompts)}", "--disable-tqdm"]
        words += ["--save-result", f"--result-dir={folder}", "--result-filename=result.json"]
        serve.main(parser.parse_args(words))
        result = json.loads((Path(folder) / "result.json").read_text())
    assert result["completed"] == len(prompts), result
    print(result["duration"], file=out, flush=True)
