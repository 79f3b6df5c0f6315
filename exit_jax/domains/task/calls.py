"""Reward functions: found by name, told apart by their signature, called on completions. Knows no processes and no JAX.

One form takes one completion, ``score(prompt, completion, **columns)``; the other is TRL's, ``f(prompts, completions,
**columns) -> list[float | None]``, which a parameter named completions, prompts or completion_ids gives away. Either may be
``async``. An item is a JSON object of "prompt" (text), "messages" ([role, content] before it), "columns", "completion",
"ids" (its tokens) and "is_chat"; an outcome is one of

    {"value": float or None, "feedback": str, "answer": str, "figures": {name: float}}
    {"fault": why, "kind": "raised" or "value"}
"""

import asyncio
import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import pathlib
import signal
import threading
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from exit_jax import plugins
from exit_jax.domains.text.surrogates import replace_surrogates

BATCHED = ("completions", "prompts", "completion_ids")  # parameters that only TRL's form has
SINGLE = ("prompt", "completion")
IGNORED = ("log_extra", "log_metric")  # TRL's tables and curves: what is logged there is not kept here
# what else TRL passes; a reward that changes with the step, or keeps a state, could not be resumed exactly
REFUSED = ("trainer_state", "environments")
FIRST_PAUSE_SECS, MAX_PAUSE_SECS = 0.1, 10.0  # before the first retry, twice as long before each further one
MAX_TEXT_CHARS = 20_000  # length of a feedback or an answer
Item = Mapping[str, Any]
Outcome = dict[str, Any]


class ValueFault(ValueError):
    """What a function returned and what cannot be taken for a reward."""


@dataclasses.dataclass(frozen=True)
class Function:
    """A reward function and how it wants to be called."""

    name: str  # as the config has it
    call: Callable[..., Any]
    is_batched: bool
    is_async: bool
    named: frozenset[str] | None  # its parameters; None: it takes whatever there is
    file: str  # its source, "" for none

    def arguments(self, items: Sequence[Item], run: Callable | None) -> dict[str, Any]:
        """Return the keyword arguments for items; one item if it is not batched."""
        given: dict[str, Any] = {"run": run} if run else {}
        if self.is_batched:
            given |= dict.fromkeys(IGNORED, _ignore)
            columns = [name for name in items[0]["columns"] if name not in ("prompt", "completion", *BATCHED)]
            given |= {name: [item["columns"][name] for item in items] for name in columns}
            given |= {
                "prompts": [_prompt(item) for item in items],
                "completions": [_completion(item) for item in items],
            }
            if items[0]["ids"] is not None:
                given["completion_ids"] = [item["ids"] for item in items]
        else:
            (item,) = items
            given = given | dict(item["columns"]) | {name: item[name] for name in SINGLE}
        return given if self.named is None else {name: given[name] for name in self.named if name in given}

    def takes(self, name: str) -> bool:
        """Return whether it is passed an argument of this name."""
        return self.named is None or name in self.named


def _ignore(*_: Any) -> None:
    """Do nothing."""


def _prompt(item: Item) -> Any:
    """Return what TRL passes as a prompt: a text, or a list of messages."""
    if not item["is_chat"]:
        return item["prompt"]
    messages = [*item["messages"], ("user", item["prompt"])]
    return [{"role": role, "content": content} for role, content in messages]


def _completion(item: Item) -> Any:
    """Return what TRL passes as a completion."""
    return [{"role": "assistant", "content": item["completion"]}] if item["is_chat"] else item["completion"]


def load(name: str, columns: Collection[str] | None, can_run: bool) -> Function:
    """Import a reward function and check its signature.

    Args:
      columns: those that every row has; None if they are not known.
      can_run: whether it may ask for ``run``.

    Raises:
      PluginError: with all that is wrong with it.
    """
    module, attribute = plugins.load("domain.reward", name)
    own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    found = getattr(module, attribute, None)
    where = f"domain.reward = {name!r}"
    if found is None:
        raise plugins.PluginError(f"{where}: there is no {attribute!r}{_near(attribute, own, module.__name__)}")
    if not callable(found) or inspect.isclass(found):
        kind = "a class" if inspect.isclass(found) else f"{found!r:.60}, a {type(found).__name__}"
        raise plugins.PluginError(f"{where} is {kind}; name a function, or an object that can be called")
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError) as error:
        raise plugins.PluginError(f"{where} has no signature ({error}); wrap it in a function of your own") from error
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    is_batched = any(word in parameters for word in BATCHED)
    if faults := _faults(parameters, is_batched, takes_all, columns, can_run):
        raise plugins.PluginError(f"{where}{inspect.signature(found)}: {'; '.join(faults)}"[:1000])
    return Function(
        name=name,
        call=found,
        is_batched=is_batched,
        is_async=_is_async(found),
        named=None if takes_all else frozenset(parameters),
        file=str(pathlib.Path(module.__file__ or "").absolute()) if getattr(module, "__file__", None) else "",
    )


