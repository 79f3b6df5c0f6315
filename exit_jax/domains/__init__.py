"""What a policy is trained on: tasks, prompts and verifiers behind the one interface of domain.py."""

from exit_jax.domains import shapes
from exit_jax.domains.domain import Domain
from exit_jax.domains.sudoku.domain import SudokuConfig, make_domain

# name -> (type of config.domain's fields, builder)
DOMAINS = {"sudoku": (SudokuConfig, make_domain), "shapes": (shapes.ShapesConfig, shapes.make_domain)}


def make(name: str, fields) -> Domain:
    """Build the domain ``name`` from its settings."""
    return DOMAINS[name][1](fields)
