"""Test the grading of answers: what counts as right, and that nothing an answer does reaches the trainer's process."""

import collections
import importlib.util
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from exit_jax.domains.math import grader as graders
from exit_jax.domains.math.grader import MAX_CHARS, SCAN_CHARS, UNGRADED, WRONG, Grader, extract_answer

ROOT = pathlib.Path(__file__).parents[2]
# chance pairs of gold answers that are equal
EQUAL = {("1", "k=1"), ("$k=1$", "1"), ("3", "k=3"), ("$k=3$", "3"), ("0", "-0")}


def load(path: pathlib.Path):
    """Import a module by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = load(ROOT / "benchmarks" / "grader.py")
notation = load(graders.WORKER / "notation.py")
# a worker whose answers do what they say
FAULTY = f"""
import os, signal, sys, time

sys.path.insert(0, {str(graders.WORKER)!r})
import worker

def grade(text, gold):
    if "hang" in text:
        sum(range(1 << 60))  # one call into C that never looks at signals
    if "sleep" in text:
        time.sleep(60)
    if "die" in text:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "bomb" in text:
        bytearray(8 << 30)
    if "grow" in text:
        worker.hoard = b"." * (600 << 20)
    if "print" in text:
        print("{{}}", flush=True)
        os.write(1, b"noise")
    if "fail" in text:
        raise KeyError(text)
    time.sleep(0.3 * ("slow" in text))
    return text == gold, str(os.getpid()) if "pid" in text else ",".join({{"jax", "numpy"}} & sys.modules.keys())

