"""The routes: what comes in is checked, what goes out has the form of OpenAI's API, also where it is an error."""

import asyncio
import contextlib
import dataclasses
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from exit_jax.config.schema import EvalConfig
from exit_jax.serve.answers import Answer, Asked
from exit_jax.serve.batcher import Batcher, Refused
from exit_jax.serve.protocol import ChatRequest, RequestError, Sampling, parse_chat, parse_completion
from exit_jax.serve.words import Words

BODY_SECONDS = 30  # that a client has to send its request
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclasses.dataclass
class Service:
    """What the routes need, and what they count."""

    words: Words
    batcher: Batcher
    defaults: EvalConfig  # the policy's own sampling
    name: str
    context: int
    max_steps: int
    max_body: int
    token: str = ""  # "" for none
    num_answered: int = 0
    num_refused: int = 0
    num_gone: int = 0  # requests whose client went away


def make_app(service: Service) -> Starlette:
    """Return the application."""
    routes = [
        Route("/health", lambda _: JSONResponse({"status": "ok"})),
        Route("/v1/models", _with(service, _models)),
        Route("/v1/models/{name:path}", _with(service, _model)),
        Route("/v1/chat/completions", _with(service, _chat), methods=["POST"]),
        Route("/v1/completions", _with(service, _completion), methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _not_found, Exception: _broke})


def _with(service: Service, handle: Callable) -> Callable:
    """Return a route that lets in who may come in, and answers faults by error objects."""

    async def route(request: Request) -> Response:
        try:
            _authorise(service, request)
            return await handle(service, request)
        except RequestError as error:
            service.num_refused += 1
            headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
            return JSONResponse(error.body(), error.status, headers)
        except Refused as error:
            service.num_refused += 1
            headers = {"Retry-After": "1"} if error.full else {}
            return JSONResponse(_refusal(error).body(), 429 if error.full else 503, headers)

    return route


def _refusal(error: Refused) -> RequestError:
    if error.full:
        return RequestError(str(error), status=429, kind="rate_limit_error", code="queue_full")
    return RequestError(str(error), status=503)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    there_are = "there are /v1/models, /v1/chat/completions and /v1/completions"
    said = f"{request.method} {request.url.path}: {error.detail}; {there_are}"
    return JSONResponse(RequestError(said, status=error.status_code).body(), error.status_code, error.headers)


async def _broke(request: Request, error: Exception) -> Response:
    return JSONResponse(
        RequestError(f"{type(error).__name__} in the server; its log says more", status=500).body(), 500
    )


def _authorise(service: Service, request: Request) -> None:
    """Raise unless a request bears the token, or without one comes to this machine by its own name.

    A page in a browser could otherwise reach the server by a name of its own that resolves to this machine.
    """
    if service.token:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), service.token.encode()):
            said = (
                "the token is missing or wrong; send it as Authorization: Bearer <token> (api_key of OpenAI's client)"
            )
            raise RequestError(said, status=401, kind="authentication_error", code="invalid_api_key")
    elif request.url.hostname not in LOOPBACK:
        raise RequestError(
            f"the host is {request.url.hostname!r:.60}; without a token only localhost is served", status=403
        )


async def _read(service: Service, request: Request) -> Any:
    """Return the JSON of a request.

    A page of another site may send text without asking first, but not "application/json".
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError("the request's Content-Type should be application/json", status=415)
    body, too_large = bytearray(), f"the request is larger than serve.max_body = {service.max_body} bytes"
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > service.max_body:
                    raise RequestError(too_large, status=413)
    except TimeoutError as error:
        raise RequestError(f"the request did not come within {BODY_SECONDS} seconds", status=408) from error
    try:
        return json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is no JSON: {error}") from error


def _about(service: Service) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": 0,
        "owned_by": "exit_jax",
        "max_model_len": service.context,
    }


async def _models(service: Service, _: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_about(service)]})


async def _model(service: Service, request: Request) -> Response:
    _require_model(service, request.path_params["name"])
    return JSONResponse(_about(service))


def _require_model(service: Service, name: str) -> None:
    if name != service.name:
        said = f"there is no model {name!r:.100}; this server has {service.name!r}"
        raise RequestError(said, "model", status=404, code="model_not_found")


async def _chat(service: Service, request: Request) -> Response:
    return await _answer(service, request, parse_chat(await _read(service, request)))


async def _completion(service: Service, request: Request) -> Response:
    return await _answer(service, request, parse_completion(await _read(service, request)))


async def _answer(service: Service, request: Request, wanted: Sampling) -> Response:
    _require_model(service, wanted.model)
    if wanted.k > service.max_steps:
        raise RequestError(f"k = {wanted.k} is above serve.max_steps = {service.max_steps}", "k")
    asked = Asked(service.words, service.batcher, service.defaults, service.context, wanted)
    form = ChatForm(service) if isinstance(wanted, ChatRequest) else TextForm(service)
    if wanted.stream:
        return Events(service, asked, form)
    answers = asyncio.create_task(asked.answers())
    gone = asyncio.create_task(_until_gone(request))
    try:
        await asyncio.wait({answers, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            service.num_gone += 1
            return Response(status_code=499)  # nobody reads it
        found = answers.result()
    finally:
        for task in (answers, gone):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        asked.cancel()
    service.num_answered += 1
    choices = [form.choice(index, answer, wanted.logprobs) for index, answer in enumerate(found)]
    used = usage(asked, sum(answer.num_sampled for answer in found))
    return JSONResponse(form.head(form.kind) | {"choices": choices, "usage": used})


async def _until_gone(request: Request) -> None:
    """Return once the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def usage(asked: Asked, sampled: int) -> dict[str, int]:
    """Return the tokens of a request: of its prompts once each, and all that were sampled, in every step."""
    prompt = asked.num_prompt_tokens
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


