"""Servers of OpenEnv, by their wire and without their package: JSON over a WebSocket, one connection an episode.

Each connection to ``<url>/ws`` has an environment of its own on the server, up to its ``max_concurrent_envs`` (1 by default).
It takes ``reset`` with keywords and ``step`` with an action, and answers with an observation, a reward and whether the episode
is over; ``<url>/schema`` has the JSON schemas of actions and observations. Read from the server of openenv-core 0.3.0.
"""

import contextlib
import functools
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from websockets.exceptions import (  # pyright: ignore[reportMissingImports]  # an extra
    ConnectionClosed,
    WebSocketException,
)
from websockets.sync.client import connect  # pyright: ignore[reportMissingImports]

from exit_jax.domains.multi_turn.openenv_fields import (
    TOOL_CALL,
    NoAction,
    as_text,
    not_text,
    read_action,
    read_fields,
    said,
)
from exit_jax.domains.multi_turn.protocol import Refused, Unavailable

FIRST_PAUSE_SECS, MAX_PAUSE_SECS = 0.1, 5.0  # between attempts
CLOSE_SECS = 1.0  # patience with a server that should close a connection
MAX_BYTES = 64 << 20  # of one message
TOO_BIG = 1009  # code of a connection that was closed for that
TOOL_TAG = {"type": "call_tool"}


class Garbled(Exception):
    """An answer that is no message of OpenEnv, or says that there is no session."""


class Full(Garbled):
    """A server that has no session to spare."""


