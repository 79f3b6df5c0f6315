"""Measure the grader: pairs a second on N workers, and whether strange answers hang it, crash it or make it grow.

    python benchmarks/grader.py --workers 2
    python benchmarks/grader.py --workers 2 --fuzz 100000 --timeout 1.0 --seed 0

Without --fuzz: responses of about 1,500 characters with answers in the styles of the test splits, half of them right, no two
pairs equal and hardly a gold answer twice (a group of rollouts shares its gold answer, which is then parsed once a worker);
cold (workers started, no verdict known), and the same pairs again from the cache.

With --fuzz: the kinds of answers and their shares are in ``KINDS``. One pair in a hundred has a known verdict, which must hold
even so, also on a busy machine: the limit is one of processor time. Prints a Markdown table; exits with 1 if a known verdict
was missed.
"""

import argparse
import collections
import pathlib
import random
import sys
import threading
import time
from collections.abc import Callable

from exit_jax.domains.math.grader import Grader

BATCH = 500
PROSE = "We note that $a_{n+1} = a_n + \\frac{1}{n}$, so that \\[ S = \\sum_{k=1}^{n} k \\] holds for all $n$. "

# (answer, gold answer, whether it is right), from one number
STYLES: tuple[Callable[[int], tuple[str, str, bool]], ...] = (
    lambda n: (f"{n}", f"{n}", True),
    lambda n: (f"{n + 1}", f"{n}", False),
    lambda n: (rf"\frac{{{2 * n}}}{{{14}}}", rf"\frac{{{n}}}{{7}}", True),
    lambda n: (rf"\frac{{{n}}}{{7}}", rf"\frac{{{n + 1}}}{{7}}", False),
    lambda n: (f"{n / 8}", rf"\frac{{{n}}}{{8}}", True),
    lambda n: (rf"{n}\sqrt{{2}}", rf"\sqrt{{{2 * n * n}}}", True),
    lambda n: (rf"{n}\sqrt{{3}}", rf"{n}\sqrt{{2}}", False),
    lambda n: (f"({n}, -1)", f"(-1, {n})", False),
    lambda n: (rf"[{n}, \infty)", rf"[{n},\infty)", True),
    lambda n: (rf"\{{1, {n}\}}", f"{n}, 1", True),
    lambda n: (f"x^2 + {2 * n}x + {n * n}", f"(x+{n})^2", True),
    lambda n: (f"x^2 + {2 * n}x", f"(x+{n})^2", False),
    lambda n: (rf"\text{{no solution for }} {n}", f"{n}", False),
    lambda n: (rf"{n}^\circ", f"{n}", True),
    lambda n: (rf"\frac{{{n}\pi}}{{6}}", rf"\frac{{{n}\pi}}{{3}}", False),
    lambda n: (rf"{n}\%", rf"{n + 1}\%", False),
)


def realistic(index: int) -> tuple[str, str]:
    """Return the pair of this index: every style in turn, a fifth without a box."""
    answer, gold, _ = STYLES[index % len(STYLES)](index + 3)
    ending = f"The answer is ${answer}$." if index % 5 == 0 else rf"So we have \boxed{{{answer}}}."
    return PROSE * 15 + ending, gold


def known(rng: random.Random) -> tuple[str, str, bool]:
    """Return a pair and whether it is right."""
    answer, gold, right = rng.choice(STYLES)(rng.randint(3, 10**6))
    return PROSE + rf"\boxed{{{answer}}}", gold, right


def boxed(text: str) -> str:
    """Return a response with this answer."""
    return rf"Hence \boxed{{{text}}}."


TOKENS = r"""
\frac \sqrt \sum \int \left( \right) \left\{ \right\} { } ( ) [ ] ^ _ $ $$ \[ \] \( \) \boxed{ \text{
\begin{pmatrix} \end{pmatrix} & \\ \pi \infty \cup \in \mathbb{R} = < > \le , ; . ! % \% \circ + - * / x y n i
e 0 1 2 7 10 99 1000 \log \sin \binom \cdot \times and or answer is : ' " ~ | \| \operatorname{f} \lim \to
\prod \pmod \mod \lfloor \rfloor \overline
""".split()


def characters(rng: random.Random) -> str:
    """Return random code points: all planes, controls and lone surrogates."""
    return "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0x110000)))) for _ in range(rng.randint(0, 300)))


def soup(rng: random.Random) -> str:
    """Return random LaTeX tokens in a box."""
    return boxed(" ".join(rng.choices(TOKENS, k=rng.randint(1, 40))))