class Form:
    """The objects of one of the two kinds of answers."""

    kind = chunk_kind = prefix = ""

    def __init__(self, service: Service):
        self.words, self._model = service.words, service.name
        self._id, self._created = f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())

    def head(self, kind: str) -> dict[str, Any]:
        """Return what every object begins with."""
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def choice(self, index: int, answer: Answer, logprobs: bool) -> dict[str, Any]:
        """Return a choice."""
        about = self.logprobs(answer.tokens, answer.logp) if logprobs else None
        more = {"iterates": answer.iterates} if answer.iterates else {}
        said = {"index": index, **self.said(answer.text), "logprobs": about, "finish_reason": answer.finish}
        return said | more

    def chunk(self, index: int, text: str | None, logprobs: Any = None, **more: Any) -> dict[str, Any]:
        """Return an event of a stream: a part of a choice's text, or None at its end."""
        part = {"index": index, **self.part(text), "logprobs": logprobs, "finish_reason": None}
        return self.head(self.chunk_kind) | {"choices": [part | more]}

    def said(self, text: str) -> dict[str, Any]:
        """Return the field that holds a choice's text."""
        raise NotImplementedError

    def part(self, text: str | None) -> dict[str, Any]:
        """Return the same of a part of it."""
        raise NotImplementedError

    def logprobs(self, tokens: list[int], logp: list[float]) -> dict[str, Any]:
        """Return what is said of tokens."""
        raise NotImplementedError


class ChatForm(Form):
    """The objects of /v1/chat/completions."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def part(self, text: str | None) -> dict[str, Any]:
        return {"delta": {} if text is None else {"content": text} if text else {"role": "assistant", "content": ""}}

    def logprobs(self, tokens: list[int], logp: list[float]) -> dict[str, Any]:
        texts = map(self.words.token_text, tokens)
        rows = [
            {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
            for text, value in zip(texts, logp, strict=True)
        ]
        return {"content": rows}


class TextForm(Form):
    """The objects of /v1/completions."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def said(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def part(self, text: str | None) -> dict[str, Any]:
        return {"text": text or ""}

    def logprobs(self, tokens: list[int], logp: list[float]) -> dict[str, Any]:
        texts = [self.words.token_text(token) for token in tokens]
        offsets = [sum(map(len, texts[:i])) for i in range(len(texts))]
        return {"tokens": texts, "token_logprobs": logp, "top_logprobs": None, "text_offset": offsets}


class Events(StreamingResponse):
    """An answer as server-sent events, while it is sampled; given up when the client goes away."""

    def __init__(self, service: Service, asked: Asked, form: Form):
        super().__init__(self._lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._service, self._asked, self._form = service, asked, form
        self._is_over = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._asked.cancel()
            self._service.num_gone += not self._is_over

    async def _lines(self) -> AsyncIterator[str]:
        try:
            async for event in self._events():
                yield f"data: {json.dumps(event)}\n\n"
            self._service.num_answered += 1
        except Refused as error:
            self._service.num_refused += 1
            yield f"data: {json.dumps(_refusal(error).body())}\n\n"
        self._is_over = True
        yield "data: [DONE]\n\n"

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        asked, form, wanted = self._asked, self._form, self._asked.request
        events: asyncio.Queue[dict[str, Any] | Answer | Exception] = asyncio.Queue()

        async def run(index: int) -> None:
            def emit(text: str, tokens: list[int], logp: list[float]) -> None:
                about = form.logprobs(tokens, logp) if wanted.logprobs else None
                if text or (about and tokens):
                    events.put_nowait(form.chunk(index, text, about))

            try:
                answer = await asked.answer(index, emit)
            except Refused as error:
                events.put_nowait(error)
                return
            more = {"iterates": answer.iterates} if answer.iterates else {}
            events.put_nowait(form.chunk(index, None, finish_reason=answer.finish, **more))
            events.put_nowait(answer)

        tasks = [asyncio.create_task(run(index)) for index in range(asked.num_choices)]
        left, sampled = len(tasks), 0
        try:
            for index in range(left if form.kind != form.chunk_kind else 0):
                yield form.chunk(index, "")  # which says the role
            while left:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, Answer):
                    left, sampled = left - 1, sampled + event.num_sampled
                else:
                    yield event
            if wanted.include_usage:
                yield form.head(form.chunk_kind) | {"choices": [], "usage": usage(asked, sampled)}
        finally:
            for task in tasks:
                task.cancel()
