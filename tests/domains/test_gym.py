"""The sets of reasoning-gym as a domain: faults of settings, checks, making, scoring, prompts, demonstrations, exact resume."""

import dataclasses
import importlib.util
import json
import os
import random

import pytest
from small import tiny_gym as tiny

from exit_jax import domains, run
from exit_jax.domains.domain import DomainError
from exit_jax.domains.gym import checks, entries, scorer, sets, worker
from exit_jax.domains.gym.domain import Gym, common_words
from exit_jax.domains.gym.settings import GymConfig
from exit_jax.errors import ConfigError
from exit_jax.types import BASE, DIVERGE, IMPROVE
from exit_jax.workdir.metrics import read_jsonl

needs_package = pytest.mark.skipif(  # where it is required, they run, and fail without it
    importlib.util.find_spec("reasoning_gym") is None and os.environ.get("EXIT_JAX_REQUIRE_PARITY") != "1",
    reason='needs pip install -e ".[gym]"',
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("gym")


@pytest.fixture(scope="module")
def make(data_dir):
    """Return a function from sets and settings to their config."""

    def make(*names, **changes):
        given = {"data_dir": str(data_dir), "num_train": 6, "num_validation": 2, "num_test": 4, "num_workers": 2}
        return GymConfig(**{"sets": names, "max_request_tokens": 2000} | given | changes)

    return make


@pytest.fixture(scope="module")
def score(make):
    """Return a function that scores an answer to the first test task of a set."""

    def score(name, answer, **changes):
        config = make(name, **changes)
        entry = entries.load(config, name)["test"][0]
        return scorer.Scorer(config).score([(entry, answer(entry) if callable(answer) else answer)])[0]

    return score


# Settings


def faults(**changes):
    return "\n".join(GymConfig(**{"sets": ("countdown",)} | changes).faults())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"sets": ()}, "domain.sets = () names no set of reasoning-gym"),
        ({"sets": ("countdwn",)}, "'countdwn' is no set of reasoning-gym 0.1.25; did you mean 'countdown'?"),
        ({"sets": ("zzzzzz",)}, "'zzzzzz' is no set of reasoning-gym 0.1.25; docs/environments.md lists them"),
        ({"sets": ("puzzle24",)}, "'puzzle24' is refused: its scorer does not compare the numbers"),
        ({"sets": ("maze", "maze")}, "names a set twice"),
        ({"sets": ("acre",), "levels": (0,)}, "domain.levels = (0,) for 'acre': it has none"),
        ({"sets": ("survo",), "levels": (1, 2)}, "'survo' does not allow its own level 2"),
        ({"sets": ("survo",), "levels": (1, 3, 0)}, "'survo' does not allow its own level 3"),
        ({"weights": (1.0, 2.0)}, "domain.weights = (1.0, 2.0) are 2 for 1 domain.sets"),
        ({"sets": ("maze", "ab"), "num_test": 1}, "domain.num_test = 1 is not between the number of domain.sets and"),
        ({"num_train": 1 << 21}, "domain.num_train = 2097152 is not between"),
    ],
)
def test_faults_of_settings_are_told_without_the_package(changes, words):
    found = faults(**changes)
    assert words in found
    assert bool(found) == bool(words)


def test_all_faults_are_told_at_once():
    assert len(faults(sets=("countdwn", "coin_flip"), weights=(1.0,), num_test=1).splitlines()) == 4


def test_what_is_known_of_sets_is_about_sets():
    known = {*sets.REFUSED, *sets.WITHOUT_GOLD, *sets.WITHOUT_LEVELS, *sets.BAD_LEVELS, *checks.CHECKS}
    assert known <= {*sets.NAMES}
    assert len(sets.NAMES) == 106


