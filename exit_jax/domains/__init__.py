"""What a policy is trained on: tasks, prompts and verifiers behind the one interface of domain.py."""

from exit_jax.domains import shapes
from exit_jax.domains.domain import Domain
from exit_jax.domains.math import domain as math
from exit_jax.domains.ml_engineering import domain as ml_engineering
from exit_jax.domains.sudoku import domain as sudoku
from exit_jax.domains.tool_use import domain as tool_use

# name -> (type of config.domain's fields, builder)
DOMAINS = {
    "sudoku": (sudoku.SudokuConfig, sudoku.make_domain),
    "math": (math.MathConfig, math.make_domain),
    "tool_use": (tool_use.ToolsConfig, tool_use.make_domain),
    "ml_engineering": (ml_engineering.MleConfig, ml_engineering.make_domain),
    "shapes": (shapes.ShapesConfig, shapes.make_domain),
}


def make(name: str, fields) -> Domain:
    """Build the domain ``name`` from its settings."""
    return DOMAINS[name][1](fields)


def prepare(name: str, fields) -> str:
    """Fetch and prepare the data of the domain ``name``; returns an account for people."""
    if name == "math":
        return math.prepare(fields)
    if name == "ml_engineering":
        return ml_engineering.prepare(fields)
    return f"the domain {name} needs no data: its tasks are made on the spot"
