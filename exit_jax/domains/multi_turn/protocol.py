"""The protocol of several turns: what an environment is, what it may raise, and how the name in a config becomes one.

A class, or a function that makes one, is named as ``domain.environment = "my_game.py:Game"``; many instances of it live in a
worker process, one for each live episode:

    class Game:
        def __init__(self, **environment_args): ...
        def reset(self, row: dict) -> str | list: ...  # the task's columns -> what is said up to the first response, see below
        def step(self, text: str) -> tuple[str, float, bool]: ...  # a response's final answer -> observation, reward, done

``reset`` returns a text, which a user says, or messages with role and content: a system message or none, then user and
assistant in turn, and the user at last. The same row and the same texts must always lead to the same observations and rewards,
whatever other instances do in the meantime: a history is brought about again by its texts. An environment may have, besides,

        def rows(self, split, count, first) -> list[dict]  # tasks of a split, where domain.tasks names none; always the same
        def save(self) -> Any                              # a copy of the state: what is done later does not change it
        def load(self, state)                              # brings a fresh instance to it, which has seen no reset
        def close(self)                                    # the episode is over
        concurrent = True                                  # False: one instance at a time in all

Without ``rows`` the tasks are {"seed": first}, {"seed": first + 1} and so on. With ``save`` and ``load`` the rollouts of a
group start from a copy; without them each one plays the texts up to there again. An adapter is named as "prefix:target"; its
class is called with the target before the arguments. Nothing but the standard library is imported here: workers are light.
"""

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import json
import math
import numbers
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from exit_jax import plugins
from exit_jax.domains.text.surrogates import replace_surrogates
from exit_jax.plugins import PluginError

MAX_OBSERVATION_CHARS = 100_000  # length of an observation; of a longer one the middle is left out
ROLES = ("user", "assistant")


class Unavailable(Exception):
    """A server that went away, after all retries: the run stops, and goes on at the next start."""


class Refused(Exception):
    """An environment that cannot be carried here; the message says which and why. Raised while it is made, or by ``reset``."""


class Fault(ValueError):
    """What an environment returned and what is wrong with it."""


class Adapter(NamedTuple):
    """Where the class of an adapter is, and what its package is installed with."""

    path: str  # module:class
    install: str


ADAPTERS: Mapping[str, Adapter] = {
    "openenv": Adapter("exit_jax.domains.multi_turn.openenv:OpenEnv", 'pip install "exit_jax[openenv]"'),
    "textarena": Adapter("exit_jax.domains.multi_turn.textarena:TextArena", 'pip install "exit_jax[textarena]"'),
    "verifiers": Adapter("exit_jax.domains.multi_turn.verifiers:Verifiers", 'pip install "exit_jax[verifiers]"'),
}


def factory(name: str, arguments: Mapping[str, Any]) -> Callable[[], Any]:
    """Return what makes an instance of the environment ``name``, imported.

    Raises:
      PluginError: there is none, its package is not installed, or it cannot be called with the arguments.
    """
    where = f"domain.environment = {name!r}"
    prefix, _, target = name.partition(":")
    given: tuple[str, ...] = ()
    if prefix in ADAPTERS:
        path, install = ADAPTERS[prefix]
        try:
            module = importlib.import_module(path.partition(":")[0])
        except ImportError as error:
            raise PluginError(f"{where}: the adapter cannot be imported ({error}); {install}") from error
        attribute, given = path.partition(":")[2], (target,)
    else:
        try:
            module, attribute = plugins.load("domain.environment", name)
        except PluginError as error:
            near = difflib.get_close_matches(prefix, ADAPTERS, 1)
            if not near:
                raise
            raise PluginError(f"{error}; did you mean the adapter {near[0]!r}?") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        own = [
            key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__
        ]
        kind = "there is no" if found is None else "no class or function is"
        raise PluginError(f"{where}: {kind} {attribute!r} in {module.__name__}, but {', '.join(own) or 'no class'}")
    try:
        inspect.signature(found).bind(*given, **arguments)
    except TypeError as error:
        raise PluginError(
            f"{where}: it cannot be called with domain.environment_args = {dict(arguments)} ({error})"
        ) from error
    except ValueError:  # it has no signature
        pass
    return functools.partial(found, *given, **arguments)


def source(name: str) -> pathlib.Path | None:
    """Return the file of an environment of a user's own, without importing it; None where it cannot be told."""
    where, _, _ = name.rpartition(":")
    if name.partition(":")[0] in ADAPTERS or not where:
        return None
    if where.endswith(".py"):
        return pathlib.Path(where).expanduser().absolute()
    try:
        spec = importlib.util.find_spec(where)
    except (ImportError, ValueError):
        return None
    return pathlib.Path(spec.origin) if spec and spec.origin and spec.has_location else None