def test_tasks_are_shared_out_by_weight(make):
    # One each, then 7 by weights 3 : 2 : 2, exactly
    assert entries.shares(make("maze", "ab", "gcd", weights=(3.0, 2.0, 2.0)), 10) == [4, 3, 3]
    # 8 left by thirds: 2 each, and the last 2 to the first two, whose remainders are as large as the third's
    assert entries.shares(make("maze", "ab", "gcd"), 11) == [4, 4, 3]
    assert entries.shares(make("maze", "ab", weights=(1e9, 1.0)), 2) == [1, 1]


def test_no_two_splits_or_seeds_share_an_index(monkeypatch, make):
    monkeypatch.setattr(entries, "version", lambda: "")
    taken = set()
    for data_seed in (0, 1, 999):
        recipe = entries.recipe(make("maze", data_seed=data_seed, num_train=1 << 18), "maze")
        for split, seed in recipe["seeds"].items():
            span = range(seed, seed + entries.size_of(recipe["counts"][split]))
            assert span.stop < 1 << 32, "numpy's seeds end there"
            assert not taken.intersection((span.start, span.stop - 1))
            assert len(span) <= (1 << 20) + entries.MORE_TRIES
            taken |= {span.start, span.stop - 1}


# Answers


@pytest.mark.parametrize(
    ("text", "tagged", "whole"),
    [
        ("so <answer> 4 </answer>.", "4", "4"),
        ("<answer>1</answer> no, <answer>2\n3</answer>", "2\n3", "2\n3"),
        ("<answer>1 <answer>2</answer>", "2", "2"),
        ("<answer>1</answer> and <answer>2", "1", "1"),
        (" 4 ", "", "4"),
        ("<answer>4", "", "<answer>4"),
        ("4</answer>", "", "4</answer>"),
        ("<answer></answer>", "", ""),
        ("", "", ""),
    ],
)
def test_an_answer_stands_in_the_last_tags(make, text, tagged, whole):
    assert Gym(make("maze")).found_answer(text) == tagged
    assert Gym(make("maze", answers="any")).found_answer(text) == whole


def test_what_all_questions_begin_with_ends_with_a_word():
    assert common_words(["Sort: 3 1", "Sort: 30 2"]) == len("Sort: ")
    assert common_words(["In a grid:\n1 2", "In a grid:\n3 4", "In a grid:\n14"]) == len("In a grid:\n")
    assert common_words(["one", "two"]) == 0
    assert common_words(["the same", "the same"]) == 0


# Checks


GRID = {"puzzle": [[1, 0, 0, 4], [0, 4, 1, 0], [0, 0, 4, 0], [4, 0, 0, 1]]}
SORTED = {"original_numbers": ["3", "-1.5", "3"], "direction": "ascending"}
TARGET = {"numbers": [2, 3, 4], "target": 14}


@pytest.mark.parametrize(
    ("name", "metadata", "answer", "said"),
    [
        ("mini_sudoku", GRID, "1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1", ""),
        ("mini_sudoku", GRID, "1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 3 1", "rows 4 columns 3 boxes 4"),
        ("mini_sudoku", GRID, "1 2 3 4\n3 4 1 2\n2 1 4 3\n4 4 2 1", "rows 4 columns 2 boxes 3"),
        ("mini_sudoku", GRID, "2 1 3 4\n3 4 1 2\n1 2 4 3\n4 3 2 1", "clues 1"),
        ("mini_sudoku", GRID, "1 2 3 4\n3 4 1 2\n2 1 4 3", "unreadable"),
        ("mini_sudoku", GRID, "1 2 3 5\n3 4 1 2\n2 1 4 3\n4 3 2 1", "unreadable"),
        ("spell_backward", {"word": "Drop"}, "pord", ""),
        ("spell_backward", {"word": "Drop"}, "prod", "letters 2 3"),
        ("spell_backward", {"word": "Drop"}, "por", "3 letters, not 4"),
        ("number_sorting", SORTED, "['-1.5', '3', '3']", ""),
        ("number_sorting", SORTED, "[3, -1.5, 3]", "wrong order after number 1"),
        ("number_sorting", SORTED, "[-1.5, 3, 4]", "missing 3; not given 4"),
        ("number_sorting", SORTED, "-1.5, 3, 3", "unreadable"),
        ("countdown", TARGET, "2*(3+4)", ""),
        ("countdown", TARGET, "2 * 3 + 4 + 4", "has no 4 to use"),
        ("countdown", TARGET, "4 * 3", "it comes to 12; does not use 2"),
        ("countdown", TARGET, "2*(3+4) = 14", "unreadable"),
        ("countdown", TARGET, "2**3", "unreadable"),
        ("countdown", TARGET, "2/(4-4)", "unreadable"),
        ("maze", {}, "3", ""),
        ("maze", {}, " ", "unreadable"),
    ],
)
def test_checks_name_what_is_wrong(name, metadata, answer, said):
    assert checks.check(name, metadata, answer) == said


