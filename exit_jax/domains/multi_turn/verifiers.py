"""Environments of the package verifiers (its v1, ``verifiers.v1``) by the protocol of several turns.

There the environment is in charge: it asks a model, by HTTP, for one response after another. The package's own server takes its
requests, so that stops, limits and scores are all the package's; only the model behind that server is ours: a Client whose
answer waits until ``step`` has a text. An event loop runs while ``reset`` or ``step`` waits for the next request or the end,
and stands still in between: there is neither a thread nor a second server. ``close`` ends the episode with all that it holds.
"""

import asyncio
import copy
import functools
import importlib.metadata
import itertools
import json
import logging
import resource
import sys
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import aiohttp  # type: ignore[import-not-found]  # of verifiers
import verifiers.v1 as vf  # type: ignore[import-not-found]  # an extra
from verifiers.v1.configs.agent import agent_config_fields  # type: ignore[import-not-found]
from verifiers.v1.dialects.chat import ChatDialect, message_to_wire  # type: ignore[import-not-found]
from verifiers.v1.utils.compile import resolve_runtime_config, validate_pairing  # type: ignore[import-not-found]
from verifiers.v1.utils.loaders import load_environment, load_harness, resolve_env_config  # type: ignore[import-not-found]

from exit_jax.domains.multi_turn.protocol import Refused

__all__ = ["Chat", "Verifiers"]  # the package looks here for the one harness

VERSION = "0.4.0"  # what this was tried with: _episode puts its model where this version looks for one
CHAT = "exit_jax_chat"  # a name for this module without dots: the package looks for those in its own folders
sys.modules[CHAT] = sys.modules[__name__]
MAX_FILES = 16384  # that a process may have open
FOREVER = 1e9  # seconds: the policy takes as long as it takes
TENTHS = {"test": 0, "validation": 1}  # tasks 0, 10, 20... and 1, 11, 21...; all others are for training


