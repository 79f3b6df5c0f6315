"""Test the adapter of textarena on real games, without data of nltk; test_textarena_games.py tries all games."""

import copy
import random
import re

import pytest

RAW = ["2048-v0", "Blackjack-v0", "FrozenLake-v0", "Slitherlink-v0", "TowerOfHanoi-v0"]


@pytest.fixture(scope="module", autouse=True)
def adapter(require_parity):
    """Return the adapter's module."""
    require_parity("textarena")
    from exit_jax.domains.multi_turn import textarena

    return textarena


@pytest.fixture
def play(adapter):
    import textarena_play

    return textarena_play


def reset(adapter, game, seed, **arguments):
    instance = adapter.TextArena(game, **arguments)
    return instance, instance.reset({"seed": seed})


def raw_play(game, seed, texts):
    """Play with the package alone, one game a process, as its authors do; return what it says, text by text."""
    import textarena as ta

    random.seed(seed)
    env = ta.make(f"{game}-raw")
    env.reset(num_players=1, seed=seed)
    said = [env.get_observation()[1]]
    for text in texts:
        done, _ = env.step(text)
        said.append(env.get_observation()[1])
        if done:
            break
    return [[message for _, message, _ in messages] for messages in said], env.close()


@pytest.mark.parametrize("game", RAW)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_game_says_what_the_package_says(play, game, seed):
    opening, *turns = play.play(game, seed)
    texts = [turn[0] for turn in turns]
    said, (rewards, facts) = raw_play(game, seed, texts)
    assert opening == ["\n".join(said[0]).strip("\n")]
    for (text, observation, _, done), (own, *others) in zip(turns, said[1:], strict=True):
        if text != own:  # Slitherlink records it with its arguments in the wrong order
            assert own == 0
        assert observation.startswith("\n".join(others).strip("\n"))
        assert done == (observation != "\n".join(others).strip("\n"))
    if turns[-1][-1]:
        assert turns[-1][1].endswith(facts[0]["reason"])
        assert turns[-1][2] == rewards[0]
    assert all(reward == 0.0 for _, _, reward, done in turns if not done)


@pytest.mark.parametrize("game", ["FrozenLake-v0", "GuessTheNumber-v0", "Sudoku-v0-easy", "TowerOfHanoi-v0"])
def test_a_game_that_is_won_earns_1(play, game):
    *_, last = play.play(game, 5)
    assert last[2:] == [1.0, True]


def test_episodes_side_by_side_are_apart(adapter, play):
    """What one draws moves neither the other nor whoever draws besides."""
    apart = {seed: list(play.play("2048-v0", seed)) for seed in (1, 2)}
    random.seed(99)
    draws = [random.random() for _ in range(5)]
    random.seed(99)
    games = {seed: reset(adapter, "2048-v0", seed)[0] for seed in apart}
    drawn = []
    for turn in range(1, 6):
        drawn.append(random.random())
        for seed, game in games.items():
            text, *right = apart[seed][turn]
            assert list(game.step(text)) == right
    assert drawn == draws


def test_a_copy_goes_on_as_the_original(adapter, play):
    opening, *turns = play.play("Blackjack-v0", 3)
    game, said = reset(adapter, "Blackjack-v0", 3)
    assert [said] == opening
    for text, *right in turns:
        state = game.save()
        assert list(game.step(text)) == right
        for _ in range(2):  # a state may be loaded as often as one likes
            game = adapter.TextArena("Blackjack-v0")
            game.load(state)
            other = copy.copy(game)
            other.load(state)
            assert list(other.step(text)) == right
            assert list(game.step(text)) == right


def test_a_reset_forgets_the_last_episode(adapter, play):
    """The deck of cards, the tries left: some games keep them in themselves."""
    opening, *turns = play.play("Crosswords-v0", 1)
    game, _ = reset(adapter, "Crosswords-v0", 7)
    game.step("[0 0 x]")
    assert [game.reset({"seed": 1, "level": "easy"})] == opening
    assert [list(game.step(turn[0])) for turn in turns] == [turn[1:] for turn in turns]