@pytest.mark.parametrize(
    ("name", "metadata"),
    [("sudoku", GRID), ("spell_backward", {"word": "drop"}), ("number_sorting", SORTED), ("countdown", TARGET)],
)
def test_no_answer_makes_a_check_raise(name, metadata):
    rng = random.Random(0)
    letters = "0123456789 \n[](){}'\"+-*/.,eainfNd_²½é\x00"
    for _ in range(3000):
        answer = "".join(rng.choices(letters, k=rng.randrange(40)))
        assert isinstance(checks.check(name, metadata, answer), str)
    for answer in (
        "[" * 900,
        "(" * 900,
        "-" * 900 + "1",
        "[1e999]",
        "[NaN]",
        "9" * 900,
        "9" * 400 + "+1",
        "[" + "9" * 900 + "]",
        "1+" * 400 + "1",
    ):
        assert isinstance(checks.check(name, metadata, answer), str)


# The worker


def test_what_json_does_not_have_survives_the_border():
    from fractions import Fraction

    value = {"a": (1, [2.5, None]), 3: {"x", "y"}, "~": Fraction(1, 3), "deep": {"~": {(1, 2): True}}}
    assert worker.unpack(json.loads(json.dumps(worker.pack(value)))) == value
    with pytest.raises(TypeError, match="an entry holds a object"):
        worker.pack({"a": [object()]})


@pytest.mark.parametrize("text", ["2*(3 + x)**2", " -sqrt(x)/2 + C", "exp(-x)*sin(2*x)", "6*4*1*1"])
def test_formulas_are_let_through(text):
    worker.require_formula(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "x.__class__",
        "[x for x in (1,)]",
        "lambda: 1",
        "'x'",
        "open(1)",
        "exp(x)(1)",
        "sqrt(x=1)",
        "eval",
        "f'{x}'",
        "x := 1",
        "x[0]",
    ],
)
def test_all_else_is_not(text):
    if text == "eval":  # a name alone is a symbol, and nothing is called
        return worker.require_formula(text)
    with pytest.raises(SyntaxError):
        worker.require_formula(text)


EVALUATED = (
    *("binary_matrix", "spiral_matrix", "string_insertion", "n_queens"),
    *("countdown", "simple_integration", "intermediate_integration", "polynomial_multiplication"),
)


@needs_package
@pytest.mark.parametrize("name", EVALUATED)
def test_nothing_runs_that_an_answer_says(score, tmp_path, name):
    file = tmp_path / "made"
    for attack in (f"__import__('pathlib').Path({str(file)!r}).touch()", f"[open({str(file)!r}, 'w'), 'a'][1:]"):
        verdict = score(name, attack)
        assert verdict.graded
        assert verdict.score < 0.1
    assert not file.exists()


# Entries


@needs_package
def test_entries_are_the_same_whoever_makes_them(make, tmp_path):
    config = make("mini_sudoku", "list_functions", num_train=40)  # the second draws from Python's own generator
    for name in config.sets:
        one, other = (
            entries.find(dataclasses.replace(config, data_dir=str(tmp_path / str(n)), num_workers=n), name)
            for n in (1, 2)
        )
        assert one.read_bytes() == other.read_bytes()
        assert one.name == other.name