class Chat(vf.Harness[vf.HarnessConfig]):
    """One request a turn and no tools: the package's harness ``null`` without its process and its downloads."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data) -> vf.ProgramResult:
        system, prompt = self.resolve_prompt(data)
        messages = [{"role": "system", "content": system}] if system else []
        if isinstance(prompt, str):
            messages.append({"role": "user", "content": prompt})
        else:
            messages.extend(map(message_to_wire, prompt or ()))
        body = {"model": ctx.model, "messages": messages}
        headers = {"Authorization": f"Bearer {secret}"}
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
            session.post(f"{endpoint}/chat/completions", json=body, headers=headers) as answer,
        ):
            return vf.ProgramResult(0, "", "") if answer.ok else vf.ProgramResult(1, "", await answer.text())


class _Model(vf.Client):
    """The model that the package asks: each answer waits for ``step``."""

    def __init__(self, owner: "Verifiers"):
        self._owner = owner

    async def get_response(self, dialect, body, sampling, session_id=None, turn=None, headers=None) -> vf.Response:
        if not isinstance(dialect, ChatDialect):
            raise self._owner.refuse(f"it asks by {dialect.upstream_path}, not by /chat/completions")
        message = {"role": "assistant", "content": await self._owner.answer(body)}
        raw: dict[str, Any] = {"id": "exit_jax", "object": "chat.completion", "created": 0, "model": body["model"]}
        raw["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
        response = dialect.parse_response(dialect.validate_response(raw))
        response.raw = raw
        return response


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that knows the processes which were started in it."""

    def __init__(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if 0 <= soft < MAX_FILES:  # an episode holds six, and 1024 is a usual limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES if hard < 0 else min(MAX_FILES, hard), hard))
        super().__init__()
        self.processes: list[asyncio.SubprocessTransport] = []

    async def subprocess_exec(self, *args, **settings):
        started = await super().subprocess_exec(*args, **settings)
        self.processes.append(started[0])
        return started


@functools.lru_cache(maxsize=8)
def load(given: str) -> tuple[vf.Env, vf.Harness]:
    """Return the environment of a config in JSON and the harness of its one agent; a process makes them once.

    Raises:
      Refused: it cannot be carried.
      ValueError, TypeError, AttributeError, ImportError: of a config or a package that is none.
    """
    if (found := importlib.metadata.version("verifiers")) != VERSION:
        raise Refused(f"it goes with verifiers {VERSION}, not {found}; pip install verifiers=={VERSION}")
    logging.getLogger("verifiers").setLevel(logging.CRITICAL)  # what fails is raised, and whoever plays tells of it
    asked = json.loads(given)
    config = resolve_env_config({**asked, "interception": {"type": "server"}})
    seats = agent_config_fields(config)
    if len(seats) != 1:
        raise Refused(f"several agents play it ({', '.join(seats)}), and a policy here is one")
    ((name, seat),) = seats.items()
    if limits := [key for key, value in seat if key.endswith("_tokens") and value is not None]:
        raise Refused(f"{name}.{limits[0]} would count no tokens; set the domain's own limits")
    changes: dict[str, Any] = {}
    if seat.harness is None and vf.default_agent_harness(config.taskset.id).id == "bash":  # the taskset brings none
        changes["harness"] = vf.HarnessConfig.model_validate({"id": CHAT})
    if isinstance(seat.runtime, vf.PrimeConfig) and "runtime" not in asked.get(name, {}):  # a rented machine
        changes["runtime"] = vf.SubprocessConfig()
    if seat.timeout.rollout is None:
        changes["timeout"] = seat.timeout.model_copy(update={"rollout": FOREVER})
    seat = seat.model_copy(update=changes)
    env = load_environment(config.model_copy(update={name: seat}))
    if servers := [*type(env.taskset).task_type().toolsets(config.taskset.task), *env.taskset.toolsets(config.taskset)]:
        raise Refused(f"it offers tools ({type(servers[0]).__name__}), and a policy here answers in text")
    return env, load_harness(seat.harness or vf.default_agent_harness(config.taskset.id))


class Verifiers:
    """An environment of verifiers: a taskset, and how one agent plays its tasks.

    Args:
      target: the taskset's id, the name of an installed package.
      splits: settings of the taskset for a split that has tasks of its own, as {"test": {"split": "test"}}.
      config: the package's ``EnvConfig``, as taskset = {...}, agent = {"max_turns": 4}.

    Raises:
      Refused: it is none, or one that cannot be carried.
    """

    def __init__(self, target: str, /, splits: Mapping[str, Mapping] | None = None, **config: Any):
        self._name = f"verifiers:{target}"
        self._runner: asyncio.Runner | None = None
        self._splits = dict(splits or {})
        self._given = {**config, "taskset": {**config.get("taskset", {}), "id": target}}
        self._env, self._harness = self._load({})

    def rows(self, split: str, count: int, first: int) -> list[dict]:
        """Return up to ``count`` tasks of a split, as JSON, in the taskset's order; ``first`` is not needed.

        A split with settings of its own has all tasks of those; of the others, a tenth is for testing, a tenth for validation.
        """
        own = self._splits.get(split)
        if own is None and split not in ("train", *TENTHS):
            raise self.refuse(f"there is no split {split!r}; say what it is in splits")
        taskset = self._load(own or {})[0].taskset
        places = {tenth: name for name, tenth in TENTHS.items() if name not in self._splits}
        tasks = (task for i, task in enumerate(taskset) if own is not None or places.get(i % 10, "train") == split)
        return [self._row(task.data) for task in itertools.islice(tasks, count)]

    def reset(self, row: dict) -> list[dict]:
        """Begin the episode of a task, given its columns, and return the messages of the first request."""
        self.close()
        kind = type(self._env.taskset).task_type()
        task = kind(kind.data_type().model_validate(row), self._env.config.taskset.task)
        self._check_fit(task)
        self._plays = 0
        self._refused: Refused | None = None
        self._history: list[dict[str, str]] = []
        self._pending: asyncio.Future[str] | None = None
        self._runner = asyncio.Runner(loop_factory=_Loop)
        opening, reward = self._run(self._begin(task))
        if opening is None:
            raise RuntimeError(f"{self._name}: the episode ended with the reward {reward} before anything was asked")
        return opening

    def step(self, text: str) -> tuple[str, float, bool]:
        """Answer the request; return what is said next, or the reward at the end."""
        if self._runner is None:
            raise RuntimeError(f"{self._name}: there is no episode; reset begins one")
        said, reward = self._run(self._go_on(text))
        return "\n\n".join(message["content"] for message in said or ()), reward, said is None

    def close(self) -> None:
        """End the episode, wherever it is."""
        runner, self._runner = self._runner, None
        if runner is not None:
            try:
                runner.run(self._end())
            finally:
                runner.close()

    def refuse(self, why: str) -> Refused:
        """Return what refuses this environment, which ``reset`` or ``step`` raises if it is not raised there."""
        refused = Refused(f"{self._name}: {why}")
        if self._runner is not None:
            self._refused = refused
            if not self._asked.done():
                self._asked.set_result(None)
        return refused

    async def answer(self, body: Mapping[str, Any]) -> str:
        """Return the policy's answer to a request, when there is one."""
        if body.get("tools"):
            raise self.refuse("it offers tools, and a policy here answers in text")
        messages = [self._read(message) for message in body["messages"]]
        said = len(self._history)
        if self._pending is not None or messages[:said] != self._history:
            raise self.refuse("a request does not follow the last: it asks twice at a time, or rewrites what was said")
        new = messages[said:]
        if any(message["role"] != "user" for message in (new if said else new[-1:])) or not new:
            raise self.refuse(f"a request's messages are {', '.join(m['role'] for m in messages)}; a user should ask")
        self._history = messages
        self._pending = asyncio.get_running_loop().create_future()
        self._asked.set_result(new)
        return await self._pending

    def _load(self, more: Mapping) -> tuple[vf.Env, vf.Harness]:
        """Return the environment with more settings of its taskset, and its agent's harness, or refuse it."""
        given = {**self._given, "taskset": {**self._given["taskset"], **more}}
        try:
            env, harness = load(json.dumps(given, sort_keys=True))
        except (Refused, ValueError, TypeError, AttributeError, ImportError) as error:
            raise self.refuse(" ".join(str(error).split())) from error
        return copy.copy(env), harness  # what an episode sets is its own

    def _row(self, data: vf.TaskData) -> dict:
        """Return a task's data as JSON, without what is as ever."""
        whole = data.model_dump(mode="json")
        row = {name: whole[name] for name in data.model_dump(exclude_defaults=True)}
        try:
            same = type(data).model_validate(row) == data
        except ValueError:
            same = False
        if not same:
            raise self.refuse(f"task {data.idx} is another one when it is read back from JSON")
        return row

    def _check_fit(self, task: vf.Task) -> None:
        """Refuse a task that does not go with the agent, by the package's own rules, or that is graded by files."""
        ((_, seat),) = agent_config_fields(self._env.config).items()
        try:
            validate_pairing(self._harness, type(task), resolve_runtime_config(seat.runtime, task))
        except (ValueError, TypeError) as error:
            raise self.refuse(str(error)) from error
        if task.data.artifacts and not self._harness.EXECUTES_CODE:
            raise self.refuse(f"task {task.data.idx} asks for files, and a policy here answers in text")

    def _run(self, waiting: Coroutine[Any, Any, list[dict] | None]) -> tuple[list[dict] | None, float]:
        """Run the episode to its next request, and return what is new in it, or None and the reward at the end."""
        assert self._runner is not None
        try:
            said = self._runner.run(waiting)
            reward = 0.0 if said is not None else self._reward()
        except BaseException:
            self.close()
            raise
        if said is None:
            self.close()
        return said, reward

    async def _begin(self, task: vf.Task) -> list[dict] | None:
        self._asked: asyncio.Future[list[dict] | None] = asyncio.get_running_loop().create_future()
        self._playing = asyncio.create_task(self._episode(task))
        return await self._next()

    async def _go_on(self, text: str) -> list[dict] | None:
        assert self._pending is not None
        self._asked = asyncio.get_running_loop().create_future()
        self._history.append({"role": "assistant", "content": text})
        pending, self._pending = self._pending, None
        pending.set_result(text)
        return await self._next()

    async def _next(self) -> list[dict] | None:
        await asyncio.wait({self._asked, self._playing}, return_when=asyncio.FIRST_COMPLETED)
        if self._refused is not None:
            raise self._refused
        return self._asked.result() if self._asked.done() else None

    async def _end(self) -> None:
        self._playing.cancel()
        await asyncio.wait({self._playing})
        for process in asyncio.get_running_loop().processes:  # type: ignore[attr-defined]
            while process.get_returncode() is None:  # killed, but not yet known to have ended
                await asyncio.sleep(0.001)
            process.close()

    async def _episode(self, task: vf.Task) -> vf.Episode:
        """Play a task to its end."""
        client = vf.TrainClientConfig.model_validate(
            {"base_url": "http://127.0.0.1"}
        )  # a kind that no stream is asked of
        async with self._env.serving():
            server: Any = self._env._interception
            server.clients[client.model_dump_json()] = _Model(self)
            return await self._env.run_episode(task, vf.ModelContext("policy", client), on_trace=self._count)

    def _count(self, trace: vf.Trace) -> None:
        self._plays += 1
        if self._plays > 1:
            raise self.refuse("an episode plays its task several times, and a reward here is that of one")

    def _read(self, message: Mapping[str, Any]) -> dict[str, str]:
        """Return the role and the text of a request's message."""
        content = message.get("content") or ""
        parts: Sequence[Mapping] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        kinds = {part["type"] for part in parts} | ({"tool_calls"} if message.get("tool_calls") else set())
        if message["role"] not in ("system", "user", "assistant") or kinds - {"text"}:
            raise self.refuse(f"a {message['role']} message has {', '.join(sorted(kinds))}; only text is carried")
        return {"role": message["role"], "content": "\n".join(part["text"] for part in parts)}

    def _reward(self) -> float:
        """Return the weighted sum of a finished episode's rewards, or raise what went wrong in it."""
        episode = self._playing.result()
        errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        if not episode.ok:
            raise RuntimeError(f"{self._name}: " + "; ".join(f"{error.type}: {error.message}" for error in errors))
        (trace,) = episode.traces
        if trace.is_timeout or not trace.rewards or None in trace.rewards.values():
            raise RuntimeError(f"{self._name}: {trace.stop_condition}, and its rewards are {dict(trace.rewards)}")
        return float(trace.reward)
