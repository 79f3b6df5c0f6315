"""The queue before the rows, and the thread that owns the device: responses wait, take a row, and leave it when they end.

A response that ends, or that nobody waits for any longer, makes room at the next look at the queue, which comes every
``tokens_per_call`` tokens; the others go on meanwhile.
"""

import asyncio
import collections
import dataclasses
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence

import numpy as np

from exit_jax.serve.engine import Cuts, Engine

log = logging.getLogger(__name__)


class Refused(Exception):
    """The server cannot take or finish a request: ``full``, or it stops, or it broke."""

    def __init__(self, message: str, full: bool = False):
        super().__init__(message)
        self.full = full


class NonFinite(Refused):
    """Logits of the policy are NaN or infinite."""


STOPPING = "the server is shutting down; ask again once it is back"


@dataclasses.dataclass(frozen=True)
class Update:
    """Tokens that have come since the last update."""

    tokens: list[int]
    logp: list[float]  # nats, of the policy's own distribution
    ended: bool  # by a stop token, which is the last of ``tokens``
    over: bool  # nothing more comes


class Ticket:
    """A response that waits or is being sampled; iterated over in the event loop that it was submitted from."""

    def __init__(self, batcher: "Batcher", prompt: Sequence[int], cuts: Cuts, limit: int, key: tuple[int, int]):
        self.prompt, self.cuts, self.limit, self.key = prompt, cuts, limit, key
        self.is_cancelled = False
        self.sent = 0  # tokens passed on, by the thread
        self._batcher = batcher
        self._loop = asyncio.get_running_loop()
        self._updates: asyncio.Queue[Update | Exception] = asyncio.Queue()

    def cancel(self) -> None:
        """Give the response up, also one that is over; its row is free at the next look."""
        self._batcher.cancel(self)

    def put(self, update: Update | Exception) -> None:
        """Pass an update on to the event loop; called by the thread."""
        try:
            self._loop.call_soon_threadsafe(self._updates.put_nowait, update)
        except RuntimeError:  # the loop is closed: nobody waits
            self.is_cancelled = True

    async def updates(self) -> AsyncIterator[Update]:
        """Yield updates up to the one that is ``over``.

        Raises:
          Refused: if the server stops or breaks before.
        """
        while True:
            update = await self._updates.get()
            if isinstance(update, Exception):
                raise update
            yield update
            if update.over:
                return


class Batcher:
    """The queue and the thread."""

    def __init__(self, engine: Engine, max_queue: int):
        self.engine, self.max_queue = engine, max_queue
        self.num_tokens = 0
        self._rows: list[Ticket | None] = [None] * engine.num_rows
        self._waiting: collections.deque[Ticket] = collections.deque()
        self._changed = threading.Condition()
        self._deadline = float("inf")  # time.monotonic() at which what is left fails
        self._why_closed = ""
        self._thread = threading.Thread(target=self._run, name="exit_jax-serve", daemon=True)

    @property
    def load(self) -> tuple[int, int]:
        """The responses that have a row, and those that wait."""
        with self._changed:
            return sum(ticket is not None for ticket in self._rows), len(self._waiting)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, tickets: Sequence[Ticket], goes_on: bool = False) -> None:
        """Queue responses, all or none.

        Args:
          goes_on: whether they continue a request that was taken already: these go first, and are never refused for want of
            room.

        Raises:
          Refused: if the queue is full or the server stops.
        """
        with self._changed:
            if self._why_closed:
                raise Refused(self._why_closed)
            if goes_on:
                self._waiting.extendleft(tickets)
            else:
                if self._deadline < float("inf"):
                    raise Refused(STOPPING)
                if len(self._waiting) + len(tickets) > self.max_queue:
                    raise Refused(
                        f"{len(self._waiting)} responses wait already, and serve.max_queue = {self.max_queue}; ask again later",
                        full=True,
                    )
                self._waiting.extend(tickets)
            self._changed.notify()

    def cancel(self, ticket: Ticket) -> None:
        """Give a response up."""
        with self._changed:
            ticket.is_cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            self._changed.notify()

    def stop(self, grace: float) -> None:
        """Take no further request; what is left after ``grace`` seconds fails."""
        self._deadline = min(self._deadline, time.monotonic() + grace)  # no lock: a signal handler may call this
        threading.Thread(target=self._wake, daemon=True).start()

    def close(self) -> None:
        """Fail what is left, and end the thread."""
        with self._changed:
            self._why_closed = self._why_closed or STOPPING
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        try:
            while self._fill():
                self._decode()
        except Exception as error:  # whatever the device raises, those who wait are told
            log.exception("serving ended")
            self._why_closed = f"the server broke: {type(error).__name__}: {error}"
        self._fail(self._why_closed or STOPPING)

    def _fill(self) -> bool:
        """Wait until there is something to sample, and give rows to those who wait; False if the thread is to end."""
        with self._changed:
            while True:
                if self._why_closed:
                    return False
                if time.monotonic() >= self._deadline:
                    self._fail(STOPPING)
                if self._waiting or any(self._rows):
                    break
                self._changed.wait()
            taken = []
            for row, ticket in enumerate(self._rows):
                if ticket is None and self._waiting:
                    self._rows[row] = self._waiting.popleft()
                    taken.append(row)
        for row in taken:
            ticket = self._rows[row]
            if ticket is not None:
                self.engine.admit(row, ticket.prompt, ticket.cuts, ticket.limit, ticket.key)
        return True

    def _decode(self) -> None:
        """Sample on, and pass on what came."""
        keep = np.array([ticket is not None and not ticket.is_cancelled for ticket in self._rows])
        found = self.engine.step(keep)
        for row, ticket in enumerate(self._rows):
            if ticket is None:
                continue
            over = not found.alive[row]
            if not ticket.is_cancelled:
                new = slice(ticket.sent, int(found.count[row]))
                ticket.sent = new.stop
                logp = found.logp[row, new]
                self.num_tokens += logp.size
                if np.isfinite(logp).all():
                    ended = bool(found.ended[row])
                    ticket.put(Update(found.tokens[row, new].tolist(), logp.tolist(), ended, over))
                else:
                    ticket.put(NonFinite("the policy's logits are not finite; its weights or its dtype are at fault"))
                    ticket.is_cancelled = True
            elif keep[row]:
                over = False  # it was given up meanwhile, so that the device still has it
            else:
                over = True
            if over:
                with self._changed:
                    self._rows[row] = None

    def _fail(self, why: str) -> None:
        """Tell all who wait that nothing comes."""
        with self._changed:
            left = [ticket for ticket in [*self._rows, *self._waiting] if ticket is not None]
            self._waiting.clear()
            self._rows = [None] * self.engine.num_rows
            for ticket in left:
                ticket.put(Refused(why))
