"""Turns the two JSON layouts of principles in the wild into a principle file.

- The paper's release: {name: {"prompt": text or [texts], "edit_request": text}}.
- llm-swarm's: {"constitutions": [{"critic", "revision"}], "system_chat": [[six messages], ...]}.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from cai.errors import UsageError

LABELS = re.compile(r"^\s*(?:Critique\s?Request|Revision\s?Request):\s*|\s*(?:Critique|Revision):\s*$", re.IGNORECASE)


def import_principles(path: Path) -> str:
    """A principle file as YAML text. Raises UsageError where the layout is neither of the two."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {error}") from None
    try:
        if isinstance(found, dict) and "constitutions" in found:
            principles, exemplars = _swarm(found)
        elif isinstance(found, dict) and found:
            principles, exemplars = _release(found), []
        else:
            raise TypeError
    except (KeyError, TypeError, IndexError, AttributeError):
        raise UsageError(
            f'{path}: neither {{name: {{"prompt", "edit_request"}}}} '
            f'nor {{"constitutions": [{{"critic", "revision"}}]}}'
        ) from None
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "imported"
    content = {"name": name, "description": f"Imported from {path.name}.", "principles": principles}
    if exemplars:
        content["exemplars"] = exemplars
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=118)


def _principle(name: str, critique: str, revision: str, **more: Any) -> dict[str, Any]:
    """Neither layout has comparisons, so one is made from the revision request."""
    comparison = f"Which of these answers is in less need of this change? {revision}"
    return {"id": name, **more, "critique": critique, "revision": revision, "comparison": comparison}


def _release(found: dict[str, Any]) -> list[dict[str, Any]]:
    principles = []
    for name, entry in found.items():
        prompt = entry["prompt"]
        critique = prompt[0] if isinstance(prompt, list) else prompt
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        principles.append(_principle(slug, _bare(critique), _bare(entry["edit_request"])))
    return principles


def _swarm(found: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rules = [(_bare(one["critic"]), _bare(one["revision"])) for one in found["constitutions"]]
    principles = [_principle(f"principle-{n}", *texts) for n, texts in enumerate(rules, 1)]
    exemplars = []
    for number, chat in enumerate(found.get("system_chat", []), 1):
        texts = [_bare(turn["content"]) for turn in chat]
        asked = (texts[-4], texts[-2])
        if asked in rules:
            shown = f"principle-{rules.index(asked) + 1}"
        else:  # the request that it shows is none of the principles: keep it for the example alone
            shown = f"exemplar-{number}"
            principles.append(_principle(shown, *asked, weight=0))
        dialogue = [{"role": turn["role"], "content": turn["content"].strip()} for turn in chat[:-4]]
        exemplars.append({"principle": shown, "dialogue": dialogue, "critique": texts[-3], "revision": texts[-1]})
    return principles, exemplars


def _bare(text: str) -> str:
    """Without the labels around it: "CritiqueRequest: ... Critique:"."""
    return LABELS.sub("", LABELS.sub("", text.strip())).strip()