class ServerError(Exception):
    """An error that the server reports of a reset or step, with its code."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class NoAnswer(Exception):
    """A reset or step that took too long; it costs the episode."""


LOST = (OSError, http.client.HTTPException, WebSocketException, Garbled)  # what is worth another attempt


class OpenEnv:
    """An environment behind a server of OpenEnv.

    A reset opens a connection, and with it an environment that no earlier episode has touched. Where the connection is lost, a
    step opens another and plays the episode's actions again, which must be answered as before.
    """

    def __init__(
        self,
        url: str,
        action: str | None = None,
        observation: str | None = None,
        wait_secs: float = 15.0,
        timeout_secs: float = 20.0,
    ):
        """Ask the server what its actions and observations look like.

        Args:
          url: The server's address, as ``http://127.0.0.1:8000``.
          action: Field of an action that a response which is no JSON object is the value of; by default the only required one.
          observation: Field of an observation that is shown; by default the only one if it is a text, or else the JSON of all.
          wait_secs: Seconds for which a server that is away, or full, is tried again.
          timeout_secs: Limit of one reset or step, in seconds.

        Raises:
          Refused: It is no such server, or has no such field.
          Unavailable: It is not there.
        """
        self._url = address_of(url)
        self._wait, self._timeout = wait_secs, timeout_secs
        self._connection = contextlib.ExitStack()
        self._socket: Any = None  # None: no session
        self._row: dict[str, Any] = {}
        self._answers: list[dict[str, Any]] = []  # what the reset and the actions of the episode were answered
        self._actions: list[dict[str, Any]] = []
        schema = self._patiently(lambda: schema_of(self._url, timeout_secs))
        self._fields, shown = read_fields(schema["action"]), read_fields(schema["observation"])
        title = schema["action"].get("title")
        self._has_tools = title == "CallToolAction" or (title == "Action" and not self._fields.schemas)
        if self._has_tools:
            self._fields = TOOL_CALL
        for setting, name, fields in (("action", action, self._fields), ("observation", observation, shown)):
            if name is not None and name not in fields.schemas:
                raise Refused(
                    f"openenv:{url} has no {setting} field {name!r}, but {', '.join(fields.schemas) or 'none'}"
                )
        self._plain = action or (None if self._has_tools else self._fields.only())
        only = next(iter(shown.schemas)) if len(shown.schemas) == 1 else None
        self._shown = observation or (only if only and shown.schemas[only].get("type") == "string" else None)
        self._expected = (
            f"Answer with {said(self._fields.schemas[self._plain]) if self._plain else self._fields.said()}."
        )

    @functools.cached_property
    def concurrent(self) -> bool:
        """Whether the server has a second session to spare beside a first one; it is asked for both."""
        with contextlib.ExitStack() as both:
            self._patiently(lambda: self._hold(both))
            return self._patiently(lambda: self._can_hold(both))

    def reset(self, row: dict[str, Any]) -> str:
        """Begin an episode with the columns of a task as keywords; the server drops those that its ``reset`` does not take."""
        self.close()
        self._row, self._answers, self._actions = row, [], []
        self._patiently(self._open)
        if self._answers[0]["done"]:
            raise ValueError(f"{self._url}: the episode is over at its reset")
        parts = [self._text(self._answers[0]), *self._tools]
        if not self._plain or not any(parts):
            parts.append(self._expected)
        return "\n".join(filter(None, parts))

    def step(self, text: str) -> tuple[str, float, bool]:
        """Take a response as an action; one that is none is told what was expected, and earns nothing."""
        try:
            action = read_action(text, self._fields, self._plain)
            answer = self._patiently(lambda: self._act(action))
        except NoAction as error:
            return f"This is no action: {error}. {self._expected}", 0.0, False
        self._actions.append(action)
        self._answers.append(answer)
        return self._text(answer), float(answer["reward"] or 0.0), answer["done"]

    def close(self):
        """End the session."""
        if self._socket is not None:
            hang_up(self._socket)
        self._drop()

    # Sessions

    def _connect(self) -> contextlib.AbstractContextManager[Any]:
        """Return a connection that is yet to be entered."""
        return connect(
            f"ws{self._url.removeprefix('http')}/ws",
            proxy=None if is_loopback(self._url) else True,
            open_timeout=self._timeout,
            close_timeout=CLOSE_SECS,
            ping_interval=None,  # an environment that keeps its server busy for long would look as if it had gone away
            max_size=MAX_BYTES,
        )

    def _hold(self, stack: contextlib.ExitStack):
        """Open a session that lives as long as the stack."""
        socket = stack.enter_context(self._connect())
        stack.callback(hang_up, socket)
        with contextlib.suppress(
            ServerError
        ):  # some raise when asked before a reset; what counts is that there is a session
            ask(socket, {"type": "state"}, self._timeout)

    def _can_hold(self, stack: contextlib.ExitStack) -> bool:
        try:
            self._hold(stack)
        except Full:
            return False
        return True

    def _open(self):
        """Open a session, and bring it to where the episode is."""
        self._socket = self._connection.enter_context(self._connect())
        self._tools = []
        if self._has_tools:  # asked for before the reset, so that it is no part of the episode
            found = self._ask("step", {"type": "list_tools"})["observation"].get("tools", [])
            self._tools = ["Tools:", *map(as_text, found)]
        answers = [self._ask("reset", self._row), *(self._ask("step", self._sent(action)) for action in self._actions)]
        if self._answers and answers != self._answers:
            raise RuntimeError(
                f"{self._url}: the connection was lost, and in a new one the same actions were answered otherwise; all that an "
                "environment does must follow from its reset and its actions"
            )
        self._answers = answers

    def _act(self, action: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to an action, in a new session if there is none.

        Raises:
          NoAction: The server has a rule that it breaks.
        """
        if self._socket is None:
            self._open()
        try:
            return self._ask("step", self._sent(action))
        except ServerError as error:
            if error.code == "VALIDATION_ERROR":
                raise NoAction(str(error)) from error
            raise

    def _sent(self, action: dict[str, Any]) -> dict[str, Any]:
        return action | TOOL_TAG if self._has_tools else action

    def _ask(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        """Send a message of the episode and return the data of its answer."""
        try:
            return ask(self._socket, {"type": kind, "data": data}, self._timeout)
        except TimeoutError as error:
            self._drop()
            raise NoAnswer(f"{self._url}: no answer to {kind} within {self._timeout:g} seconds") from error
        except ConnectionClosed as error:
            if error.sent and error.sent.code == TOO_BIG:  # either side's limit
                raise ValueError(f"{self._url}: what is sent or answered for {kind} is too big a message") from error
            raise

    def _drop(self):
        """Close the connection, if there is one."""
        with contextlib.suppress(*LOST):
            self._connection.close()
        self._socket = None

    def _patiently(self, attempt: Callable[[], Any]) -> Any:
        """Return what an attempt returns, which is made again while the server is away or full.

        Raises:
          Unavailable: It stays so.
        """
        pause, end = FIRST_PAUSE_SECS, time.monotonic() + self._wait
        while True:
            try:
                return attempt()
            except LOST as error:
                self._drop()
                if time.monotonic() + pause > end:
                    raise Unavailable(f"{self._url}: {in_words(error)}") from error
            time.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_SECS)

    def _text(self, answer: dict[str, Any]) -> str:
        """Return what is shown of an answer."""
        observation = answer["observation"]
        shown = observation if self._shown is None else observation.get(self._shown)
        if what := not_text(shown):
            fields = ", ".join(name for name, value in observation.items() if isinstance(value, str)) or "none"
            raise Refused(
                f"openenv:{self._url}: its observations hold {what} which cannot be shown; let domain.environment_args name a "
                f"field of text as observation (there is {fields})"
            )
        return as_text(shown)


