"""Measure the grader: pairs a second, right and wrong verdicts, and whether strange answers hang it, crash it or make it grow.

    python benchmarks/grader.py --workers 2
    python benchmarks/grader.py --workers 2 --fuzz 100000 --timeout 1.0 --seed 0
    python benchmarks/grader.py --table tests/domains/math_pairs.tsv [--before CHECKOUT]
    python benchmarks/grader.py --golds ../shared/golds.json [--before CHECKOUT]

With --table: a confusion table of hand-made pairs by kind. With --golds, a JSON object of lists of gold answers: each gold
answer against itself in the typographic forms of ``FORMS``, and against wrong answers: other gold answers of its list, and
itself with a number, a sign or a bracket changed. Both list the pairs that were missed; --before does the same on another
checkout of this repository, for a table of before and after.

Without these: responses of about 1,500 characters with answers in the styles of the test splits, half of them right, no two
pairs equal and hardly a gold answer twice (a group of rollouts shares its gold answer, which is then parsed once a worker);
cold (workers started, no verdict known), and the same pairs again from the cache.

With --fuzz: the kinds of answers and their shares are in ``KINDS``. One pair in a hundred has a known verdict, which must hold
even so, also on a busy machine: the limit is one of processor time. Prints a Markdown table; exits with 1 if a known verdict
was missed.
"""

import argparse
import collections
import csv
import json
import os
import pathlib
import random
import re
import subprocess
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


def bare(gold: str) -> str:
    """Return a gold answer without dollar signs for mathematics."""
    return re.sub(r"(?<!\\)\$", "", gold).strip()


def is_number(gold: str) -> bool:
    """Return whether a gold answer is a plain number, fraction or root."""
    number = r"-?(?:[\d.]+|\\d?frac\{-?\d+\}\{\d+\}|\d*\\sqrt\{\d+\})"
    return re.fullmatch(number, bare(gold).replace(" ", "")) is not None


def scientific(gold: str, joint: str) -> str:
    """Return 4.5e33 with another joint than e."""
    return re.sub(r"^(-?[\d.]+)e(-?\d+)$", lambda m: m[1] + joint % m[2], bare(gold))


# typographic forms of a gold answer, which change nothing of what it says; a form that leaves it as it is counts as none
FORMS: dict[str, Callable[[str], str]] = {
    "in dollars": lambda gold: f"${bare(gold)}$",
    "full stop": lambda gold: bare(gold).rstrip(".") + ".",
    "unit": lambda gold: rf"{bare(gold)}~\text{{cm}}" if is_number(gold) else gold,
    "degree sign": lambda gold: re.sub(r"\^\{?\\circ\}?", "°", bare(gold)),
    "bold": lambda gold: rf"\mathbf{{{bare(gold)}}}",
    "bold text": lambda gold: rf"\textbf{{{bare(gold)}}}",
    "text": lambda gold: rf"\text{{{bare(gold)}}}" if is_number(gold) else gold,
    "spaced commas": lambda gold: re.sub(r",(?=\S)", ", ", bare(gold)),
    "no spaces": lambda gold: re.sub(r"(?<![A-Za-z]) +| +(?![A-Za-z])", "", bare(gold)),
    "spaces around": lambda gold: rf"\, {bare(gold)} \;",
    "display style": lambda gold: rf"\displaystyle {bare(gold)}".replace(r"\frac", r"\dfrac"),
    "left and right": lambda gold: re.sub(r"(?<!left)\((.*)(?<!right)\)", r"\\left(\1\\right)", bare(gold)),
    "minus sign": lambda gold: bare(gold).replace("-", "−"),
    "named": lambda gold: f"x = {bare(gold)}" if is_number(gold) else gold,
    "capital E": lambda gold: scientific(gold, "E%s"),
    "times": lambda gold: scientific(gold, r" \times 10^{%s}"),
    "centred dot": lambda gold: scientific(gold, r"\cdot10^{%s}"),
    "times and unit": lambda gold: scientific(gold, r" \times 10^{%s} \mathrm{~erg/s}"),
}
# changes that make another answer of most
CHANGES = (("sin", "cos"), (r"\sqrt", r"\sqrt[3]"), (r"\pi", "e"), ("+", "-"), ("<", ">"), ("(", "["), (")", "]"))


def wrong_answers(golds: list[str], gold: str, rng: random.Random, count: int) -> list[str]:
    """Return answers that are not the gold answer, though some of the others may be equal to it (1 and k=1)."""
    text = bare(gold)
    changed = [text.replace(*change, 1) for change in CHANGES if change[0] in text]
    for match in list(re.finditer(r"(?<![\d.])\d+(?![\d.])", text))[:4]:
        number = int(match[0])
        changed += [text[: match.start()] + str(other) + text[match.end() :] for other in (number + 1, number + 10)]
    if re.match(r"[1-9\\]", text) and not text.startswith(r"\text"):
        changed += [f"-{text}", f"{text}+1"]
    changed = [
        answer for answer in changed if not re.search(r"\[-\\infty|\\infty\]", answer)
    ]  # no bracket but a round one
    others = rng.sample(golds, min(count, len(golds))) + rng.sample(changed, min(count, len(changed)))
    return [answer for answer in map(bare, others) if answer != text]


