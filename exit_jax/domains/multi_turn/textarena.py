"""Games of textarena for one player, tried one by one in version 0.7.4.

They draw from Python's global generator, in a reset and while they are played; here each instance has a state of its own that
is put in its place for the length of a call, so that an episode follows from its seed and its texts, whatever runs beside it.
"""

import contextlib
import copy
import difflib
import functools
import importlib
import json
import random
from collections.abc import Callable
from typing import Any
from unittest import mock

from exit_jax.domains.multi_turn.protocol import Refused

# an extra's; imported by name, as a type checker takes this very file for the package where that is not installed
nltk: Any = importlib.import_module("nltk")
ta: Any = importlib.import_module("textarena")
ENV_REGISTRY: dict[str, Any] = importlib.import_module("textarena.envs.registration").ENV_REGISTRY
EnglishDictionary: Any = importlib.import_module("textarena.envs.utils.word_lists").EnglishDictionary

JUDGED = "a model behind OpenRouter answers its questions, which costs money and never twice the same"
REFUSED = {
    "Bandit": "its reward is upside down: the best button earns 0, and the worst one the most",
    "Cryptarithm": "it has one task, and pays 7/8 for any seven digits",
    "GuessWho": JUDGED,
    "Set": 'it takes one card three times for a set: "[1, 1, 1]" earns a point in each turn',
    "Sokoban-v0-medium": "a room takes it about a minute",
    "TwentyQuestions": JUDGED,
}
DRAWN_WHEN_MADE = ("Countdown",)  # games whose task the constructor draws, if it is given none, and not a reset
MANY = 500  # entries of a list of words, which no game changes and its copies share
NLTK_DATA = "python -m nltk.downloader words averaged_perceptron_tagger_eng"


class TextArena:
    """A game for one player; its reward comes with the end."""

    def __init__(self, game: str, **arguments: Any):
        """Make the game ``game``, as ``"Wordle-v0"``, with arguments of its constructor in place of the registered ones.

        Raises:
          Refused: There is no such game, it is for several players, or something is wrong with it.
        """
        self._game, self._arguments = game, json.dumps(arguments)
        self._env = pristine(game, self._arguments)
        self._random: Any = None

    def reset(self, row: dict[str, Any]) -> str:
        """Begin the game of the task's seed; returns its rules and first position."""
        if not isinstance(seed := row.get("seed"), int):
            raise Refused(f"textarena:{self._game} needs a whole number in the column seed, not {seed!r}")
        self._random = random.Random(seed).getstate()
        with self._own_random():
            is_drawn = family(self._game) in DRAWN_WHEN_MADE
            self._env = make(self._game, self._arguments) if is_drawn else copied(pristine(self._game, self._arguments))
            self._env.reset(num_players=1, seed=seed)
        return self._news()

    def step(self, text: str) -> tuple[str, float, bool]:
        """Play a response."""
        with self._own_random():
            done, _ = self._env.step(played(self._game, text))
        news = self._news()
        if not done:
            return news, 0.0, False
        rewards, facts = self._env.close()
        return "\n".join(filter(None, (news, facts[0].get("reason", "")))), float(rewards[0]), True

    def save(self) -> tuple[Any, Any]:
        """Return a copy of the state."""
        return copied(self._env), self._random

    def load(self, state: tuple[Any, Any]):
        """Go on from a copy of the state."""
        self._env, self._random = copied(state[0]), state[1]

    @contextlib.contextmanager
    def _own_random(self):
        """Put this instance's generator in the place of the global one."""
        others = random.getstate()
        random.setstate(self._random)
        try:
            yield
        finally:
            self._random = random.getstate()
            random.setstate(others)

    def _news(self) -> str:
        """Return what the game has said since the last time, without the player's own words.

        Two games record those with their arguments in the wrong order, and so as of no kind.
        """
        _, messages = self._env.get_observation()
        kinds = {*ta.ObservationType} - {ta.ObservationType.PLAYER_ACTION}
        return "\n".join(text for _, text, kind in messages if kind in kinds).strip("\n")


def family(game: str) -> str:
    """Return the name of a game without its version and variant."""
    return game.partition("-v0")[0]


@functools.cache
def pristine(game: str, arguments: str) -> Any:
    """Return a game before its first reset, made once a process: Wordle reads its words for seconds.

    Raises:
      Refused: See the class.
    """
    where = f"textarena:{game}"
    if game not in ENV_REGISTRY:
        near = difflib.get_close_matches(game, ENV_REGISTRY, 1)
        raise Refused(f"{where} is no game of textarena {ta.__version__}" + f"; did you mean {near[0]!r}?" * bool(near))
    if why := next((why for name, why in REFUSED.items() if f"{game}-".startswith(f"{name}-")), ""):
        raise Refused(f"{where} is refused: {why}")
    others = random.getstate()
    random.seed(0)
    try:
        env = make(game, arguments)
        tried = copied(env)
        with refused(f"{where} is no game for one player, and the others would need a policy"):
            tried.reset(num_players=1, seed=0)
    finally:
        random.setstate(others)
    if not isinstance(tried.state, ta.SinglePlayerState):
        raise Refused(f"{where} is no game for one player, and the others would need a policy")
    return env


def make(game: str, arguments: str) -> Any:
    """Return a new game without its wrappers, which would show the whole history in each turn."""
    where = f"textarena:{game}"
    try:
        # what is missing is told here, in place of a look at the network at each import
        with mock.patch.object(nltk, "download", return_value=False), refused(f"{where} cannot be made"):
            env = ta.make(game, **json.loads(arguments))
    except Refused as error:
        if type(error.__cause__) is LookupError:  # nltk's; KeyError and IndexError are subclasses
            raise Refused(f"{where} needs data of nltk: {NLTK_DATA}") from error
        raise
    while isinstance(env, ta.Wrapper):
        env = env.env
    return env


@contextlib.contextmanager
def refused(what: str):
    """Refuse a game for whatever is raised here."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())
        raise Refused(f"{what} ({type(error).__name__}: {said})") from error


def played(game: str, text: str) -> str:
    """Return a response as the game takes it: in brackets, where it has none and the game's wrapper would put them."""
    wrappers = ENV_REGISTRY[game].default_wrappers or ()
    is_bare = "[" not in text and "]" not in text
    return f"[{text}]" if is_bare and ta.wrappers.ActionFormattingWrapper in wrappers else text


def copied(env: Any) -> Any:
    """Return a copy of a game that shares its lists of words."""
    is_shared = lambda value: (
        isinstance(value, EnglishDictionary) or (isinstance(value, list | set | tuple | dict) and len(value) >= MANY)
    )
    return copy.deepcopy(env, {id(value): value for value in vars(env).values() if is_shared(value)})


def in_order(set_invalid_move: Callable[..., None]) -> Callable[..., None]:
    """Return the state's method that takes reward and reason in either order: three games give it the reward first."""

    @functools.wraps(set_invalid_move)
    def wrapped(self: Any, reason: Any, reward: Any = -1.0):
        set_invalid_move(self, *((reward, reason) if isinstance(reward, str) else (reason, reward)))

    return wrapped


ta.SinglePlayerState.set_invalid_move = in_order(ta.SinglePlayerState.set_invalid_move)
