"""Imports go strictly downward through the rooms of the house, and the algorithm knows jax and optax only."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "exit_jax"
# floors from the top; a module imports from its own room and from floors below: neither upward nor from a neighbour
FLOORS = (
    ("main",),
    ("run",),
    ("serve",),
    ("study", "evaluation", "training", "report", "fit"),
    ("step",),
    ("workdir",),
    ("config",),
    ("domains", "embedding"),
    ("policy", "algorithm"),
    ("sandbox", "parallel"),
    ("plugins",),
    ("types", "settings", "errors"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE) != pathlib.Path("__init__.py"))


def imported(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    here = FLOOR_OF[room(path)]
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "exit_jax" and parts[1] in FLOOR_OF and parts[1] != room(path):
            assert FLOOR_OF[parts[1]] > here, f"{path.name} imports {name}, which is not below it"


@pytest.mark.parametrize("path", [p for p in modules() if room(p) == "algorithm"], ids=lambda path: path.name)
def test_algorithm_knows_jax_and_optax_only(path):
    allowed = {"jax", "optax", "numpy", "exit_jax", "dataclasses", "collections", "functools", "re", "typing"}
    assert {name.split(".")[0] for name in imported(path)} <= allowed
    own = (".algorithm", "exit_jax.settings.", "exit_jax.types.")
    assert not {
        name for name in imported(path) if name.startswith("exit_jax") and not any(part in name for part in own)
    }


def test_every_module_has_a_floor():
    assert {room(path) for path in modules()} <= set(FLOOR_OF)