def pairs_of_golds(path: pathlib.Path, num_wrong: int, seed: int) -> list[tuple[str, bool, str, str]]:
    """Return (kind, whether it is right, gold answer, answer) of all gold answers in all forms, and of wrong answers."""
    rng, pairs = random.Random(seed), []
    lists = json.loads(path.read_text())
    for name, form in FORMS.items():
        pairs += [(name, True, g, form(g)) for golds in lists.values() for g in golds if form(g) not in (g, bare(g))]
    pairs += [("itself", True, gold, gold) for golds in lists.values() for gold in golds]
    for split, golds in lists.items():
        kind = f"wrong answers of {split}"
        pairs += [(kind, False, gold, w) for gold in golds for w in wrong_answers(golds, gold, rng, num_wrong)]
    return pairs


def read_pairs(path: pathlib.Path) -> list[tuple[str, bool, str, str]]:
    """Return (kind, whether it is right, gold answer, answer) of a table of pairs."""
    with open(path, newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["kind"], row["verdict"] == "right", row["gold"], row["response"]) for row in rows]


def confusion(grader: Grader, pairs: list[tuple[str, bool, str, str]]) -> dict[str, list[int]]:
    """Return by kind: right answers, those refused, wrong answers, those accepted. Lists what was missed on stderr."""
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0, 0])
    verdicts = grader.grade([(rf"So it is \boxed{{{answer}}}.", gold) for _, _, gold, answer in pairs])
    for (kind, is_right, gold, answer), verdict in zip(pairs, verdicts):
        column = 0 if is_right else 2
        counts[kind][column] += 1
        if verdict.correct != is_right:
            counts[kind][column + 1] += 1
            print(f"{'refused' if is_right else 'accepted'}: {gold}  for  {answer}  ({kind})", file=sys.stderr)
    counts["all"] = [sum(column) for column in zip(*counts.values())]
    return dict(counts)


def confusion_elsewhere(checkout: pathlib.Path, arguments: list[str]) -> dict[str, list[int]]:
    """Return the confusion table of the grader of another checkout."""
    command = [sys.executable, __file__, *arguments, "--as-json"]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


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


def print_confusion(flags: argparse.Namespace) -> int:
    """Print a confusion table; return 1 if an answer of the table was missed."""
    if flags.table:
        pairs = read_pairs(flags.table)
    else:
        pairs = pairs_of_golds(flags.golds, flags.wrong, flags.seed)
    grader = Grader(flags.workers, flags.timeout, flags.log)
    counts = confusion(grader, pairs)
    grader.close()
    if flags.as_json:
        print(json.dumps(counts))
        return 0
    before = {}
    if flags.before:
        where = ["--table", str(flags.table.absolute())] if flags.table else ["--golds", str(flags.golds.absolute())]
        shared = ["--workers", str(flags.workers), "--wrong", str(flags.wrong), "--seed", str(flags.seed)]
        before = confusion_elsewhere(flags.before, [*where, *shared, "--timeout", str(flags.timeout)])
    print(
        "| kind | right | refused before | refused | wrong | accepted before | accepted |\n|---|---|---|---|---|---|---|"
    )
    for kind, (num_right, num_refused, num_wrong, num_accepted) in counts.items():
        _, refused_before, _, accepted_before = before.get(kind, ["-"] * 4)
        cells = (kind, num_right, refused_before, num_refused, num_wrong, accepted_before, num_accepted)
        print(f"| {' | '.join(map(str, cells))} |")
    return int(flags.table is not None and counts["all"][1] + counts["all"][3] > 0)


def main():
    """Parse the flags, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--fuzz", type=int, default=0, help="so many strange pairs instead")
    parser.add_argument("--table", type=pathlib.Path, help="hand-made pairs instead")
    parser.add_argument("--golds", type=pathlib.Path, help="forms of gold answers, and wrong answers, instead")
    parser.add_argument(
        "--wrong", type=int, default=1, help="other gold answers and changed ones, for each gold answer"
    )
    parser.add_argument("--before", type=pathlib.Path, help="a checkout whose grader is measured first")
    parser.add_argument("--as-json", action="store_true", help="print the confusion table as JSON")
    parser.add_argument("--timeout", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=pathlib.Path, help="JSON lines of the ungraded pairs")
    flags = parser.parse_args()
    if flags.table or flags.golds:
        return print_confusion(flags)
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
