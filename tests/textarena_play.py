"""Plays games of textarena by fixed rules, for tests; ``python textarena_play.py <game> ...`` prints what each said."""

import collections
import json
import random
import string
import sys

from exit_jax.domains.multi_turn.textarena import TextArena, family

MAX_STEPS = 60
WAYS = "up down left right".split()


def numbers(*highs):
    return lambda env, rng: f"[{' '.join(str(rng.randint(low, high)) for low, high in highs)}]"


def any_of(*words):
    return lambda env, rng: f"[{rng.choice(words)}]"


def sudoku(env, rng):
    places = [(r, c) for r in range(9) for c in range(9) if not env.state.game_state["board"][r][c]]
    r, c = rng.choice(places)
    return f"[{r + 1} {c + 1} {env.full_grid[r][c]}]"


def crosswords(env, rng):
    board, solution = env.state.game_state["board"], env.state.game_state["solution"]
    places = [(r, c) for r, row in enumerate(board) for c, cell in enumerate(row) if cell == "_"]
    chosen = rng.sample(places, min(2, len(places)))  # of hard words there are more letters than turns
    return " ".join(f"[{r} {c} {solution[r][c]}]" for r, c in chosen)


def logic_puzzle(env, rng):
    cells = [
        (row, column, mark)
        for grid, solution in env.game_board_solution.items()
        for row, marks in solution.items()
        for column, mark in marks.items()
        if env.game_board[grid][row][column] != mark
    ]
    return "[{} {} {}]".format(*rng.choice(cells))


def word_search(env, rng):
    word = rng.choice(sorted({*env.placed_words} - env.correct_words))
    r, c, way = env.placed_words[word]
    down, right = (len(word) - 1, 0) if way == "down" else (0, len(word) - 1)
    return f"[{r} {c} {r + down} {c + right}]"


def minesweeper(env, rng):
    places = [
        (r, c) for r in range(env.rows) for c in range(env.cols) if not env.revealed[r][c] and env.grid[r][c] != -1
    ]
    return "[{} {}]".format(*rng.choice(places))


def hangman(env, rng):
    state = env.state.game_state
    return f"[{rng.choice(sorted({*state['target_letters']} - state['guessed_letters']))}]"


def wordle(env, rng):
    state = env.state.game_state
    tried = [word for word, _ in state["guess_history"]]
    return f"[{state['secret_word'] if len(tried) > 2 else rng.choice([w for w in env.word_list if w not in tried])}]"


def word_ladder(env, rng):
    """The next word of a shortest way."""
    words = {word.lower() for word in env.word_list if len(word) == len(env.target_word)} | {env.target_word}
    todo, before = collections.deque([env.target_word]), {env.target_word: None}
    while todo:
        word = todo.popleft()
        for other in sorted(words - before.keys()):
            if sum(a != b for a, b in zip(word, other)) == 1:
                before[other] = word
                todo.append(other)
    return f"[{before[env.current_word]}]"


def mastermind(env, rng):
    state = env.state.game_state
    if len(state["history"]) > 2:
        return f"[{' '.join(map(str, state['secret_code']))}]"
    digits = range(1, state["num_numbers"] + 1)
    return f"[{' '.join(map(str, rng.sample(digits, state['code_length'])))}]"


def hanoi(env, rng):
    """A way that always ends: the smallest disk round and round, and the other move there is."""
    towers, names = env.state.game_state["towers"], "ACB" if env.num_disks % 2 else "ABC"
    small = next(name for name in names if towers[name] and towers[name][-1] == 1)
    if env.state.turn % 2 == 0:
        return f"[{small} {names[(names.index(small) + 1) % 3]}]"
    a, b = (name for name in names if name != small)
    top = lambda name: towers[name][-1] if towers[name] else 99
    return f"[{a} {b}]" if top(a) < top(b) else f"[{b} {a}]"


def pegs(env, rng):
    board = env.state.game_state["board"]
    moves = [(f, t) for f, over, t in env.ALLOWED_MOVES if board[f] and board[over] and not board[t]]
    return "[{} {}]".format(*rng.choice(moves))


def lake(env, rng):
    """A step on the shortest way that has no hole."""
    state, todo = env.state.game_state, collections.deque()
    todo.append((state["player_pos"], ""))
    seen = {state["player_pos"]}
    while todo:
        place, first = todo.popleft()
        if place == state["goal_pos"]:
            return f"[{first}]"
        for way in WAYS:
            new = tuple(a + b for a, b in zip(place, env.actions[way]))
            if all(0 <= a < env.size for a in new) and new not in seen and state["grid"][new[0]][new[1]] != "H":
                seen.add(new)
                todo.append((new, first or way))
    return "[up]"


def guess_number(env, rng):
    low, high = env.min_number, env.max_number
    for guess, hint in env.state.game_state["guess_history"]:
        low, high = (guess + 1, high) if "higher" in hint else (low, guess - 1)
    return f"[{(low + high) // 2}]"


# what plays to the best reward, where that is 1
SOLVERS = {
    "Crosswords": crosswords,
    "FrozenLake": lake,
    "GuessTheNumber": guess_number,
    "Hangman": hangman,
    "LogicPuzzle": logic_puzzle,
    "Mastermind": mastermind,
    "Minesweeper": minesweeper,
    "Sudoku": sudoku,
    "ThreeCardMonte": lambda env, rng: f"[{env.ball_pos}]",
    "TowerOfHanoi": hanoi,
    "WordLadder": word_ladder,
    "WordSearch": word_search,
    "Wordle": wordle,
}
MOVES = SOLVERS | {
    "2048": any_of(*WAYS),
    "Blackjack": any_of("Hit", "Stand"),
    "Countdown": lambda env, rng: "[{} {} {}]".format(*rng.sample(range(len(env.numbers)), 2), rng.choice("+-*")),
    "FifteenPuzzle": any_of(*WAYS),
    "LightsOut": numbers((0, 4), (0, 4)),
    "PegJump": pegs,
    "RushHour": lambda env, rng: f"[{rng.choice(string.ascii_uppercase[:8])}{rng.choice('+-')}]",
    "Secretary": any_of("accept", "continue", "continue", "continue"),
    "Slitherlink": lambda env, rng: f"[{rng.choice('hv')} {rng.randint(0, 3)} {rng.randint(0, 3)}]",
    "Sokoban": any_of(*WAYS),
}


def play(game, seed):
    """Yield [text, observation, reward, done] of each turn after the opening."""
    instance, rng = TextArena(game), random.Random(f"the player of {seed}")
    yield [instance.reset({"seed": seed})]
    for _ in range(MAX_STEPS if family(game) != "Sudoku" else 100):
        text = MOVES[family(game)](instance._env, rng)
        turn = [text, *instance.step(text)]
        yield turn
        if turn[-1]:
            return


if __name__ == "__main__":
    for game in sys.argv[1:]:
        print(json.dumps({"game": game, "episodes": [list(play(game, seed)) for seed in (1, 2)]}))
