"""From a request to its answers: what is asked of the rows, their tokens read as text, and the K steps of a choice."""

import asyncio
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Sequence

from exit_jax.config.schema import EvalConfig
from exit_jax.errors import UserError
from exit_jax.serve.batcher import Batcher, Ticket, Update
from exit_jax.serve.engine import Cuts
from exit_jax.serve.protocol import ChatRequest, CompletionRequest, RequestError, Sampling
from exit_jax.serve.words import Chat, Words

HALF = "\ufffd"  # what the decoder writes for the bytes of a character whose others are yet to come


class Reader:
    """A response as text, while its tokens come."""

    def __init__(self, words: Words, stops: Sequence[str], streams: bool):
        self._words, self._stops, self._streams = words, stops, streams
        self.tokens: list[int] = []  # sampled, up to the one that ended the response
        self.logp: list[float] = []
        self.text = ""  # what is certain so far
        self.num_visible = 0  # tokens that the text is made of
        self.finish = ""  # "stop" or "length" once it is over
        self.is_cut = False  # by one of the stops

    def feed(self, update: Update) -> str:
        """Take tokens in, and return the text that they make certain."""
        self.tokens += update.tokens
        self.logp += update.logp
        if not (self._streams or self._stops or update.over):
            return ""
        whole = self._words.said(self.tokens)
        found = [at for at in map(whole.find, self._stops) if at >= 0]
        if found:
            self._cut(min(found), len(update.tokens))
            sure = whole[: min(found)]
        elif update.over:
            self.finish = "stop" if update.ended else "length"
            self.num_visible, sure = len(self.tokens) - update.ended, whole
        else:
            self.num_visible = len(self.tokens)
            sure = whole.rstrip(HALF)
            sure = sure[: len(sure) - max(_overlap(sure, stop) for stop in (*self._stops, ""))]
        new, self.text = sure[len(self.text) :], max(sure, self.text, key=len)
        return new

    def _cut(self, at: int, num_new: int) -> None:
        """End the response with the token that completed a stop; those that make up the text before it are visible."""
        ends = next(m for m in range(len(self.tokens) - num_new, len(self.tokens) + 1) if self._has_stop(m))
        self.tokens, self.logp, self.finish, self.is_cut = self.tokens[:ends], self.logp[:ends], "stop", True
        self.num_visible = next(m for m in range(ends + 1) if len(self._words.said(self.tokens[:m])) >= at)

    def _has_stop(self, count: int) -> bool:
        text = self._words.said(self.tokens[:count])
        return any(stop in text for stop in self._stops)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of a text that a stop begins with, the whole of it left out."""
    return next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a choice came to."""

    text: str
    finish: str
    tokens: list[int]  # those that the text is made of
    logp: list[float]
    num_sampled: int  # tokens of all its steps
    iterates: list[str]  # k + 1 answers, as a later prompt shows them; [] where k is 0


