"""Requests as OpenAI's API has them: what they may say, and an error object for what they may not. The standard library only.

A field that would change the answer and is not supported is refused by its name, unless it has the value that changes nothing;
one that is unknown is ignored, as OpenAI's clients send a few that matter to nobody here.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

MAX_STOPS = 4
# fields that would change the answer -> values that do not
NOT_SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
}


class RequestError(Exception):
    """A request that cannot be answered: an HTTP status, and the fields of OpenAI's error object."""

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, kind: str = "", code: str | None = None
    ):
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        """Return the error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What both kinds of requests say of sampling."""

    model: str
    temperature: float | None  # None for the policy's own, as the next three
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    max_tokens: int | None  # None for what the context leaves
    n: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    logprobs: bool
    k: int


@dataclasses.dataclass(frozen=True)
class ChatRequest(Sampling):
    """A request for an answer to a conversation."""

    messages: tuple[Mapping[str, str], ...]


@dataclasses.dataclass(frozen=True)
class CompletionRequest(Sampling):
    """A request for what follows each prompt, a text or ids."""

    prompts: tuple[str | tuple[int, ...], ...]


def parse_chat(content: Any) -> ChatRequest:
    """Return a request to /v1/chat/completions.

    Raises:
      RequestError: naming the field at fault.
    """
    fields = _Fields(content)
    logprobs = fields.boolean("logprobs")
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages should be a list with at least one message", "messages")
    return ChatRequest(
        **_sampling(fields, logprobs), messages=tuple(_message(message, i) for i, message in enumerate(messages))
    )


def parse_completion(content: Any) -> CompletionRequest:
    """Return a request to /v1/completions; else as ``parse_chat``."""
    fields = _Fields(content)
    wanted = fields.integer("logprobs", 0)
    if wanted:
        raise RequestError("logprobs above 0 asks for tokens that were not sampled; only 0 is supported", "logprobs")
    found = CompletionRequest(**_sampling(fields, wanted is not None), prompts=_prompts(fields.get("prompt")))
    if found.k:
        raise RequestError("k is for chat completions: a raw prompt holds no request to improve an answer to", "k")
    return found


class _Fields:
    """The fields of a request; null stands for a field that is left out."""

    def __init__(self, content: Any):
        if not isinstance(content, dict):
            raise RequestError("the body should be a JSON object")
        self._content = content
        for name, harmless in NOT_SUPPORTED.items():
            value = content.get(name)
            if value is not None and value not in harmless:
                raise RequestError(f"{name} is not supported; leave it out", name, code="unsupported_parameter")

    def get(self, name: str) -> Any:
        return self._content.get(name)

    def boolean(self, name: str) -> bool:
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise RequestError(f"{name} = {value!r:.60} is neither true nor false", name)
        return bool(value)

    def number(self, name: str, low: float, high: float = math.inf) -> float | None:
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise RequestError(f"{name} = {value!r:.60} is no number in [{low:g}, {high:g}]", name)
        return float(value)

    def integer(self, name: str, low: int, high: int | None = None) -> int | None:
        value = self.get(name)
        if value is None:
            return None
        if type(value) is not int or value < low or (high is not None and value > high):
            bounds = f"at least {low}" if high is None else f"in [{low}, {high}]"
            raise RequestError(f"{name} = {value!r:.60} is no whole number {bounds}", name)
        return value


def _sampling(fields: _Fields, logprobs: bool) -> dict[str, Any]:
    top_p = fields.number("top_p", 0, 1)
    if top_p == 0:
        raise RequestError("top_p = 0 would keep no token; give a number in (0, 1]", "top_p")
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError("model should name the model; /v1/models lists it", "model")
    options = fields.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise RequestError("stream_options should be an object", "stream_options")
    newer, older = fields.integer("max_completion_tokens", 1), fields.integer("max_tokens", 1)
    given = {
        "temperature": fields.number("temperature", 0, 100),
        "top_p": top_p,
        "top_k": fields.integer("top_k", -1, (1 << 31) - 1),
        "min_p": fields.number("min_p", 0, 1),
        "seed": fields.integer("seed", -(1 << 63), (1 << 63) - 1),
        "n": fields.integer("n", 1) or 1,
        "k": fields.integer("k", 0) or 0,
    }
    return given | {
        "model": model,
        "max_tokens": older if newer is None else newer,
        "stop": _stops(fields.get("stop")),
        "stream": fields.boolean("stream"),
        "include_usage": bool((options or {}).get("include_usage")),
        "logprobs": logprobs,
    }


def _stops(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise RequestError("stop should be a text, or a list of texts, none of them empty", "stop")
    if len(stops) > MAX_STOPS:
        raise RequestError(f"stop has {len(stops)} texts; up to {MAX_STOPS} are looked for", "stop")
    return tuple(stops)


def _message(message: Any, place: int) -> dict[str, str]:
    where = f"messages[{place}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestError(f"{where} should be an object with role and content", where)
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content):
            raise RequestError(
                f"{where}.content has a part that is no text; only text is supported", f"{where}.content"
            )
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise RequestError(f"{where}.content should be text", f"{where}.content")
    role = {"developer": "system"}.get(message["role"], message["role"])
    if role not in ("system", "user", "assistant"):
        raise RequestError(f"{where}.role = {role!r:.40} is none of system, user and assistant", f"{where}.role")
    return {"role": role, "content": content}


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    is_ids = lambda item: isinstance(item, list) and item and all(type(token) is int for token in item)
    items: Sequence[Any] = value if isinstance(value, list) and not is_ids(value) else [value]
    if not items or not all((isinstance(item, str) and item) or is_ids(item) for item in items):
        raise RequestError(
            "prompt should be a text, a list of token ids, or a list of these, none of them empty", "prompt"
        )
    return tuple(item if isinstance(item, str) else tuple(item) for item in items)
