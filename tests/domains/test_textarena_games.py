"""Every game of textarena for one player is played, won where it can be, and played again in other processes. Minutes long."""

import collections
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("textarena") is None, reason='needs pip install -e ".[textarena]"'),
]
PLAY = pathlib.Path(__file__).parents[1] / "textarena_play.py"
# too slow to be tried each time: words are tagged one by one
SLOW = ("Wordle-v0-hardcore", "Wordle-v0-long-hardcore")
LONG = (
    "Minesweeper-v0-hard",
    "TowerOfHanoi-v0-hardcore",
    "TowerOfHanoi-v0-extreme",
)  # are not over when the player stops
WORDS = ("Hangman", "WordLadder", "WordSearch", "Wordle")  # families that need data of nltk
NOT_MADE = {
    "BabyAiText",
    "Checkers",
    "Chess",
    "Debate",
    "IteratedStagHunt",
    "Klondike",
    "ReverseTicTacToe",
    "ScenarioPlanning",
}
NOT_MADE |= {"UltimateTexasHoldem", "UsedCar", "UsedCarNegotiation"}


def have_words():
    import nltk

    try:
        nltk.data.find("corpora/words")
        nltk.data.find("taggers/averaged_perceptron_tagger_eng")
    except LookupError:
        return False
    return True


@pytest.fixture(scope="module")
def adapter():
    from exit_jax.domains.multi_turn import textarena

    return textarena


@pytest.fixture(scope="module")
def games(adapter):
    """Return the games to be played, by name."""
    import textarena_play

    registered = [name for name in adapter.ENV_REGISTRY if not name.endswith(("-raw", "-train"))]
    found = [name for name in registered if adapter.family(name) in textarena_play.MOVES and name not in SLOW]
    found = [name for name in found if not any(name.startswith(refused) for refused in adapter.REFUSED)]
    return [name for name in found if have_words() or adapter.family(name) not in WORDS]


@pytest.fixture(scope="module")
def transcripts(games):
    """Return what two processes have played, one of them in the other order."""
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    found = []
    for order in (games, games[::-1]):
        command = [sys.executable, "-W", "ignore", str(PLAY), *order]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"game"')]
        found.append({line["game"]: line["episodes"] for line in lines})
    return found


def test_the_version_is_the_one_that_was_tried(adapter):
    assert adapter.ta.__version__ == "0.7.4", "try the games of another version before it is taken"


def test_two_processes_play_the_same(games, transcripts):
    here, there = transcripts
    assert list(here) == games
    for game in games:
        assert here[game] == there[game], game


def test_games_are_well_formed(transcripts):
    for game, episodes in transcripts[0].items():
        for opening, *turns in episodes:
            assert opening[0].strip(), game
            assert turns, game
            for _, observation, reward, done in turns:
                assert observation, game
                assert done or reward == 0.0, game
            assert -1.0 <= turns[-1][2] <= 1.0, game


def test_a_solver_earns_1(transcripts):
    import textarena_play

    for game, episodes in transcripts[0].items():
        if textarena_play.family(game) in textarena_play.SOLVERS and game not in LONG:
            assert [turns[-1][2:] for turns in episodes] == [[1.0, True]] * len(episodes), game


def test_all_others_are_refused(adapter):
    """By name, for having several players, or for what their making raises."""
    import textarena_play

    reasons = collections.defaultdict(set)
    for game in adapter.ENV_REGISTRY:
        if game.endswith(("-raw", "-train")):
            continue
        name = adapter.family(game)
        if name in textarena_play.MOVES and not any(game.startswith(refused) for refused in adapter.REFUSED):
            continue
        with pytest.raises(adapter.Refused) as raised:
            adapter.TextArena(game)
        kinds = ("is no game for one player", "cannot be made", "is refused", "needs data of nltk")
        reasons[next(kind for kind in kinds if kind in str(raised.value))].add(name)
    assert reasons["is refused"] == {adapter.family(name) for name in adapter.REFUSED}
    if sys.version_info < (3, 12):  # some are written for it
        assert reasons["cannot be made"] == NOT_MADE