def unboxed_soup(rng: random.Random) -> str:
    """Return random LaTeX tokens, where math-verify has to look for an answer itself."""
    return " ".join(rng.choices(TOKENS, k=rng.randint(1, 200)))


def nested(rng: random.Random) -> str:
    """Return one construct nested in itself 2 to 300 times, closed or cut."""
    before, after = rng.choice(
        [
            ("{", "}"),
            (r"\frac{", "}{2}"),
            (r"\frac{1}{", "}"),
            (r"\sqrt{", "}"),
            ("(", ")"),
            ("2^{", "}"),
            (r"\boxed{", "}"),
            (r"\left(", r"\right)"),
            (r"\text{", "}"),
            ("|", "|"),
            (r"\{", r"\}"),
            ("-", ""),
            ("$", ""),
        ]
    )
    depth = rng.choice((2, 5, 10, 30, 100, 300))
    return boxed(before * depth + str(rng.randint(1, 99)) + after * rng.choice((depth, depth, depth - 1, 0)))


def numbers(rng: random.Random) -> str:
    """Return a number of up to 2,500 digits, in several notations."""
    digits = "".join(rng.choices("0123456789", k=int(10 ** rng.uniform(0, 3.4))))
    return boxed(
        rng.choice(("{}", "-{}", "0.{}", "{}.5", "1/{}", r"\frac{{1}}{{{}}}", "{}e5", r"{}\%", "{}!!")).format(digits)
    )


def towers(rng: random.Random) -> str:
    """Return what cannot be evaluated: towers of powers, factorials, sums, integrals of nonsense."""
    a, b, c = (rng.randint(2, 10**6) for _ in range(3))
    return boxed(
        rng.choice(
            [
                f"{a}^{{{b}^{{{c}^{{9}}}}}}",
                f"9^{{9^{{9^{{{a % 90 + 9}}}}}}}",
                f"9^9^9^{a}",
                f"{a}{b}!",
                f"({a}!)!",
                f"{a}!^{{{b}!}}",
                rf"\binom{{{a}{b}}}{{{c}}}",
                rf"\sum_{{k=1}}^{{{a}{b}{c}}} \frac{{1}}{{k^{{{c}}}}}",
                rf"\prod_{{k=1}}^{{{a}{b}}} k^k",
                rf"\int_0^{{{a}}} e^{{x^x}} \sin(x^{{{b}}}) dx",
                rf"\sqrt[{a}]{{{b}^{{{c}}} + x}}^{{{c}}}",
                f"(x+y+z+{a})^{{{b}}}",
                rf"\log_{{{a}}} {b}^{{{c}^{{{a}}}}}",
            ]
        )
    )


def matrices(rng: random.Random) -> str:
    """Return a matrix of as many entries as a box may hold, or more."""
    rows, columns = rng.randint(1, 30), rng.randint(1, 30)
    body = r"\\".join("&".join(rng.choices("0123456789x", k=columns)) for _ in range(rows))
    return boxed(rf"\begin{{pmatrix}}{body}\end{{pmatrix}}" + rng.choice(("", "^{-1}", "^{100}", "^T")))


def lists(rng: random.Random) -> str:
    """Return a long list, union, sum or chain of equations."""
    joint = rng.choice((",", "+", r"\cup", "=", "<", r"\text{ or }", " "))
    return boxed(joint.join(str(rng.randint(0, 99)) for _ in range(rng.randint(2, 200))))


def enormous(rng: random.Random) -> str:
    """Return 10 MB of one construct, boxed or not."""
    piece = rng.choice(
        ("{", "}", "9", r"\frac{", r"\boxed{", r"\boxed{1},", "$", "\0", "\ud800", "𝔸", "\n", "answer is $1$ ", "\\")
    )
    text = piece * (10**7 // len(piece)) + str(rng.random())
    return rng.choice((text, boxed(text), boxed("7") + text, text + boxed("7")))


# kind -> how many in a thousand; a third of nested and most towers run into the limit, so more would measure the limit
KINDS: dict[Callable[[random.Random], str], int] = {
    characters: 440,
    soup: 350,
    unboxed_soup: 170,
    numbers: 15,
    nested: 10,
    lists: 7,
    matrices: 5,
    towers: 2,
    enormous: 1,
}


def fuzzed(rng: random.Random) -> tuple[str, str, str, bool | None]:
    """Return (kind, response, gold answer, whether it is right if that is known)."""
    if rng.random() < 0.01:
        return "known", *known(rng)
    (kind,) = rng.choices(list(KINDS), weights=list(KINDS.values()))
    return kind.__name__, kind(rng), rng.choice(("7", r"\frac{1}{2}", "(1,2)", r"\text{even}", "x^2+1")), None


def memory_mib(process: int | str, field: str) -> float:
    """Return a line of /proc/PID/status in MiB, 0 if the process is gone."""
    try:
        lines = pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), 0.0)