def _is_async(found: Any) -> bool:
    """Return whether a call gives a coroutine."""
    while isinstance(found, functools.partial):
        found = found.func
    return inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(getattr(found, "__call__", None))  # noqa: B004


def _faults(
    parameters: Mapping[str, inspect.Parameter],
    is_batched: bool,
    takes_all: bool,
    columns: Collection[str] | None,
    can_run: bool,
) -> list[str]:
    """Return a sentence for each parameter that nothing can be passed for."""
    own = BATCHED if is_batched else SINGLE
    known = {*own, *(columns or ()), *(IGNORED if is_batched else ()), *(("run",) if can_run else ())}
    faults = []
    if not is_batched and not takes_all and "completion" not in parameters:
        faults.append("no parameter is named completion (or completions, for TRL's form), so that it cannot score one")
    for name, parameter in parameters.items():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            faults.append(f"{name} can only be passed by its place; arguments are passed by name")
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            continue
        if name in known or parameter.default is not parameter.empty:
            continue
        if is_batched and name in REFUSED:
            faults.append(f"{name} is not to be had here: a reward that depends on it could not be resumed exactly")
        elif name == "run":
            faults.append('run is passed where domain.reward_runs = "sandbox"; set it, or give run a default')
        elif columns is not None:
            faults.append(f"{name} is neither {' nor '.join(own)} nor a column{_near(name, known, 'the rows')}")
    return faults


def _near(name: str, known: Collection[str], where: str) -> str:
    """Return what a misspelt name may stand for, and what there is."""
    near = difflib.get_close_matches(name, known, 1)
    return (f"; did you mean {near[0]!r}?" if near else "") + f" ({where}: {', '.join(sorted(known)) or 'none'})"


def read(given: Any) -> Outcome:
    """Return the outcome of what a function returned for one completion.

    Raises:
      ValueFault: it is no reward.
    """
    if not isinstance(given, Mapping):
        return {"value": _number(given), "feedback": "", "answer": "", "figures": {}}
    fields = dict(given)
    key = "quality" if "quality" in fields else "score"
    if key not in fields:
        raise ValueFault(
            f"it returned a dictionary without quality (or score), but {', '.join(map(str, fields))}"[:300]
        )
    value, feedback, answer = fields.pop(key), fields.pop("feedback", None), fields.pop("answer", None)
    if not isinstance(feedback, str | None):
        raise ValueFault(f"its feedback is {feedback!r:.60}, a {type(feedback).__name__}; it should be a text")
    figures = {}
    for name, figure in fields.items():
        try:
            figures[str(name)] = _number(figure)
        except ValueFault:
            continue  # what is no figure is for people who read what the function writes
    return {
        "value": _number(value),
        "feedback": _text(feedback or ""),
        "answer": "" if answer is None else _text(str(answer)),
        "figures": {name: figure for name, figure in figures.items() if figure is not None},
    }


def _text(given: str) -> str:
    """Return a text that is not too long and can be written."""
    return replace_surrogates(given[:MAX_TEXT_CHARS])


def _number(given: Any) -> float | None:
    """Return a number as Python has it; those of NumPy and of torch have an ``item``."""
    if given is None:
        return None
    if not isinstance(given, numbers.Real) and hasattr(given, "item"):
        try:
            given = given.item()
        except (TypeError, ValueError, RuntimeError):  # an array of several
            pass
    if not isinstance(given, numbers.Real):
        raise ValueFault(f"it returned {given!r:.60}, a {type(given).__name__}; it should be a number or None")
    try:
        value = float(given)
    except OverflowError:
        raise ValueFault("it returned a number that no float can hold; it should be a finite one, or None") from None
    if not math.isfinite(value):
        raise ValueFault(f"it returned {value}; it should be a number or None")
    return value


def _read_batch(given: Any, count: int) -> list[Any]:
    """Return what a batched function returned, one for each completion."""
    given = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise ValueFault(f"it returned {given!r:.60}, a {type(given).__name__}; it should be a list of {count}")
    if len(given) != count:
        raise ValueFault(f"it returned {len(given)} rewards for {count} completions")
    return list(given)