def require_methods(instance: Any) -> None:
    """Check that an instance has what the protocol asks for.

    Raises:
      Fault: naming all that it lacks.
    """
    kind = type(instance).__name__
    wrong = []
    for name, arguments in (
        ("reset", ("row",)),
        ("step", ("text",)),
        ("save", ()),
        ("load", ("state",)),
        ("close", ()),
    ):
        method = getattr(instance, name, None)
        if method is None and name not in ("reset", "step"):
            continue
        if not callable(method):
            wrong.append(f"{kind} has no method {name}({', '.join(arguments)})")
            continue
        try:
            inspect.signature(method).bind(*arguments)
        except TypeError as error:
            wrong.append(
                f"{kind}.{name}{inspect.signature(method)} cannot be called as {name}({', '.join(arguments)}): {error}"
            )
        except ValueError:  # it has no signature
            pass
    if hasattr(instance, "save") != hasattr(instance, "load"):
        wrong.append(f"{kind} has one of save and load; give it both, or none")
    if wrong:
        raise Fault("; ".join(wrong))


def read_opening(given: Any) -> list[list[str]]:
    """Return the [role, content] of each message that ``reset`` returned.

    Raises:
      Fault: it is no text and no conversation that ends with a user's message.
    """
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(messages, Sequence) or not all(isinstance(m, Mapping) for m in messages):
        is_gymnasium = isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping)
        remedy = "; of gymnasium's (observation, info) return the observation alone" if is_gymnasium else ""
        raise Fault(
            f"reset returned {given!r:.100}; it should return a text, or messages with role and content{remedy}"
        )
    found: list[Any] = [[m.get("role"), m.get("content")] for m in messages]
    if not all(isinstance(part, str) for message in found for part in message):
        raise Fault(f"reset returned {given!r:.100}; role and content of each message should be texts")
    roles = [role for role, _ in found]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != [ROLES[i % 2] for i in range(len(turns))] or turns[-1] != "user":
        raise Fault(
            f"reset returned messages of the roles {', '.join(roles) or '(none)'}; there should be system at first, if at all, "
            "then user and assistant in turn, and user at last"
        )
    if not found[-1][1].strip():
        raise Fault("reset returned a last message that is empty")
    return [[role, replace_surrogates(content)] for role, content in found]


def read_step(given: Any) -> tuple[str, float, bool]:
    """Return the observation, reward and end that ``step`` returned.

    Raises:
      Fault: it is no such thing.
    """
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != 3:
        remedies = {
            4: "; leave gym's info out",
            5: "; of gymnasium's (observation, reward, terminated, truncated, info) leave info out, with done = terminated or "
            "truncated",
        }
        remedy = remedies.get(len(given), "") if isinstance(given, tuple) else ""
        raise Fault(f"step returned {given!r:.100}; it should return (observation, reward, done){remedy}")
    observation, reward, done = given
    if not isinstance(observation, str):
        raise Fault(
            f"step returned the observation {observation!r:.100}, a {type(observation).__name__}; it should be a text"
        )
    reward, done = (value.item() if hasattr(value, "item") else value for value in (reward, done))  # of NumPy or torch
    if not isinstance(reward, numbers.Real) or not math.isfinite(reward):
        raise Fault(f"step returned the reward {reward!r:.100}; it should be a finite number")
    if not isinstance(done, bool):
        raise Fault(f"step returned done = {done!r:.100}, a {type(done).__name__}; it should be True or False")
    return shorten(replace_surrogates(observation)), float(reward), done


def read_rows(given: Any, count: int) -> list[Any]:
    """Return the first ``count`` tasks that ``rows`` returned, as JSON values.

    Raises:
      Fault: it returned none, or something else.
    """
    if not isinstance(given, Iterable) or isinstance(given, str | Mapping):
        raise Fault(
            f"rows returned {given!r:.100}, a {type(given).__name__}; it should return a list of mappings, a task each"
        )
    found = list(itertools.islice(given, count))
    if wrong := [row for row in found if not isinstance(row, Mapping)]:
        raise Fault(f"rows returned {wrong[0]!r:.100} as a task; it should return mappings")
    try:
        return json.loads(json.dumps(found))
    except (TypeError, ValueError, OverflowError) as error:
        raise Fault(f"rows returned tasks that are no JSON ({error})") from error


def shorten(text: str) -> str:
    """Return a text without its middle where it is too long to be kept."""
    if len(text) <= MAX_OBSERVATION_CHARS:
        return text
    half = MAX_OBSERVATION_CHARS // 2
    return f"{text[:half]}\n[{len(text) - 2 * half:,} characters left out]\n{text[-half:]}"


def digest(value: Any) -> str:
    """Return a short name of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def key_after(key: str, turn: Sequence[Any]) -> str:
    """Return the key of the state that a turn, [text, observation, reward, done], leads to from the state of ``key``."""
    return digest([key, *turn])
