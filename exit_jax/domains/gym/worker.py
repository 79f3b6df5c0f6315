"""What a process of reasoning-gym runs: it makes entries of a set, and scores answers to them. Started by path.

It imports no JAX. Requests are JSON lines on stdin, each answered by one line, after a first line that says that the imports
are done (see domains/workers.py):

    {"set", "level", "seed", "size", "secs", "make": [index, ...]}  ->  {"entries": [{"entry": ...} or {"raised": why}, ...]}
    {"set", "level", "seed", "size", "secs", "entry", "answer"}     ->  {"score": number} or {"raised": why}

Entries come as JSON with tags for what JSON does not have (``pack``), for scorers need their tuples and integer keys. Three
scorers evaluate an answer as Python, and five give it to sympy, which evaluates it, too (``__import__("os")...`` in an answer
to countdown would run): here they get literals and plain formulas only, so that nothing runs that a model wrote. An entry or an
answer has "secs" of processor time, and WALL_FACTOR times that by the clock; the kernel enforces both by timers whose signals
end the process, and a limit of address space.
"""

import ast
import fractions
import functools
import json
import logging
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any

from exit_jax.domains import worker_process

TAG = "~"
MAX_DATASETS = 16
MAX_WHY_CHARS = 200
FORMULA = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.Constant,
    ast.Name,
    ast.Load,
    ast.Call,
    ast.operator,
    ast.unaryop,
)
# functions that a formula may call, by sympy's names
FUNCTIONS = frozenset(
    "Abs sqrt exp log ln sin cos tan cot sec csc asin acos atan acot sinh cosh tanh asinh acosh atanh erf Ei li Si Ci".split()
)


def pack(value: Any) -> Any:
    """Return a value as JSON has it, other types and dictionaries marked by TAG.

    Raises:
      TypeError: it holds something of another type.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [pack(item) for item in value]
    if type(value) is dict:
        if all(type(key) is str for key in value) and TAG not in value:
            return {key: pack(item) for key, item in value.items()}
        return {TAG: "dict", "of": [[pack(key), pack(item)] for key, item in value.items()]}
    if type(value) in (tuple, set, frozenset):
        items = [pack(item) for item in value]
        return {TAG: type(value).__name__, "of": items if type(value) is tuple else sorted(items, key=json.dumps)}
    if isinstance(value, fractions.Fraction):
        return {TAG: "Fraction", "of": [value.numerator, value.denominator]}
    if isinstance(value, str):  # a member of an enumeration, which is its text
        return str.__str__(value)
    if hasattr(value, "tolist"):  # of numpy
        return pack(value.tolist())
    raise TypeError(f"an entry holds a {type(value).__name__}")


KINDS: dict[str, Callable[[list], Any]] = {
    "dict": dict,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "Fraction": lambda of: fractions.Fraction(*of),
}


def unpack(value: Any) -> Any:
    """Return what was packed."""
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if isinstance(value, dict):
        return KINDS[value[TAG]](unpack(value["of"])) if TAG in value else {k: unpack(v) for k, v in value.items()}
    return value


def require_formula(text: str) -> None:
    """Raise a SyntaxError unless a text is a formula: numbers, names, operators and calls of FUNCTIONS."""
    for node in ast.walk(ast.parse(text.strip(), mode="eval")):
        plain = isinstance(node, FORMULA) and not (
            isinstance(node, ast.Constant) and type(node.value) not in (int, float)
        )
        if isinstance(node, ast.Call):
            plain &= isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS and not node.keywords
        if not plain:
            raise SyntaxError(f"a formula has no {type(node).__name__}")


def guard() -> None:
    """Let scorers evaluate literals and formulas only."""
    import sympy
    from reasoning_gym import algorithmic, games  # type: ignore[import-not-found]  # an extra
    from sympy.parsing import sympy_parser

    parse = sympy_parser.parse_expr

    @functools.wraps(parse)
    def parse_formula(text, *args, **kwargs):
        require_formula(text)
        return parse(text, *args, **kwargs)

    sympy.parse_expr = sympy_parser.parse_expr = parse_formula
    for module in (games.countdown, games.puzzle24):
        vars(module)["parse_expr"] = parse_formula
    for module in (algorithmic.binary_matrix, algorithmic.spiral_matrix, algorithmic.string_insertion, games.n_queens):
        vars(module)["eval"] = ast.literal_eval


@functools.lru_cache(maxsize=MAX_DATASETS)
def dataset(name: str, level: int, seed: int, size: int) -> Any:
    """Return a set; at a level of its curriculum, or as it is by itself (-1)."""
    from reasoning_gym.factory import (  # type: ignore[import-not-found]
        DATASETS,
        create_curriculum,
        create_dataset,
    )

    if level < 0:
        return create_dataset(name, seed=seed, size=size)
    curriculum = create_curriculum(name)
    curriculum.set_global_level(level)
    config = curriculum.generate_configuration({"seed": seed, "size": size})
    if hasattr(config, "validate"):
        config.validate()
    return DATASETS[name][0](config=config)


def make(given: Any, index: int) -> dict:
    """Return an entry of a set, or why there is none; it depends on seed and index alone, and survives the border."""
    import numpy as np

    random.seed(given.seed + index)  # for sets that draw from the modules' own generators
    np.random.seed((given.seed + index) % 2**32)  # noqa: NPY002
    entry = given[index]
    kept = {name: entry[name] for name in ("question", "answer", "metadata")}
    packed = pack(kept)
    if pack(unpack(json.loads(json.dumps(packed)))) != packed:
        raise TypeError("an entry does not survive being written and read")
    return {"entry": packed}


def attempt(function: Callable[..., dict], *args: Any) -> dict:
    """Return what a function returns, or what it raises.

    Raises:
      MemoryError: the process's limit is too low.
    """
    try:
        return function(*args)
    except MemoryError:
        raise
    except Exception as error:
        return {"raised": repr(error)[:MAX_WHY_CHARS]}


def answer_request(request: dict, restart_timers: Callable[[], None]) -> dict:
    """Return the reply to a request, each entry with its own time."""
    given = dataset(
        request["set"], request["level"], request["seed"], request["size"]
    )  # may read megabytes, in no time limit
    restart_timers()
    if "make" not in request:
        entry = unpack(request["entry"])
        return attempt(lambda: {"score": float(given.score_answer(request["answer"], entry))})
    entries = []
    for index in request["make"]:
        restart_timers()
        entries.append(attempt(make, given, index))
    return {"entries": entries}


def main(memory_bytes: int) -> None:
    """Answer requests until stdin ends."""
    replies = worker_process.begin()
    worker_process.limit_address_space(memory_bytes)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    guard()
    worker_process.write_line(replies, {"ready": True})
    for line in sys.stdin.buffer:
        try:
            request = json.loads(line)
            fields = answer_request(request, functools.partial(worker_process.start_timers, request["secs"]))
        except MemoryError:
            fields = {"error": "out of memory"}
        except Exception as error:
            fields = {"error": repr(error)[:MAX_WHY_CHARS]}
        worker_process.stop_timers()
        worker_process.write_line(replies, fields | {"rss": worker_process.resident_bytes()})


if __name__ == "__main__":
    try:
        import reasoning_gym  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:  # the parent says what is missing
        print(json.dumps({"error": repr(error)}), flush=True)
    else:
        main(int(sys.argv[1]))
