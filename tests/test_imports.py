"""Imports run one way, and what answers at once loads nothing heavy."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cai.paths import PACKAGE

# A room may import from the rooms before it. Rooms in one set do not import from each other.
ROOMS = [
    {"root"},  # the files that lie in cai/ itself
    {"config", "store"},
    {"observe"},
    {"data"},
    {"models"},
    {"engines", "training"},
    {"method"},
    {"scoring"},
    {"report"},
    {"stages"},
    {"run", "review"},
    {"api", "cli"},
]
HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "vllm",
    "scipy",
    "sklearn",
)


def name_of(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
ENTRY = "cai.__main__"  # `python -m cai`: the one file in cai/ that imports from a room


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or (PACKAGE / parts[-1]).is_dir() else "root"


def order(module: str) -> int:
    return next(number for number, rooms in enumerate(ROOMS) if room(module) in rooms)


def imports(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Every import of a file with the module's name, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: write imports in full"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node, inner if inner in MODULES else node.module


def imported(module: str) -> set[str]:
    return {name for _, name in imports(MODULES[module]) if name in MODULES} - {module}


@pytest.mark.parametrize("module", [name for name in MODULES if name != ENTRY])
def test_a_room_imports_from_itself_and_the_rooms_before_it(module: str):
    wrong = [
        name
        for name in imported(module)
        if room(name) != room(module) and order(name) >= order(module)
    ]
    assert wrong == []


def test_there_are_no_circles():
    graph = {module: imported(module) for module in MODULES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MODULES)


PLAN = """
from pathlib import Path
from cai.config.compose import compose
from cai.run.plan import plan_run, stages
from cai.store.run_folder import Run
config = compose(["experiment=quickstart"])
assert len(plan_run(config, Run(Path("nowhere")))) == len(stages(config))
"""
HELP = """
import cai.cli.main
try:
    cai.cli.main.main(["--help"])
except SystemExit as end:
    assert end.code == 0
"""


@pytest.mark.parametrize("code", [HELP, PLAN], ids=["help", "plan"])
def test_help_and_plan_load_nothing_heavy(code: str, tmp_path: Path):
    code += f"import sys\nprint('loaded:', sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1:] == ["loaded: []"], done.stderr