def ask(socket: Any, message: dict[str, Any], timeout_secs: float) -> dict[str, Any]:
    """Send a message and return the data of its answer.

    Raises:
      ServerError: It is an error.
      Garbled: It is no answer.
      TimeoutError: There is none in time.
    """
    with contextlib.suppress(ConnectionClosed):  # a server that is full says so unasked, and hangs up
        socket.send(json.dumps(message))
    received = socket.recv(timeout=timeout_secs)
    try:
        answer = json.loads(received)
        kind, data = answer["type"], answer["data"]
        if kind == "observation":
            right = isinstance(data["observation"], dict) and isinstance(data["done"], bool)
            if not right or not isinstance(data["reward"], int | float | None):
                raise TypeError(kind)
        elif kind == "error":
            raise error_of(data)
        elif kind != message["type"]:
            raise ValueError(kind)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Garbled(f"it answers with what is no message of OpenEnv ({received[:100]!r})") from error
    return data


def hang_up(socket: Any):
    """End a session, and wait until the server has it to spare again: that is when it closes the connection."""
    with contextlib.suppress(*LOST):
        socket.send(json.dumps({"type": "close"}))
        socket.recv(timeout=CLOSE_SECS)


def error_of(data: dict[str, Any]) -> Exception:
    """Return the error that a server reports."""
    code, message = data.get("code"), str(data.get("message", data))
    if code == "CAPACITY_REACHED":
        return Full(f"it has {data.get('max_sessions', 'too few')} session(s), and all are taken")
    if code in ("FACTORY_ERROR", "SESSION_ERROR"):
        return Garbled(f"it cannot make an environment ({message})")
    faults = [f"{'.'.join(map(str, one.get('loc', ())))}: {one.get('msg', '')}" for one in data.get("errors") or ()]
    return ServerError(str(code), "; ".join(faults) or message)


def in_words(error: BaseException) -> str:
    """Return why a server cannot be used, and the remedy."""
    if isinstance(error, Full):
        return f"{error}; start it with a higher max_concurrent_envs, and run the same command"
    if isinstance(error, Garbled):
        return f"{error}; see its log, and run the same command"
    what = " ".join(str(error).split())
    return f"the server is not there ({type(error).__name__}: {what}); start it, and run the same command"


def address_of(url: str) -> str:
    """Return a server's address as http or https, without a slash at its end."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("http", "https", "ws", "wss") or not rest:
        raise Refused(f"openenv:{url} is no server's address, which begins with http://, https://, ws:// or wss://")
    return f"{scheme.replace('ws', 'http')}://{rest.rstrip('/')}"


def is_loopback(url: str) -> bool:
    """Return whether a server is on this machine, where no proxy leads to."""
    return urllib.parse.urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


@functools.cache
def schema_of(url: str, timeout_secs: float) -> dict[str, dict[str, Any]]:
    """Return the JSON schemas of a server's ``action`` and ``observation``.

    Raises:
      Refused: It has none.
    """
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_loopback(url) else []))
    try:
        with opener.open(f"{url}/schema", timeout=timeout_secs) as answer:
            content = answer.read()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise
        raise Refused(f"openenv:{url} answers {error.code} to /schema, so it is no server of OpenEnv") from error
    try:
        schema = json.loads(content)
        if not isinstance(schema["action"], dict) or not isinstance(schema["observation"], dict):
            raise TypeError(schema)
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"openenv:{url}/schema is no schema of OpenEnv ({content[:100]!r})") from error
    return schema