@needs_package
def test_no_question_comes_twice_and_levels_take_turns(make):
    config = make("gcd", "spell_backward", levels=(0, 2), num_train=60)
    for name in config.sets:
        found = entries.load(config, name)
        assert {split: len(rows) for split, rows in found.items()} == {"train": 30, "validation": 1, "test": 2}
        questions = [row.question for rows in found.values() for row in rows]
        assert len(set(questions)) == len(questions)
        levels = [row.level for row in found["train"]]
        assert 10 < levels.count(0) < 20
        assert {*levels} == {0, 2}


def test_a_question_of_another_split_is_left_out(monkeypatch, make, tmp_path):
    monkeypatch.setattr(entries, "version", lambda: "")
    made = lambda config, request, levels, indices: {
        i: {"entry": {"question": f"{(i + request['seed']) % 7}", "answer": "", "metadata": {}}} for i in indices
    }
    monkeypatch.setattr(entries, "_make_all", made)
    config = make("maze", data_dir=str(tmp_path), num_train=2, num_validation=1, num_test=3)
    found = entries.load(config, "maze")
    assert len({row.question for rows in found.values() for row in rows}) == 6
    with pytest.raises(
        DomainError, match=r"maze makes 3 of 4 tasks of train in 80 attempts \(.* times the same question"
    ):
        entries.load(dataclasses.replace(config, num_train=4), "maze")


@needs_package
def test_a_damaged_file_is_refused(make, tmp_path):
    config = make("gcd", data_dir=str(tmp_path))
    path = entries.find(config, "gcd")
    path.write_text("".join(path.read_text().splitlines(True)[:-1]))
    with pytest.raises(DomainError, match="is damaged; delete it, and it is made again"):
        entries.load(config, "gcd")


@needs_package
def test_a_set_that_takes_too_long_is_named(make, tmp_path):
    config = make("zebra_puzzles", data_dir=str(tmp_path), make_secs=0.02)
    with pytest.raises(
        DomainError, match=r"zebra_puzzles: its tasks 0 to 3 cannot be made \((wall-clock|time) limit\), with domain"
    ):
        entries.load(config, "zebra_puzzles")


def test_without_the_package_its_extra_is_named(monkeypatch, make):
    monkeypatch.setattr(entries, "PACKAGE", "no-such-package")
    with pytest.raises(DomainError, match=r'needs no-such-package: pip install "exit_jax\[gym\]"'):
        domains.make("gym", make("maze"))


# Scores


@needs_package
@pytest.mark.parametrize("name", ["countdown", "mini_sudoku", "caesar_cipher", "jugs", "calendar_arithmetic"])
def test_gold_answers_are_right_and_no_answer_is_wrong(score, name):
    assert score(name, lambda entry: entry.gold).score == 1.0
    assert score(name, "").score == 0.0  # countdown's own scorer pays 0.01
    assert score(name, " \n").score == 0.0


@needs_package
def test_a_scorer_that_raises_earns_nothing(score):
    assert score("prime_factorization", "two times three") == scorer.RAISED


@needs_package
def test_an_answer_that_never_ends_is_ungraded_and_stays_so(score, make, data_dir, monkeypatch):
    changes = {"timeout_secs": 0.5}
    assert score("countdown", "9**9**9**9", **changes) == scorer.UNGRADED
    row = json.loads((data_dir / "ungraded.jsonl").read_text().splitlines()[-1])
    assert row["set"] == "countdown"
    assert row["start"] == "9**9**9**9"
    monkeypatch.setattr(entries.Pool, "run", lambda self, jobs: iter(()))
    assert score("countdown", "9**9**9**9", **changes) == scorer.UNGRADED


def test_what_is_no_score_earns_nothing():
    for reply in ({"score": 1.5}, {"score": float("nan")}, {"score": -0.1}, {"raised": "ValueError"}):
        assert scorer.verdict_of(reply) == scorer.RAISED
    assert (
        scorer.verdict_of({"score": 1.0000000000000002}).score < 1.0
    )  # of spell_backward, letters after a right answer
    assert scorer.verdict_of({"score": 0.25}) == scorer.Verdict(0.25)