class Asked:
    """A request whose responses are queued: n choices for each of its prompts."""

    def __init__(self, words: Words, batcher: Batcher, defaults: EvalConfig, context: int, request: Sampling):
        """Encode the prompts and queue their responses.

        Raises:
          RequestError: if the request does not fit.
          Refused: if the queue is full.
        """
        self.request, self._words, self._batcher = request, words, batcher
        own = lambda name: getattr(defaults, name) if getattr(request, name) is None else getattr(request, name)
        self._cuts = Cuts(own("temperature"), own("top_p"), max(own("top_k"), 0), own("min_p"))
        self._seed = int.from_bytes(os.urandom(8), "little") if request.seed is None else request.seed
        self._chat: Chat | None = None
        if isinstance(request, ChatRequest):
            try:
                self._chat = Chat(words, request.messages)
            except UserError as error:
                raise RequestError(str(error), "messages") from error
            prompts = [self._chat.prompt()]
        else:
            assert isinstance(request, CompletionRequest)
            prompts = [words.raw(prompt) if isinstance(prompt, str) else list(prompt) for prompt in request.prompts]
            self._require_ids(prompts)
        self.num_prompt_tokens = sum(map(len, prompts))
        if request.n * len(prompts) > batcher.max_queue:
            raise RequestError(
                f"{request.n} choices of {len(prompts)} prompts are more than serve.max_queue = {batcher.max_queue}",
                "n",
            )
        self._limits = [self._limit(len(prompt), context) for prompt in prompts]
        self._tickets = [
            self._ticket(prompt, limit, f"{place} {choice} 0")
            for place, (prompt, limit) in enumerate(zip(prompts, self._limits, strict=True))
            for choice in range(request.n)
        ]
        batcher.submit(self._tickets)

    @property
    def num_choices(self) -> int:
        """The choices of all prompts."""
        return len(self._tickets)

    def cancel(self) -> None:
        """Give up what is still waited for."""
        for ticket in self._tickets:
            ticket.cancel()

    async def answer(self, index: int, emit: Callable[[str, list[int], list[float]], None] | None = None) -> Answer:
        """Return a choice, improved k times; ``emit`` is given the last response's text and tokens while they come.

        Raises:
          Refused: if the server stops or breaks.
        """
        request, iterates, num_sampled, reader = self.request, [], 0, None
        place, choice = divmod(index, request.n)
        for step in range(request.k + 1):
            is_last = step == request.k
            reader = Reader(self._words, request.stop, streams=is_last and emit is not None)
            num_emitted = 0
            async for update in self._tickets[index].updates():
                new = reader.feed(update)
                if is_last and emit:
                    seen = slice(num_emitted, reader.num_visible)
                    num_emitted = max(num_emitted, reader.num_visible)
                    emit(new, reader.tokens[seen], reader.logp[seen])
                if reader.finish:
                    break
            self._tickets[index].cancel()
            num_sampled += len(reader.tokens)
            if self._chat and request.k:
                response = self._words.encode(reader.text) if reader.is_cut else reader.tokens
                room = self._chat.solution_room(self._limits[place])
                solution, _ = self._words.shown(response, room, self._words.config.truncate)
                iterates.append(self._words.decode(solution))
                if not is_last:
                    better = self._chat.prompt(solution)
                    ticket = self._ticket(better, self._limits[place], f"{place} {choice} {step + 1}")
                    self._tickets[index] = ticket
                    self._batcher.submit([ticket], goes_on=True)
        assert reader is not None
        seen = slice(reader.num_visible)
        return Answer(reader.text, reader.finish, reader.tokens[seen], reader.logp[seen], num_sampled, iterates)

    async def answers(self) -> list[Answer]:
        """Return all choices; where one fails or the caller is cancelled, nothing is waited for any longer."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.answer(index)) for index in range(self.num_choices)]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        finally:
            self.cancel()
        return [task.result() for task in tasks]

    def _ticket(self, prompt: list[int], limit: int, where: str) -> Ticket:
        """Return a response to be queued; its key follows from the seed, and from prompt, choice and step."""
        digest = hashlib.blake2b(f"{self._seed} {where}".encode(), digest_size=8).digest()
        key = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
        return Ticket(self._batcher, prompt, self._cuts, limit, key)

    def _require_ids(self, prompts: list[list[int]]) -> None:
        size = self._batcher.engine.config.vocab_size
        for prompt in prompts:
            if wrong := [token for token in prompt if not 0 <= token < size]:
                raise RequestError(f"prompt has the token id {wrong[0]}, but ids are below {size}", "prompt")

    def _limit(self, length: int, context: int) -> int:
        """Return the tokens that each response to a prompt may have.

        Raises:
          RequestError: if there is no room for them.
        """
        wanted, where = self.request.max_tokens, "messages" if self._chat else "prompt"
        if length >= context:
            raise RequestError(
                f"the prompt takes {length} tokens; with a response the context has {context}",
                where,
                code="context_length_exceeded",
            )
        takes = lambda limit: self._longest(length, limit) + limit
        # without a number as many as there is room for: less where an improved answer's prompt holds the one before it
        candidates = [wanted] if wanted else range(context - length, 0, -1)
        if fits := next((limit for limit in candidates if takes(limit) <= context), 0):
            return fits
        limit = wanted or 1
        with_answer = ", with an answer to improve" if self.request.k else ""
        raise RequestError(
            f"max_tokens = {limit} and a prompt of {self._longest(length, limit)} tokens{with_answer} are more than the "
            f"context of {context}; lower max_tokens, or shorten the prompt",
            "max_tokens" if wanted else where,
            code="context_length_exceeded",
        )

    def _longest(self, length: int, limit: int) -> int:
        """Return the tokens of the longest prompt of a choice whose responses have up to ``limit`` tokens."""
        if not (self._chat and self.request.k):
            return length
        return max(length, self._improve_length + self._chat.solution_room(limit))

    @functools.cached_property
    def _improve_length(self) -> int:
        """The tokens of a prompt for a better answer, without the answer."""
        assert self._chat is not None
        return len(self._chat.prompt([]))