class PeakOfWorkers(threading.Thread):
    """Watch the workers' peak memory, ten times a second, until ``stop``."""

    def __init__(self, grader: Grader):
        super().__init__(daemon=True)
        self.grader, self.peak, self.stopped = grader, 0.0, threading.Event()

    def run(self):
        while not self.stopped.wait(0.1):
            for worker in list(self.grader._pool._workers):
                self.peak = max(self.peak, memory_mib(worker.process.pid, "VmHWM"))

    def stop(self) -> float:
        self.stopped.set()
        self.join()
        return self.peak


def fuzz(grader: Grader, num_pairs: int, seed: int) -> tuple[dict, bool]:
    """Grade pairs from ``KINDS`` in batches; return figures, and whether all known verdicts came out."""
    rng, started = random.Random(seed), time.perf_counter()
    counts, ungraded = collections.Counter(), collections.Counter()
    num_known = num_right = 0
    baseline, growth = 0.0, 0.0
    watch = PeakOfWorkers(grader)
    watch.start()
    for done in range(0, num_pairs, BATCH):
        batch = [fuzzed(rng) for _ in range(min(BATCH, num_pairs - done))]
        verdicts = grader.grade([(response, gold) for _, response, gold, _ in batch])
        for (kind, _, _, right), verdict in zip(batch, verdicts):
            counts[kind] += 1
            ungraded[kind] += not verdict.graded
            num_known += right is not None
            num_right += right is not None and verdict.graded and verdict.correct == right
        del batch, verdicts
        resident = memory_mib("self", "VmRSS")
        baseline = baseline or resident
        growth = resident - baseline
        if done // BATCH % 20 == 0:
            print(f"{done + BATCH} pairs, {time.perf_counter() - started:.0f} s, {resident:.0f} MiB", file=sys.stderr)
    seconds = time.perf_counter() - started
    figures = {
        "pairs": num_pairs,
        "seconds": f"{seconds:.0f}",
        "pairs a second": f"{num_pairs / seconds:.0f}",
        "ungraded": grader.stats.num_ungraded,
        "workers replaced": grader.num_replaced,
        "cache hits": grader.stats.num_cache_hits,
        "known answers graded as they should be": f"{100 * num_right / max(num_known, 1):.4g}%",
        "the parent after the first batch, MiB": f"{baseline:.0f}",
        "growth of the parent, MiB": f"{growth:.1f}",
        "peak of the parent, MiB": f"{memory_mib('self', 'VmHWM'):.0f}",
        "peak of a worker, MiB": f"{watch.stop():.0f}",
    }
    return figures | {
        f"ungraded of {kind}": f"{ungraded[kind]} of {counts[kind]}" for kind in counts
    }, num_known == num_right


def throughput(grader: Grader, num_pairs: int) -> dict:
    """Return pairs a second of realistic pairs: workers starting, at work, and from the cache."""
    pairs = [realistic(index) for index in range(num_pairs)]
    rates = {}
    grader.grade([(rf"\boxed{{{index}}}", "0") for index in range(500)])  # starts the workers
    for name in ("cold", "cached"):
        started = time.perf_counter()
        verdicts = grader.grade(pairs)
        rates[f"pairs a second, {name}"] = f"{num_pairs / (time.perf_counter() - started):.0f}"
    return rates | {
        "pairs": num_pairs,
        "share right": f"{sum(verdict.correct for verdict in verdicts) / num_pairs:.3f}",
        "ungraded": grader.stats.num_ungraded,
    }


def main():
    """Parse the flags, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--fuzz", type=int, default=0, help="so many strange pairs instead")
    parser.add_argument("--timeout", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=pathlib.Path, help="JSON lines of the ungraded pairs")
    flags = parser.parse_args()
    grader, is_sound = Grader(flags.workers, flags.timeout, flags.log), True
    if flags.fuzz:
        figures, is_sound = fuzz(grader, flags.fuzz, flags.seed)
    else:
        figures = throughput(grader, flags.pairs)
    grader.close()
    print("| what | value |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value} |")
    return 0 if is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
