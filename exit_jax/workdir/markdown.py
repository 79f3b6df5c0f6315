"""Tables of Markdown."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """Return a Markdown table; all columns but the first are ``numbers``, to the right, or else text."""
    rule = ["---"] + ["--:" if numbers else "---"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))
