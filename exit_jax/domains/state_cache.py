"""States that a worker process holds, by what led to them; see workers.py. It imports no JAX."""

import collections
from collections.abc import Callable
from typing import Any


class StateCache:
    """States by key, several of a kind; those used longest ago leave."""

    def __init__(self, max_states: int, drop: Callable[[Any], None] = lambda state: None):
        self.max_states, self.drop = max_states, drop
        self.states: collections.OrderedDict[str, list[Any]] = collections.OrderedDict()
        self.count = 0

    def take(self, key: str) -> Any:
        found = self.states.get(key)
        if found is None:
            return None
        state = found.pop()
        self.count -= 1
        if not found:
            del self.states[key]
        return state

    def put(self, key: str, state: Any) -> None:
        self.states.setdefault(key, []).append(state)
        self.states.move_to_end(key)
        self.count += 1
        self.keep(self.max_states)

    def keep(self, count: int) -> None:
        """Drop states until no more than ``count`` are held."""
        while self.count > count:
            key, found = next(iter(self.states.items()))
            self.count -= 1
            self.drop(found.pop(0))
            if not found:
                del self.states[key]