def test_brackets_are_put_where_the_game_wants_them(adapter):
    bare, _ = reset(adapter, "2048-v0", 1)
    dressed, _ = reset(adapter, "2048-v0", 1)
    assert bare.step("left") == dressed.step("[left]")
    raw, _ = reset(adapter, "2048-v0-raw", 1)
    assert "Invalid action" in raw.step("left")[0]


def test_the_end_by_bad_moves(adapter):
    """Reward and reason are told apart in games that give them in the wrong order."""
    for name, reward, reason in (
        ("Slitherlink-v0", 0.0, "Bad action format. Use [h row col] or [v row col]."),
        ("ThreeCardMonte-v0", 0.0, "Bad action. Use `[k]`."),
        ("Countdown-v0", 0.568, "Invalid action format. Use `[i j op]` where i,j are indices and op is +,-,*,/"),
        ("Secretary-v0", -1.0, "Action must be either [accept] or [continue]."),
    ):
        game, _ = reset(adapter, name, 1)
        observation, *rest = game.step("zzz")
        assert f"Reason: {reason} Please" in observation
        assert rest == [0.0, False]
        assert game.step("zzz") == (f"Invalid Move: {reason}", pytest.approx(reward), True)


def test_arguments_take_the_place_of_the_registered_ones(adapter):
    assert "between 1 and 3 " in reset(adapter, "GuessTheNumber-v0", 1, max_number=3)[1]
    countdown = lambda seed: reset(adapter, "Countdown-v0", seed, numbers=None, target=None)[1]
    assert len({countdown(seed) for seed in range(4)}) == 4  # drawn when it is made
    assert countdown(2) == countdown(2)


@pytest.mark.parametrize(
    ("game", "why"),
    [
        ("Wordel-v0", r"is no game of textarena 0\.7\.4; did you mean 'Wordle-v0'\?"),
        ("Nim-v0", "is no game for one player, .* The number of players has to be 2"),
        ("PublicGoodsGame-v0", "is no game for one player"),
        ("BabyAiText-v0", "cannot be made"),
        ("Bandit-v0-hard", "is refused: its reward is upside down"),
        ("Cryptarithm-v0", "is refused: it has one task"),
        ("GuessWho-v0", "is refused: a model behind OpenRouter"),
        ("Set-v0-train", r"is refused: .* \"\[1, 1, 1\]\" earns a point"),
        ("Sokoban-v0-medium", "is refused: a room takes it about a minute"),
        ("SettlersOfCatan-v0", "is no game for one player"),
    ],
)
def test_what_is_refused(adapter, game, why):
    with pytest.raises(adapter.Refused, match=rf"textarena:{re.escape(game)} {why}"):
        adapter.TextArena(game)


def test_bad_arguments_and_rows_are_refused(adapter):
    with pytest.raises(adapter.Refused, match=r"2048-v0 cannot be made \(TypeError: .*'sides'"):
        adapter.TextArena("2048-v0", sides=3)
    for row in ({}, {"seed": "3"}):
        with pytest.raises(adapter.Refused, match="needs a whole number in the column seed"):
            adapter.TextArena("2048-v0").reset(row)


def test_missing_words_are_named_with_the_remedy(adapter, monkeypatch, tmp_path):
    """And nobody looks for them on the network."""
    adapter.pristine.cache_clear()
    monkeypatch.setattr(adapter.nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(
        adapter.nltk.downloader.Downloader, "download", lambda *_, **__: pytest.fail("asked the network")
    )
    monkeypatch.setattr(adapter.nltk.corpus, "words", fresh_words(adapter))
    right = (
        r"textarena:WordSearch-v0 needs data of nltk: python -m nltk.downloader words averaged_perceptron_tagger_eng"
    )
    with pytest.raises(adapter.Refused, match=right):
        adapter.TextArena("WordSearch-v0")


def fresh_words(adapter):
    """Return the reader of the words as before anyone has asked for them."""
    words = adapter.nltk.corpus.util.LazyCorpusLoader(
        "words", adapter.nltk.corpus.reader.WordListCorpusReader, r"(?!README|\.).*"
    )
    import textarena.envs.WordSearch.env as module

    module.words = words
    return words
