"""Environments for the tests of domains/multi_turn: a game of guessing a number, and what can be wrong with one."""

import asyncio
import itertools
import os
import pathlib
import random
import time

from exit_jax.domains.multi_turn.protocol import Refused, Unavailable


class Guess:
    """Guess a number from 0 to 9 in few turns; each answer tells which way, and how many guesses there were."""

    def __init__(self, log="", size=1):
        self.log, self.size = log and pathlib.Path(log), size
        self.note("made")

    def note(self, what):
        if self.log:
            with self.log.open("a") as file:
                file.write(f"{what}\n")

    def reset(self, row):
        self.note(f"reset {row['seed']}")
        self.secret, self.count = random.Random(row["seed"]).randint(0, 9), 0
        return "Guess a number from 0 to 9."

    def step(self, text):
        self.note(f"step {text}")
        self.count += 1
        digits = [int(letter) for letter in text if letter.isdigit()]
        if not digits:
            return f"{self.count}: no number" + " indeed" * (self.size - 1), 0.0, False
        if digits[0] == self.secret:
            return "right", 1.0 / self.count, True
        return f"{self.count}: {'more' if digits[0] < self.secret else 'less'}" * self.size, 0.0, False

    def close(self):
        self.note("closed")


class Copied(Guess):
    """The same, with copies of its state."""

    def save(self):
        self.note("save")
        return self.secret, self.count

    def load(self, state):
        self.note("load")
        self.secret, self.count = state


class Chatty(Guess):
    """Begins with a system message and an example."""

    def reset(self, row):
        asked = super().reset(row)
        example = [("user", "Guess: 0 to 1."), ("assistant", "1")]
        return [{"role": role, "content": text} for role, text in [("system", "A game."), *example, ("user", asked)]]


class Few(Guess):
    """A server with few sessions; instances are counted in files, whichever process they are in."""

    def __init__(self, folder, most):
        super().__init__()
        self.session = pathlib.Path(folder) / f"{os.getpid()}-{id(self)}"
        self.session.touch()
        if len(list(self.session.parent.iterdir())) > most:
            raise RuntimeError("too many at a time")

    def close(self):
        self.session.unlink()


class Serial(Few):
    """Cannot bear a second instance."""

    concurrent = False


class Fragile(Guess):
    """Does what it is told to."""

    def step(self, text):
        self.note(f"told {text}")
        held = []
        while text == "spin":
            pass
        while text == "leak":
            held.append(bytearray(1 << 24))
        if text == "hoard":
            self.held = bytearray(200 << 20)
            self.held[::4096] = b"." * len(self.held[::4096])
        if text == "sleep":
            time.sleep(1e6)
        if text == "exit":
            os._exit(3)
        if text == "cancel":
            raise asyncio.CancelledError
        if text == "raise":
            raise KeyError("no such word")
        if text == "nan":
            return "", float("nan"), False
        if text == "two":
            return "", 0.0
        return super().step(text)


class Exits(Guess):
    """Takes its process along."""

    def reset(self, row):
        os._exit(3)


class Raising(Guess):
    """Fails in every step once a file is there."""

    def step(self, text):
        if self.log and (self.log.parent / "broken").exists():
            raise OSError("no disk")
        return super().step(text)


class Gone(Guess):
    """A server that goes away while a file is there, or after as many steps in all as the file ``after`` says."""

    def step(self, text):
        folder = self.log.parent
        after = folder / "after"
        if after.exists():
            left = int(after.read_text() or 1) - 1
            after.write_text(str(left))
            if left <= 0:
                after.unlink()
                raise Unavailable("no answer from port 1")
        return super().step(text)


class Absent(Guess):
    def reset(self, row):
        raise Unavailable("no answer from port 1")


class Refusing(Guess):
    def __init__(self, **given):
        raise Refused("Poker has more than one player")


class Picky(Guess):
    """Some rows cannot be begun."""

    def reset(self, row):
        if row["seed"] % 4 == 1:
            raise ValueError(f"no board {row['seed']}")
        if row["seed"] % 8 == 2:
            return []
        return super().reset(row)


class Slow(Guess):
    """A server that goes away in the midst of the openings, once."""

    def reset(self, row):
        if row["seed"] == 4 and not (self.log.parent / "back").exists():
            (self.log.parent / "back").touch()
            raise Unavailable("no answer from port 1")
        return super().reset(row)


class Late(Guess):
    """Its first row cannot be begun."""

    def reset(self, row):
        if row["seed"] == 0:
            raise ValueError("no board 0")
        return super().reset(row)


class Moody(Guess):
    """Says what a file beside the log says, whatever the row."""

    def step(self, text):
        _, reward, done = super().step(text)
        return (self.log.parent / "mood").read_text(), reward, done


class Own(Guess):
    """Has tasks of its own, no more than 6."""

    def rows(self, split, count, first):
        return ({"seed": first + i, "split": split} for i in range(min(count, 6)))


class SameRows(Guess):
    def rows(self, split, count, first):
        return [{"seed": i} for i in range(count)]


class NoRows(Guess):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def rows(self, split, count, first):
        wrong = {"set": [{"seed": {1, 2}}], "number": 3, "none": None, "row": {"seed": 1}, "numbers": [1, 2]}
        return wrong[self.kind]


class Random(Guess):
    """Draws from the process's generator, seeded at each reset: right alone, and wrong beside another."""

    def reset(self, row):
        random.seed(row["seed"])
        return super().reset(row)

    def step(self, text):
        return f"{super().step(text)[0]} {random.random()}", 0.0, False


class Shared(Guess):
    """Counts the steps of all instances."""

    steps = itertools.count()

    def step(self, text):
        return f"{next(self.steps)}", 0.0, False


class Alias(Guess):
    """Its copies are no copies."""

    def save(self):
        return vars(self)

    def load(self, state):
        self.__dict__ = state


class NoStep:
    def reset(self, row):
        return "?"


class Arguments:
    def reset(self):
        return "?"

    def step(self, text, more):
        return "", 0.0, True


class HalfCopied(Guess):
    def save(self):
        return None


class Returns(Guess):
    """Returns something from reset or step that is not what is due."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def reset(self, row):
        openings = {
            "number": 3,
            "nothing": [],
            "assistant": [{"role": "assistant", "content": "a"}],
            "parts": [{"role": "user", "content": [{"type": "text"}]}],
            "blank": " ",
            "info": ("?", {}),
        }
        return openings.get(self.what, "?")

    def step(self, text):
        steps = {
            "pair": ("", 0.0),
            "gym": ("", 0.0, False, {}),
            "gymnasium": ("", 0.0, False, False, {}),
            "None": (None, 0.0, False),
            "nan": ("", float("nan"), False),
            "words": ("", "1", False),
            "int": ("", 0.0, 1),
        }
        if self.what == "raises":
            raise ValueError(f"no move {text!r}")
        return steps.get(self.what, ("", 0.0, True))


NOT_CALLABLE = 3