def what_it_raised(error: BaseException, file: str) -> str:
    """Return an exception in one line, with the last line of a file that led to it, or else the last one of all."""
    frames = traceback.extract_tb(error.__traceback__)
    *_, last = [frame for frame in frames if frame.filename == file] or frames
    words = ": ".join(filter(None, [type(error).__name__, " ".join(str(error).split())[:300]]))
    return f"it raised {words} ({last.filename}, line {last.lineno})"


async def _awaited(given: Any) -> Any:
    """Await a call; what asyncio ends its loop or a task with becomes an error like others, unless its time is up."""
    try:
        return await given
    except (SystemExit, KeyboardInterrupt, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
            raise
        raise RuntimeError(repr(error)).with_traceback(error.__traceback__) from None


def _is_ctrl_c(error: BaseException) -> bool:
    """Return whether this is a user's Ctrl-C, which only a main thread with Python's own handler gets, not a function's own."""
    is_main, handler = threading.current_thread() is threading.main_thread(), signal.getsignal(signal.SIGINT)
    return isinstance(error, KeyboardInterrupt) and is_main and handler is signal.default_int_handler


class Caller:
    """Calls functions on items: each try under the eyes of ``begin``, those that raise once more after a pause."""

    def __init__(self, retries: int, wall_secs: float, max_in_flight: int, run: Callable | None = None):
        self.retries, self.wall_secs, self.max_in_flight, self._run = retries, wall_secs, max_in_flight, run
        self._loop: asyncio.AbstractEventLoop | None = None  # one for all calls: a client of HTTP is bound to it

    def begin(self, spare_secs: float = 0.0) -> None:
        """Note that a try or a pause begins, which may take ``spare_secs`` more than a try's own time."""

    def exhausted(self) -> None:
        """Note that memory is out."""

    def call(self, function: Function, items: Sequence[Item], emit: Callable[[int, Outcome], None]) -> None:
        """Call a function on items; ``emit`` is given the place and the outcome of each, as they come in."""
        groups = [[place] for place in range(len(items))] if not function.is_batched else [list(range(len(items)))]
        if function.is_async:
            self._loop = self._loop or asyncio.new_event_loop()
            self._loop.run_until_complete(self._gather(function, items, groups, emit))
            return
        for group in groups:
            try:
                self._call_group(function, items, group, emit).send(None)
            except StopIteration:  # it never waits: nothing in it is awaited but async functions
                continue

    async def _gather(self, function: Function, items: Sequence[Item], groups: list[list[int]], emit: Callable):
        """Call an async function on all groups, not too many at a time."""
        free = asyncio.Semaphore(self.max_in_flight)

        async def guarded(group):
            async with free:
                await self._call_group(function, items, group, emit)

        await asyncio.gather(*map(guarded, groups))

    async def _call_group(self, function: Function, items: Sequence[Item], group: list[int], emit: Callable) -> None:
        """Emit the outcomes of a group; those of a batch that fails are called one by one."""
        for attempt in range(self.retries + 1):
            try:
                self.begin(self.wall_secs / 2 if function.is_async else 0.0)  # its own limit comes first
                given = function.call(**function.arguments([items[place] for place in group], self._run))
                if function.is_async:
                    given = await asyncio.wait_for(_awaited(given), self.wall_secs)
                found = _read_batch(given, len(group)) if function.is_batched else [given]
                break
            except MemoryError as error:
                self.exhausted()
                fault = {"fault": what_it_raised(error, function.file), "kind": "raised"}
            except ValueFault as error:
                fault = {"fault": str(error), "kind": "value"}
                attempt = self.retries  # it would return the same once more
            except BaseException as error:  # SystemExit and CancelledError are a function's own, too
                if _is_ctrl_c(error):
                    raise
                fault = {"fault": what_it_raised(error, function.file), "kind": "raised"}
            if len(group) > 1:
                for place in group:
                    await self._call_group(function, items, [place], emit)
                return
            if attempt == self.retries:
                return emit(group[0], fault)
            pause = min(FIRST_PAUSE_SECS * 2**attempt, MAX_PAUSE_SECS)
            self.begin(pause)
            await asyncio.sleep(pause) if function.is_async else time.sleep(pause)
        for place, one in zip(group, found, strict=True):
            try:
                outcome = read(one)
            except ValueFault as error:
                outcome = {"fault": str(error), "kind": "value"}
            except BaseException as error:  # of a method of what it returned
                if _is_ctrl_c(error):
                    raise
                outcome = {"fault": what_it_raised(error, function.file), "kind": "value"}
            emit(place, outcome)
