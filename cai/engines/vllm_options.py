"""The options of `vllm serve`, read from vLLM's source in whichever environment it is."""

import re
from pathlib import Path

# how vLLM's source declares an option
FLAG = re.compile(r"\"--([a-z0-9-]+)\"")
FIELD = re.compile(r"^    ([a-z_0-9]+): ", re.MULTILINE)


def option_names(package: Path) -> list[str]:
    """The flags of `vllm serve`, out of the files that declare them; none where those are unknown.

    A few more names stand there, such as options of vLLM's commands other than `serve`.
    """
    files = [*package.glob("engine/arg_utils.py"), *package.glob("entrypoints/**/cli_args.py")]
    if len(files) < 2:
        return []
    texts = [file.read_text(encoding="utf-8") for file in files]
    flags = [flag.replace("-", "_") for text in texts for flag in FLAG.findall(text)]
    return flags + [name for text in texts for name in FIELD.findall(text)]
