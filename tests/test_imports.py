"""Imports run one way, and what answers at once loads nothing heavy."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cai.paths import PACKAGE

LAYERS = [  # lowest first; a module belongs to the longest name here that it starts with
    {"cai", "cai.paths", "cai.errors", "cai.digest", "cai.redact", "cai.telemetry", "cai.tracing"},
    {"cai.config"},
    {"cai.checks"},
    {"cai.rules"},
    {"cai.dialogue", "cai.constitution", "cai.store", "cai.progress", "cai.importing"},
    {"cai.engines", "cai.ledger"},
    {"cai.data", "cai.scoring", "cai.training", "cai.gates", "cai.critique", "cai.instructions", "cai.preferences"},
    {"cai.figures", "cai.tables"},  # a report shows the same figures as the terminal
    {"cai.stages"},
    {"cai.worker", "cai.pipeline", "cai.conductor", "cai.composing"},
    {
        "cai.auditing",
        "cai.comparing",
        "cai.principles",
        "cai.trial",
        "cai.chat",
        "cai.cards",
        "cai.publishing",
    },  # verbs
    {"cai.cli"},
    {"cai.__main__"},
]
HEAVY = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm")


def name_of(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def layer(module: str) -> int:
    near = [
        (len(name), number)
        for number, names in enumerate(LAYERS)
        for name in names
        if f"{module}.".startswith(f"{name}.")
    ]
    length, number = max(near)
    assert length > len("cai") or module == "cai", f"{module} has no layer yet: add it to LAYERS"
    return number


def imported(module: str) -> Iterator[str]:
    """What a module imports when it loads: not inside functions, not under TYPE_CHECKING."""
    waiting: list[ast.AST] = [ast.parse(MODULES[module].read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}: write imports in full"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module
        waiting += ast.iter_child_nodes(node)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_own_layer_or_below(module: str):
    above = [name for name in imported(module) if name in MODULES and layer(name) > layer(module)]
    assert above == []


def test_there_are_no_circles():
    graph = {module: {name for name in imported(module) if name in MODULES} - {module} for module in MODULES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MODULES)


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("cai.engines.vllm")])
def test_heavy_libraries_are_imported_inside_functions(module: str):
    assert [name for name in imported(module) if name.split(".")[0] in HEAVY] == []


PLAN = """
from pathlib import Path
from cai import pipeline
from cai.composing import compose
from cai.store import Run
assert len(pipeline.plan(compose(["experiment=quickstart"]), Run(Path("nowhere")))) == len(pipeline.STAGES) - 1
"""
HELP = """
import cai.cli
cai.cli.main(["--help"])
"""


@pytest.mark.parametrize("code", [HELP, PLAN], ids=["help", "plan"])
def test_help_and_plan_load_nothing_heavy(code: str, tmp_path: Path):
    code += f"import sys\nprint('loaded:', sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["loaded: []"], done.stderr