# The domain


@needs_package
def test_prompts_splits_and_demonstrations(make):
    config = make("mini_sudoku", "spell_backward", brief=True, max_feedback_tokens=40, demo_noise=0.2, levels=(1,))
    gym, domain = Gym(config), domains.make("gym", config)
    assert domain.splits == ("train", "validation", "test", "mini_sudoku", "spell_backward")
    assert domain.test_splits == ("mini_sudoku", "spell_backward")
    prompts = [gym.prompt(row) for row in gym.rows("test")]
    assert [prompt.split("\n")[0] for prompt in prompts] == ["mini_sudoku", "spell_backward"] * 2
    assert [prompt.count("\n") for prompt in prompts] == [4, 1] * 2
    assert [gym.prompt(row) for row in gym.rows("spell_backward")] == prompts[1::2]
    modes = set()
    for number in range(24):
        pieces, mode, responses = gym.demonstration(number, 2)
        modes.add(mode)
        request, solution, feedback = (gym.decode(piece) for piece in pieces[1:])
        assert request in [gym.prompt(row) for row in gym.rows("train")]
        assert all(text.startswith("<answer>") and text.endswith("</answer>") for text in responses)
        assert (mode == BASE) == (not solution) or not feedback
    assert modes == {BASE, IMPROVE, DIVERGE}


@needs_package
def test_demonstrations_are_gold_answers_and_missing_where_there_are_none(make):
    gym = Gym(make("gcd"))
    for number in range(6):
        pieces, mode, responses = gym.demonstration(number, 2)
        row = next(row for row in gym.rows("train") if row.question.strip() == gym.decode(pieces[1]))
        assert responses == [f"<answer>{row.gold}</answer>"] * 2
        assert mode == BASE
    assert domains.make("gym", make("rush_hour")).demonstrations is None
    assert not any(row.gold for row in entries.load(make("rush_hour"), "rush_hour")["train"])
    with pytest.raises(DomainError, match=r"none of 6 gold answers to warm-start on fits into domain\.max_tokens = 3"):
        Gym(make("gcd", max_tokens=3)).demonstration(0, 1)


def figures(workdir):
    rows = read_jsonl(workdir / "train.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


@pytest.mark.slow
@needs_package
def test_a_run_resumes_to_the_same_bits_even_without_its_entries(tmp_path):
    results = run.train(tiny(tmp_path / "whole"), tmp_path / "one")
    run.train(tiny(tmp_path / "data", run__num_iterations=2), tmp_path / "other")
    for path in (tmp_path / "data").glob("*.jsonl"):
        path.unlink()
    domains.make.cache_clear()  # as in another process
    assert run.train(tiny(tmp_path / "data"), tmp_path / "other") == results
    assert len(figures(tmp_path / "one")) == 4
    assert figures(tmp_path / "one") == figures(tmp_path / "other")

    path = next((tmp_path / "data").glob("spell_backward-*.jsonl"))
    path.write_text(path.read_text().replace('"word_len"', '"word_size"'))
    domains.make.cache_clear()
    with pytest.raises(ConfigError, match="changed since: the tasks of spell_backward"):
        run.train(tiny(tmp_path / "data", run__num_iterations=6), tmp_path / "other")


# Starts


@needs_package
def test_gold_answers_can_be_shown(make):
    domain = domains.make("gym", make("chain_sum", answers="tags", max_tokens=32, max_solution_tokens=96))
    table = domain.gold("train")
    for row, about in enumerate(domain.about_tasks("train")):
        gold = about["gold"]
        assert domain.decode(table.answer[row, : table.answer_length[row]]) == gold
        assert domain.decode(table.tokens[row, : table.length[row]]) == f"<answer>{gold}</answer>"
    assert {*domain.variants} == {"hint", "prefix", "answer"}
    assert not domains.make("gym", make("rush_hour")).variants  # a set without gold answers