worker.grade = grade
worker.main(float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def grader():
    grader = Grader(num_workers=2, timeout_secs=20.0, ungraded_log=None)
    yield grader
    grader.close()


@pytest.fixture
def make_faulty(tmp_path, monkeypatch):
    """Return a function that makes a Grader on faulty workers; they are closed at the end."""
    script = tmp_path / "worker.py"
    script.write_text(FAULTY)
    monkeypatch.setattr(graders, "WORKER", script)
    made = []

    def make(num_workers=1, timeout_secs=1.0, ungraded_log=None):
        made.append(Grader(num_workers, timeout_secs, ungraded_log))
        return made[-1]

    yield make
    for grader in made:
        grader.close()


def is_running(pid: int) -> bool:
    """Return whether a process is there and not a zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter if it is buried between open and read
        return False


def wait_until(condition, secs=20.0):
    limit = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


def pids(grader: Grader) -> list[int]:
    return [worker.process.pid for worker in grader._pool._workers]


# response's box, gold answer
RIGHT = [
    (r"\frac{3}{4}", r"\frac{3}{4}"),
    (r"0.75", r"\frac{3}{4}"),
    (r"3/4", r"\dfrac{3}{4}"),
    (r"\tfrac{6}{8}", r"\frac34"),
    (r"42", "42"),
    (r"042", "42"),  # AIME's three digits
    (r"42.0", "42"),
    (r"x=3", "3"),
    (r"3", "x=3"),
    (r"1,234", "1234"),
    (r"1{,}234", "1234"),
    (r"12\,345", "12345"),
    (r"(1,2)", "(1,2)"),
    (r"\left(1,\frac{1}{2}\right)", "(1,0.5)"),
    (r"[0,1)", r"\left[0,1\right)"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(-\infty,2)\cup(3,\infty)"),
    (r"\{2, 1\}", r"\{1,2\}"),
    (r"2, 1", "1,2"),
    (r"1 \text{ and } 2", "1,2"),
    (r"50\%", r"50\%"),
    (r"50", r"50\%"),
    (r"\text{even}", r"\text{even}"),
    (r"even", r"\text{even}"),
    (r"\text{Even}", "even"),
    (r"\text{(B)}", "B"),
    (r"B", r"\text{B}"),
    (r"\textbf{(B)}\ 12", "12"),
    (r"\textbf{(B)}\ \frac{1}{2}", r"\frac12"),
    (r"\textbf{(B) }12", "B"),
    (r"\textbf{(B)}\ 2a", "2a"),
    (r"\textbf{(B)}\ i", "i"),  # math-verify tells it from I
    (r"\textbf{(A)}\ B", "A"),
    (r"30^\circ", "30"),
    (r"30", r"30^{\circ}"),
    (r"1\frac{1}{2}", r"\frac{3}{2}"),
    (r"10\text{ cm}", "10"),
    (r"10", r"10 \mathrm{~cm}"),
    (r"\$5.50", "5.5"),
    (r"2\sqrt{2}", r"\sqrt{8}"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    (r"x^2+2x+1", "(x+1)^2"),
    (r"{\frac{1}{{2}}}", r"\frac{1}{2}"),
    (r"2^{10}", "1024"),
    (r"5!", "120"),
    (r"4.5 \times 10^{33}", r"4.5\times10^{33}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"x < 3", "x<3"),
    (r"3 > x", "x<3"),
    (r"\frac{n(n+1)}{2}", r"$\frac{n^2+n}{2}$"),
    (r"\log_2 8", "3"),
    (r"\pi/4", r"\frac{\pi}{4}"),
]
# that would be right beside any other letter
GUESSES = ["B", r"\text{B}", "(B)", r"\text{(B)}", "b", r"\mathbf{B}", r"\{B\}", "x=B", r"\{x=B\}", "$B$"]
WRONG_ANSWERS = [
    (r"\frac{4}{3}", r"\frac{3}{4}"),
    (r"0.76", r"\frac{3}{4}"),
    (r"41", "42"),
    (r"-42", "42"),
    (r"(2,1)", "(1,2)"),
    (r"[0,1]", "[0,1)"),
    (r"1,2,3", "1,2"),
    (r"1", "1,2"),
    (r"\text{odd}", r"\text{even}"),
    (r"C", "B"),
    (r"\textbf{(C)}\ 13", "12"),
    *((rf"\textbf{{(A)}}\ {guess}", "B") for guess in GUESSES),
    (r"\sqrt{3}", r"\sqrt{2}"),
    (r"x^2+2x", "(x+1)^2"),
    (r"1{,}235", "1234"),
    (r"x > 3", "x<3"),
    (r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"", "42"),
    (r"\text{I do not know}", "42"),
]
RESPONSES = [
    (r"First \boxed{7}, but no: \boxed{8}.", "8", True),
    (r"First \boxed{8}, but no: \boxed{7}.", "8", False),
    (r"The roots are $\boxed{1}$ and $\boxed{2}$.", r"\{1,2\}", True),
    (r"They are \boxed{100} and \boxed{200}.", "100, 200", True),
    (r"They are \boxed{100} and \boxed{200}.", "100200", False),
    (r"It is \boxed{1} or \boxed{2}.", "1", False),  # hedging earns nothing
    ("So the answer is 12.", "12", True),
    ("The final answer is $\\frac{1}{2}$. I hope it is correct.", "0.5", True),
    ("The answer is (B).", "B", True),
    ("So the answer is 13.", "12", False),
    ("Text.\n<answer>7</answer>", "7", True),
    ("We add 3. Then comes Step 3.", "3", False),
    ("They are numbered 1, 2, …, 7", "7", False),
    ("Hence the numbers are 1, 2, …, 7.", "7", False),
    (r"\boxed{7}</think> The answer is 9.", "7", False),
    (r"\boxed{7}</think> The answer is 9.", "9", True),
    (r"<think>I find \boxed{7} and must check", "7", False),
    (r"cut off in \boxed{\frac{1}{2}", "42", False),
    ("", "42", False),
    ("no number at all", "42", False),
]


def test_what_is_right_and_what_is_wrong(grader):
    table = [(rf"Thus $\boxed{{{answer}}}$.", gold, True) for answer, gold in RIGHT]
    table += [(rf"Thus $\boxed{{{answer}}}$.", gold, False) for answer, gold in WRONG_ANSWERS] + RESPONSES
    verdicts = grader.grade([(response, gold) for response, gold, _ in table])
    assert all(verdict.graded for verdict in verdicts)
    assert [row for row, verdict in zip(table, verdicts) if verdict.correct != row[2]] == []


def by_kind() -> dict[str, list[tuple[str, bool, str, str]]]:
    """Return the rows of the table of pairs."""
    kinds = collections.defaultdict(list)
    for row in benchmark.read_pairs(pathlib.Path(__file__).with_name("math_pairs.tsv")):
        kinds[row[0]].append(row)
    return kinds


@pytest.mark.parametrize(("kind", "rows"), by_kind().items(), ids=by_kind())
def test_table_of_pairs(grader, kind, rows):
    verdicts = grader.grade([(rf"So it is \boxed{{{answer}}}.", gold) for _, _, gold, answer in rows])
    assert [row for row, verdict in zip(rows, verdicts) if verdict.correct != row[1] or not verdict.graded] == []


def test_table_is_large_and_has_no_pair_twice():
    rows = [row for rows in by_kind().values() for row in rows]
    assert len(rows) > 600
    assert len({row[2:] for row in rows}) == len(rows)


@pytest.mark.parametrize("name", notation.RULE)
def test_rules_of_notation(monkeypatch, name):
    (example, becomes) = next(row[3:] for row in notation.RULES if row[0] == name)
    expected = notation.rewrite(becomes)
    assert notation.rewrite(example) == expected
    monkeypatch.setattr(notation, "RULE", {other: rule for other, rule in notation.RULE.items() if other != name})
    assert notation.rewrite(example) != expected, "no need of this rule"


def golds(one_in: int, num_wrong: int) -> list[tuple[str, bool, str, str]]:
    """Return forms of gold answers of the test splits, and wrong answers, if they are there."""
    path = ROOT.parent / "shared" / "golds.json"
    if not path.exists():
        pytest.skip(f"{path} has the gold answers of the test splits, and is not there")
    return benchmark.pairs_of_golds(path, num_wrong, seed=0)[::one_in]


@pytest.mark.parametrize("one_in", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_gold_answers_in_all_forms(grader, one_in):
    rows = golds(one_in, num_wrong=1)
    assert len(rows) > 10000 / one_in
    verdicts = grader.grade([(rf"So it is \boxed{{{answer}}}.", gold) for _, _, gold, answer in rows])
    assert [row for row, verdict in zip(rows, verdicts) if verdict.correct != row[1] and row[2:] not in EQUAL] == []


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        (["0.5", r"\frac{1}{2}", "1/2", r"\frac{2}{4}", "x = 0.50", r"\dfrac12"], "1/2"),
        ([r"\text{Even}", "even", r"\textbf{even}"], "even"),
        (["1,2", r"\{2,1\}", r"1 \text{ and } 2"], "{1, 2}"),
        ([r"\sqrt{8}", r"2\sqrt{2}"], "2*sqrt(2)"),
        (["1{,}000", "1000", "1000.0", "10^3"], "1000"),
        ([r"\text{(B)}", "B", r"\textbf{(B)}\ 12"], "b"),
        (["6", "x=6", "2+4=6", "x=2+4=6", "x=y=6.0", "AB=6"], "6"),
        (["10^{2000}"], "10**2000"),  # not evaluated
        (["", " "], ""),
    ],
)
def test_equal_answers_have_one_text(grader, answers, text):
    verdicts = grader.grade([(rf"\boxed{{{answer}}}", "7") for answer in answers])
    assert {verdict.answer for verdict in verdicts} == {text}


def test_different_answers_have_different_texts(grader):
    texts = "2+4=6  3+4=7  x=3+5=8  1+2=9=10  2x+y=4  3x-y=4  3=x  4=x  3<4  4<5  x+1=x+1  x+1=x+2"
    answers = texts.split()
    verdicts = grader.grade([(rf"\boxed{{{answer}}}", "5") for answer in answers])
    assert len({verdict.answer for verdict in verdicts}) == len(answers)


def test_a_long_answer_has_a_short_text(grader):
    sums = ["+".join(f"x_{{{index}}}" for index in range(count)) for count in (120, 121)]
    first, second = (verdict.answer for verdict in grader.grade([(rf"\boxed{{{text}}}", "7") for text in sums]))
    assert len(first) == len(second) < 250
    assert first != second


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (r"a \boxed{1} b \boxed{\frac{1}{2}} c", r"\frac{1}{2}"),
        (r"\boxed {\{1\}}", r"\{1\}"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\boxed{1}, \(\boxed{2}\) and $\boxed{3}$", "1, 2, 3"),
        (r"\boxed{7}, that is \boxed{7}", "7"),
        (r"\boxed{7}, \boxed{7}", "7"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"} { \boxed{1} \boxed{2", "1"),
        (r"\boxed{1} \boxed{\{}", r"\{"),
        (r"It is \fbox{7}.", "7"),
        (r"It is \framebox[3cm][c]{\frac{1}{7}}.", r"\frac{1}{7}"),
        (r"It is $\boxed 7$.", "7"),
        (r"It is $\boxed\pi$.", r"\pi"),
        ("the answer is 12 ", "12"),
        ("The answer to the question is $12$. I hope so.", "$12$"),
        ("Answer: $1$ and $2$.", "$1$ and $2$"),
        ("**Final answer:** 12", "12"),
        ("#### 12", "12"),
        ("Text.\n<answer>7</answer>", "7"),
        ("We add 3. Thus $x = 12$.", "$x = 12$"),
        ("We add 3. So there are 12 ways.", "12 ways"),
        ("12", "12"),
        (r"$\frac12$", r"$\frac12$"),
        ("We add 3. Then comes Step 3.", ""),
        ("They are numbered 1, 2, …, 7", ""),
        (r"cut off in \boxed{\frac{1}{2} which", ""),
        ("a" * 5000 + " 12", ""),
        (r"\boxed{1}" + " " * SCAN_CHARS, ""),
        (rf"\boxed{{{'1' * (MAX_CHARS + 1)}}}", ""),
        ("", ""),
        (r"<think>Is it \boxed{7}?</think> It is \boxed{9}.", "9"),
        (r"<think>It is \boxed{7}.</think> The answer is 9.", "9"),
        (r"<think>I find \boxed{7} and must check", ""),
    ],
)
def test_extract_answer(response, text):
    assert extract_answer(response) == text


@pytest.mark.parametrize("response", ["{" * 10**7, r"\boxed{" * 10**6, "}" * 10**7, r"\boxed{}," * 10**6, "\0" * 10**7])
def test_enormous_responses_are_cut_at_once(response):
    started = time.process_time()
    assert len(extract_answer(response)) <= MAX_CHARS
    assert time.process_time() - started < 1.0


def test_order_cache_and_counts(make_faulty):
    grader = make_faulty(num_workers=2, timeout_secs=10.0)
    texts = ["slow", *(str(index) for index in range(20)), "3", ""]
    pairs = [(text, "3") for text in texts]
    assert [verdict.correct for verdict in grader.grade(pairs)] == [text == "3" for text in texts]
    assert (grader.stats.num_pairs, grader.stats.num_cache_hits) == (23, 2)  # the second "3" and the empty one
    workers = pids(grader)
    assert [verdict.correct for verdict in grader.grade(pairs[::-1])] == [text == "3" for text in texts[::-1]]
    assert (grader.stats.num_pairs, grader.stats.num_cache_hits) == (46, 25)
    assert (grader.stats.num_ungraded, grader.num_replaced) == (0, 0)
    assert pids(grader) == workers


def test_cache_is_bounded(make_faulty, monkeypatch):
    monkeypatch.setattr(graders, "CACHE_SIZE", 4)
    grader = make_faulty()
    grader.grade([(str(index), "3") for index in range(10)])
    assert len(grader._cache) == 4
    grader.grade([("0", "3"), ("9", "3")])
    assert grader.stats.num_cache_hits == 1


def test_a_slow_pair_delays_its_worker_only(make_faulty):
    grader = make_faulty(num_workers=2, timeout_secs=10.0)
    for index in itertools.count():
        grader.grade([(f"slow {index}", ""), (f"slow {index}", "other")])
        if [worker.is_ready for worker in grader._pool._workers] == [True, True]:
            break
    answers = [verdict.answer for verdict in grader.grade([("slow pid", ""), *((f"pid {i}", "") for i in range(50))])]
    assert answers.count(answers[0]) < 20  # of 51; 1 on an idle machine
    assert len(set(answers)) == 2


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("hang", ("time limit", "wall-clock limit")),  # the second where other programs leave it too little of a core
        ("sleep", ("wall-clock limit",)),
        ("die", ("worker killed by SIGSEGV",)),
        ("bomb", ("out of memory",)),
        ("fail", ("KeyError('fail')",)),
    ],
)
def test_faults_cost_one_pair(make_faulty, tmp_path, text, reasons):
    grader = make_faulty(ungraded_log=tmp_path / "log" / "ungraded.jsonl")
    started = time.monotonic()
    verdicts = grader.grade([("a", "a"), (text, text), ("b", "b")])
    assert time.monotonic() - started < 15.0
    assert [verdict.correct for verdict in verdicts] == [True, False, True]
    assert verdicts[1] == UNGRADED
    assert (grader.stats.num_ungraded, grader.num_replaced) == (1, 1)
    (line,) = (tmp_path / "log" / "ungraded.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["reason"] in reasons
    assert (row["gold"], row["start"], row["end"]) == (text, text, text)


def test_a_worker_that_has_grown_is_retired(make_faulty):
    grader = make_faulty(timeout_secs=10.0)
    answers = [verdict.answer for verdict in grader.grade([("pid 0", ""), ("grow pid", ""), ("pid 1", "")])]
    assert answers[0] == answers[1] != answers[2]
    assert (grader.stats.num_ungraded, grader.num_replaced) == (0, 1)


def test_prints_are_no_replies_and_workers_import_no_jax(make_faulty):
    verdicts = make_faulty().grade([("print", "print"), ("a", "a")])
    assert all(verdict.correct and verdict.answer == "" for verdict in verdicts)


def test_a_worker_killed_from_outside(make_faulty):
    grader = make_faulty(num_workers=2, timeout_secs=60.0)
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.extend(grader.grade([("hang", ""), ("a", "a")])))
    thread.start()  # a call from a background thread, too
    wait_until(lambda: len(grader._cache) == 1 and any(worker.index is not None for worker in grader._pool._workers))
    os.kill(next(worker.process.pid for worker in grader._pool._workers if worker.index is not None), signal.SIGKILL)
    thread.join(20.0)
    assert [verdict.graded for verdict in verdicts] == [False, True]
    assert grader.num_replaced == 1


def test_workers_outlive_the_thread_that_started_them(make_faulty):
    grader = make_faulty()
    thread = threading.Thread(target=grader.grade, args=([("a", "a")],))
    thread.start()
    thread.join()
    (pid,) = pids(grader)
    time.sleep(0.2)
    assert grader.grade([("pid", "")])[0].answer == str(pid)


def test_an_idle_worker_that_died_costs_no_pair(make_faulty):
    grader = make_faulty()
    grader.grade([("a", "a")])
    os.kill(pids(grader)[0], signal.SIGTERM)  # of a cluster that ends a job: the trainer decides
    assert grader.grade([("b", "b")])[0].correct
    assert grader.num_replaced == 0
    os.kill(pids(grader)[0], signal.SIGKILL)
    grader._pool._workers[0].process.wait()
    assert grader.grade([("c", "c")])[0].correct
    assert (grader.stats.num_ungraded, grader.num_replaced) == (0, 1)


def test_an_error_in_the_middle_leaves_no_pair_behind(make_faulty, monkeypatch):
    grader = make_faulty(num_workers=2, timeout_secs=1.0)
    grader.grade([(f"slow {index}", "") for index in range(4)])

    def full(**_):
        raise OSError("disk full")

    monkeypatch.setattr(grader._ungraded, "write", full)
    with pytest.raises(OSError, match="disk full"):
        grader.grade([("hang", ""), ("fail", "")])  # the first is still in hand
    assert [verdict.correct for verdict in grader.grade([("a", "b"), ("b", "b"), ("c", "b")])] == [False, True, False]


def test_log_is_replayed(make_faulty, tmp_path):
    path = tmp_path / "ungraded.jsonl"
    first = make_faulty(ungraded_log=path)
    first.grade([("die \ud800 \0", "a"), ("a", "a")])
    path.write_text(path.read_text() + 'not json\n{"hash": "zz"}\n{"hash": "0')  # the last line was being written
    second = make_faulty(ungraded_log=path)
    assert second.grade([("die \ud800 \0", "a")]) == [UNGRADED]
    assert (second.stats.num_cache_hits, second.stats.num_ungraded, pids(second)) == (1, 1, [])
    second.grade([("die again", "a")])
    third = make_faulty(ungraded_log=path)
    third.grade([("die \ud800 \0", "a"), ("die again", "a")])
    assert (third.stats.num_cache_hits, third.stats.num_ungraded) == (2, 2)


def test_gold_answers_beyond_the_limit_are_not_graded(make_faulty):
    assert make_faulty().grade([("a", "a" * (MAX_CHARS + 1))]) == [UNGRADED]


def test_strange_text_arrives_as_it_is(make_faulty):
    wide = MAX_CHARS - 2
    texts = [f"a{text}a" for text in ("\0", "\ud800", "𝔸\n\r\u2028", '"\\', "\x01" * wide, "\U0001f600" * wide)]
    pairs = [(rf"\boxed{{{text}}}", text) for text in texts]
    assert all(verdict.correct for verdict in make_faulty().grade(pairs))


def test_without_pairs_or_answers_no_worker_starts(make_faulty):
    grader = make_faulty()
    assert grader.grade([]) == []
    assert grader.grade([("", "1")]) == [WRONG]
    assert pids(grader) == []


def test_workers_that_cannot_start_are_an_error(make_faulty, tmp_path):
    (tmp_path / "worker.py").write_text("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match=r"worker ended with status 3; is math-verify installed"):
        make_faulty().grade([("a", "a")])


@pytest.mark.parametrize("settings", [(0, 1.0), (1, 0.0), (1, float("nan"))])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(ValueError, match="must be positive"):
        Grader(*settings)


def test_close_leaves_no_process(make_faulty, tmp_path):
    path = tmp_path / "ungraded.jsonl"
    grader = make_faulty(num_workers=2, timeout_secs=60.0, ungraded_log=path)
    errors = []

    def call():
        with pytest.raises(RuntimeError, match="closed") as raised:
            grader.grade([("hang", ""), ("a", "a"), ("hang too", "")])
        errors.append(raised)

    thread = threading.Thread(target=call)
    thread.start()
    wait_until(lambda: sum(worker.index is not None for worker in grader._pool._workers) == 2)
    workers = pids(grader)
    assert all(map(is_running, workers))
    grader.close()
    thread.join(20.0)
    assert errors
    assert not any(map(is_running, workers))
    assert not path.exists()  # a pair that was interrupted is not ungradable
    grader.close()
    with pytest.raises(RuntimeError, match="closed"):
        grader.grade([("a", "a")])


@pytest.mark.parametrize("ending", ["kill", "exit"])
def test_no_orphans(tmp_path, ending):
    """A script without a __main__ guard, whose two workers are idle and busy as it ends."""
    worker, script = tmp_path / "worker.py", tmp_path / "script.py"
    worker.write_text(FAULTY)
    script.write_text(
        f"""
import pathlib, sys, threading, time
from exit_jax.domains.math import grader as graders
graders.WORKER = pathlib.Path({str(worker)!r})
grader = graders.Grader(2, 2.0, None)
grader.grade([("slow", ""), ("a", "")])
threading.Thread(target=grader.grade, args=([("hang", "")],), daemon=True).start()
while not any(worker.index is not None for worker in grader._pool._workers):
    time.sleep(0.01)
print(*[worker.process.pid for worker in grader._pool._workers], flush=True)
{"time.sleep(60)" if ending == "kill" else ""}
"""
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script], env=environment, text=True, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        if ending == "kill":
            parent.kill()
        else:
            assert parent.wait(20.0) == 0
            assert not any(map(is_running, workers))
    wait_until(lambda: not any(map(is_running, workers)), secs=15.0)  # the limit is 2 s of processor time


def test_fuzz():
    """Random, adversarial and enormous answers; the benchmark has 100,000 of them."""
    command = [sys.executable, str(ROOT / "benchmarks" / "grader.py"), "--fuzz", "2000", "--timeout", "0.5"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = {
        cells[1].strip(): cells[2].strip() for row in done.stdout.splitlines() if len(cells := row.split("|")) == 4
    }
    assert figures["pairs"] == "2000"
    assert 0 < int(figures["ungraded"]) < 100
    assert figures["known answers graded as they should be"] == "100%"
    assert float(figures["growth of the parent, MiB"]) < 100.0
