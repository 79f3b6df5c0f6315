"""Scaffolds: a row of one's own from a file, independent responses against counting by hand, and files of older versions."""

import dataclasses
import itertools
import json
import pathlib

import jax
import numpy as np
import pytest
import tiny_sudoku
from small import tiny_math

from exit_jax import domains
from exit_jax.config.parse import validate
from exit_jax.config.schema import EvalConfig
from exit_jax.errors import ConfigError, UserError
from exit_jax.evaluation.chains import run_chains
from exit_jax.evaluation.evaluate import describe, evaluate, summarise
from exit_jax.evaluation.figures import best_at, mean_of, pass_at
from exit_jax.evaluation.outcome import Chains, Outcome, Split
from exit_jax.evaluation.scaffolds import BEST_OF_N, CHAIN, GREEDY, RESTARTS, SCAFFOLDS, chosen
from exit_jax.report import plots, runs, tables
from exit_jax.step.program import make_program
from exit_jax.study import over_seeds
from exit_jax.types import MODES
from exit_jax.workdir.evaluation import chain_of, read
from exit_jax.workdir.identity import to_dict

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def own(own_folder):
    """Return the name of a row in a file outside the package, which is the example of docs/evaluation.md."""
    example = (ROOT / "docs/evaluation.md").read_text().partition("```python\n")[2].partition("```")[0]
    example += '\n\nimport dataclasses\n\nSECOND = dataclasses.replace(RETRY, name="second")\n'
    (own_folder / "retry.py").write_text(example)
    return f"{own_folder}/retry.py:RETRY"


def smoke(**changes):
    content = tiny_sudoku.get_config()
    settings = {"splits": ("validation",), "steps": (0, 1, 2), "restart_every": 0, "num_chains_saved": 4} | changes
    content.update_from_flattened_dict(
        {"run.mesh.data": 1} | {f"eval.{name}": value for name, value in settings.items()}
    )
    return validate(content, jax.device_count())


def assert_reported(workdir, split):
    """Hold a row of one's own and independent responses to what every scaffold gets: figures, chains, rows and lines."""
    found = read(workdir / "evaluation.json")["splits"][split]["scaffolds"]
    assert list(found) == ["chain", "best_of_n", "retry_on_failure"]
    assert found["retry_on_failure"]["about"] == "begins anew while the response is wrong"
    assert [found[name]["looks_at_grader"] for name in found] == [False, False, True]
    saved = [json.loads(line) for line in (workdir / "chains.jsonl").read_text().splitlines()]
    retried = [chain for chain in saved if chain["split"] == f"{split}-retry_on_failure"]
    assert retried
    for chain in retried:
        wrong = [quality < 1.0 for quality in chain["quality"]]
        assert chain["modes"] == [MODES[0], *(MODES[0] if before else MODES[1] for before in wrong[:-1])]
        assert chain["from"] == [-1, *(-1 if before else k for k, before in enumerate(wrong[:-1]))]
    groups = runs.group([runs.load(workdir)])
    text = tables.markdown(groups, {}, ())
    cells = " | ".join(f"{100 * value:.1f}" for value in found["retry_on_failure"]["accuracy"])
    assert f"| retry on failure, accuracy | {cells} |" in text
    cells = " | ".join(f"{100 * value:.1f}" for value in found["best_of_n"]["pass_at_k"])
    assert f"| best of n, pass at k | {cells} |" in text
    figure, caption = plots.accuracy_by_k(groups)
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].get_lines()}
    np.testing.assert_allclose(
        lines["retry on failure, accuracy"], 100 * np.array(found["retry_on_failure"]["accuracy"])
    )
    assert "*retry on failure*: begins anew while the response is wrong (uses the grader while it searches)" in caption


def test_a_row_from_a_file_runs_on_the_device_and_is_reported(own, tmp_path):
    config = smoke(scaffolds=("best_of_n", own))
    evaluate(config, make_program(config).init_params(0), tmp_path)
    assert_reported(tmp_path, "validation")
    found = read(tmp_path / "evaluation.json")["splits"]["validation"]["scaffolds"]
    assert "majority" not in found["best_of_n"], "sudoku tells no answers"


def test_a_row_from_a_file_runs_on_the_host_beside_the_stored_answers_of_others(own, tmp_path, monkeypatch):
    """Some responses are right, by their tokens: an untrained policy solves nothing."""
    plain = tiny_math(tmp_path, eval__restart_every=0)
    config = dataclasses.replace(plain, eval=dataclasses.replace(plain.eval, scaffolds=("best_of_n", own)))
    domain = domains.make(plain.domain_name, plain.domain)

    def grade(instances, rollouts):
        grades = domain.grade(instances, rollouts)
        quality = ((rollouts.tokens * rollouts.mask).sum(-1) % 3 == 0).astype(np.float32)
        children = dataclasses.replace(grades.children, quality=quality[..., None])
        return dataclasses.replace(grades, quality=quality, children=children)

    monkeypatch.setattr(domains, "make", lambda *_: dataclasses.replace(domain, grade=grade))
    params = make_program(plain).init_params(0)
    before = evaluate(plain, params, tmp_path)
    stored = (tmp_path / "answers/test.jsonl").read_bytes()
    after = evaluate(config, params, tmp_path)
    assert (tmp_path / "answers/test.jsonl").read_bytes() == stored, "further scaffolds change no chain"
    assert chain_of(after["splits"]["test"]) == chain_of(before["splits"]["test"])
    assert_reported(tmp_path, "test")
    assert set(chain_of(after["splits"]["test"])["accuracy"]) - {0.0, 1.0}, "both happen"
    assert {path.name for path in (tmp_path / "answers").iterdir()} == {
        "test.jsonl",
        "test-best_of_n.jsonl",
        "test-retry_on_failure.jsonl",
    }
    first = [json.loads(line) for line in (tmp_path / "answers/test-best_of_n.jsonl").read_text().splitlines()]
    assert {row["mode"] for row in first if "mode" in row} == {"base"}
    assert len(after["splits"]["test"]["scaffolds"]["best_of_n"]["majority"]) == 3
    row = over_seeds({"exit": {0: after}})["test"]["variants"]["exit"]
    assert row["retry_on_failure"]["mean"] == after["splits"]["test"]["scaffolds"]["retry_on_failure"]["accuracy"]
    assert row["best_of_n_quality"]["mean"] == after["splits"]["test"]["scaffolds"]["best_of_n"]["best_quality"]


def test_all_words_of_the_setting_run_at_once(tmp_path):
    known = ("chain", "restarts", "greedy")
    words = [name for name, row in SCAFFOLDS.items() if name not in known and not row.critiques]  # sudoku asks for none
    config = smoke(scaffolds=tuple(words), steps=(0, 1, 7))
    evaluate(config, make_program(config).init_params(0), tmp_path)
    found = read(tmp_path / "evaluation.json")["splits"]["validation"]["scaffolds"]
    assert list(found) == ["chain", *words]
    for name in words:
        row = SCAFFOLDS[name]
        assert found[name]["looks_at_grader"] == row.looks_at_grader
        assert found[name]["label"] == row.label
        assert found[name]["source"] == row.source
        assert len(found[name]["tokens"]) == 3
        if row.looks_at_grader:
            assert (np.diff(found[name]["quality"]) >= 0).all(), "the best so far"
    groups = runs.group([runs.load(tmp_path)])
    assert "| map elites, accuracy |" in tables.markdown(groups, {}, ())
    figure, caption = plots.accuracy_by_k(groups)
    labels = {line.get_label() for line in figure.axes[0].get_lines()}
    for name in words:
        if SCAFFOLDS[name].looks_at_grader:
            assert f"{name.replace('_', ' ')}, accuracy" in labels
            assert f"{SCAFFOLDS[name].about} (uses the grader while it searches; {SCAFFOLDS[name].label})" in caption
    told = EvalConfig.__dataclass_fields__["scaffolds"].metadata["setting"].meaning
    assert [word for word in words if f'"{word}"' not in told] == []


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("best_of_m",), "'best_of_m' is none of best_of_n.* did you mean best_of_n"),
        (("greedy",), "'greedy' is none .* eval.restart_every and eval.greedy ask for"),
        (("best_of_n", "best_of_n"), "2 scaffolds have name = 'best_of_n'; give each its own"),
        (("absent.py:ROW",), "there is no file .*absent.py; a path is relative"),
        (("{own}", "{folder}/retry.py:SECOND"), "2 scaffolds have stream = 17; give each its own"),
        (("{folder}/broken.py:ROW",), r"broken.py, line 1, raises ZeroDivisionError \(division by zero\); mend it"),
        (("{folder}/retry.py:OTHER",), "has no Scaffold named OTHER; its rows: RETRY, SECOND"),
    ],
)
def test_a_scaffold_that_is_not_there_or_twice_is_told(own, tmp_path, names, words):
    (tmp_path / "broken.py").write_text("ROW = 1 / 0\n")
    names = tuple(name.format(own=own, folder=tmp_path) for name in names)
    with pytest.raises(UserError, match=words):
        chosen(smoke(scaffolds=names).eval)


def test_names_and_streams_are_apart():
    assert [row.name for row in chosen(smoke(restart_every=2, greedy=True).eval)] == ["chain", "restarts", "greedy"]
    assert [row.stream for row in SCAFFOLDS.values()] == list(range(len(SCAFFOLDS)))


def test_estimates_from_independent_responses_are_means_over_all_sets():
    """Of 4 responses with 2 right, 1 of the 6 pairs has none: pass@2 = 5/6, where 1 - (1 - 2/4)² = 3/4 would be too low."""
    assert pass_at(np.array([[True], [False], [True], [False]]), 2)[:, 0] == pytest.approx([1 / 2, 5 / 6])
    quality = np.random.default_rng(0).integers(0, 4, (6, 5)) / 3
    for j in range(1, 7):
        sets = [quality[list(some)].max(0) for some in itertools.combinations(range(6), j)]
        assert best_at(quality, 6)[j - 1] == pytest.approx(np.mean(sets, 0))
        assert pass_at(quality >= 1, 6)[j - 1] == pytest.approx(np.mean([one >= 1 for one in sets], 0))


def outcome_of(quality, answers=None, seed=0) -> Outcome:
    """Return an outcome of qualities [K + 1, R]; what else it holds is drawn."""
    rng = np.random.default_rng(seed)
    flags = rng.random((3, *quality.shape)) < 0.4
    notes = {"crashed": rng.random(quality.shape).astype(np.float32)}
    tokens, mode = rng.integers(1, 9, quality.shape), np.ones(quality.shape, int)
    chains = Chains(quality.astype(np.float32), *flags[:2], flags[2], tokens, mode, notes, None)
    return Outcome(chains, lambda c: [], answers)


def test_best_of_n_of_a_hand_made_case():
    """Two tasks with two samples of two responses: of the first, 1 of the 4 is right; of the second, 3."""
    quality = np.array([[1, 1, 0, 0.5], [0, 1, 0.5, 1]])
    answers = [["a", "b", "", "c"], ["d", "b", "e", "b"]]
    split = Split(
        smoke(steps=(0, 1), samples_per_task=2).eval, domains.make("sudoku", smoke().domain), names=("p", "q")
    )
    entry = summarise(split, {CHAIN: outcome_of(quality), BEST_OF_N: outcome_of(quality, answers)})["scaffolds"][
        "best_of_n"
    ]
    assert entry["num_responses"] == 4
    assert entry["pass_at_k"] == pytest.approx([(1 / 4 + 3 / 4) / 2, (1 / 2 + 1) / 2])
    assert entry["pass_at_k_se"] == pytest.approx([0.25, 0.25])  # half the difference of two tasks
    # pairs of 1, 0, 0, 0.5: three have the 1, two the 0.5; of 1, 0.5, 1, 1: each has a 1
    assert entry["by_task"]["p"]["best_quality"] == pytest.approx([1.5 / 4, (3 + 2 * 0.5) / 6])
    assert entry["by_task"]["q"]["best_quality"] == pytest.approx([3.5 / 4, 1.0])
    # votes of the first response: a right, b right, none, c wrong; of two, the first of ties: a, b, e wrong, c wrong
    assert entry["majority"] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("k + 1", "chose node 1 for response 0, .* the nodes 0 to 0"),
        ("-1", "chose node -1"),
        ("archive.score", r"returns float32\[4\]; have it return one node"),
        ("0.0", r"returns float32\[\]"),
    ],
)
@pytest.mark.parametrize("on_host", [False, True])
def test_a_choice_that_is_no_node_is_told(result, words, on_host, own_folder):
    (own_folder / "lost.py").write_text(
        "from exit_jax.evaluation.scaffolds import Scaffold\n"
        f"ROW = Scaffold('lost', 'a', 20, lambda settings, archive, key, k: {result}, lambda *_: {{}}, False)\n"
    )
    config = smoke(scaffolds=(f"{own_folder}/lost.py:ROW",))
    config = dataclasses.replace(config, domain=dataclasses.replace(config.domain, on_host=on_host))
    with pytest.raises(UserError, match=f"'lost'.*{words}"):
        run_chains(config, make_program(config).init_params(0), "validation", chosen(config.eval)[-1])


def drawn_evaluation() -> dict:
    """Return the document of two splits and their mean, of drawn outcomes of all scaffolds that format 1 had."""
    config = smoke(steps=(0, 1, 3), samples_per_task=2, restart_every=1, greedy=True)
    domain = domains.make(config.domain_name, config.domain)
    splits = {}
    for number, (name, num_tasks) in enumerate((("validation", 3), ("test", 4))):
        draws = [np.random.default_rng([number, kind]).integers(0, 5, (4, 2 * num_tasks)) / 4 for kind in range(3)]
        answers = np.where(draws[1] >= 1, "right", (4 * draws[1]).astype(int).astype(str)).tolist()
        about = Split(
            config.eval, domain, {"clues": np.arange(num_tasks) // 2}, [f"task{i}" for i in range(num_tasks)], 1
        )
        chain, restarts, greedy = outcome_of(draws[0]), outcome_of(draws[1], answers, 1), outcome_of(draws[2], seed=2)
        splits[name] = summarise(about, {CHAIN: chain, RESTARTS: restarts, GREEDY: greedy})
    splits["mean"] = mean_of([splits["validation"], splits["test"]])
    return {"format": 2, "settings": to_dict(config)["eval"], "splits": splits}


def assert_holds(new, old, path=()):
    """Hold each number of an old file to the same place of a new one."""
    if isinstance(old, dict):
        for key, value in old.items():
            assert key in new, f"{'.'.join((*path, key))} is lost"
            assert_holds(new[key], value, (*path, key))
    else:
        as_numbers = lambda values: np.array(values, float)  # null is NaN
        np.testing.assert_allclose(as_numbers(new), as_numbers(old), rtol=1e-5, err_msg=".".join(path))


def test_an_evaluation_in_format_1_reads_as_todays_of_the_same_outcomes():
    """The file was written by the last version before format 2, of the outcomes that are drawn here."""
    old, new = read(ROOT / "tests/evaluation_format_1.json"), drawn_evaluation()
    assert list(old["splits"]) == list(new["splits"])
    for split, figures in old["splits"].items():
        assert list(figures["scaffolds"]) == ["chain", "restarts", "greedy"], split
    assert_holds(new["splits"], old["splits"])
    assert old["settings"] == {
        name: value for name, value in new["settings"].items() if name not in ("scaffolds", "beam_width")
    }
    # and says all that today's does, but for what means over splits and domains without categories did not have
    for split in ("validation", "test"):
        for name, entry in new["splits"][split]["scaffolds"].items():
            more = set(describe(SCAFFOLDS[name])) | ({"by_category"} if name == "chain" else set())
            assert set(entry) - set(old["splits"][split]["scaffolds"][name]) == more


@pytest.mark.parametrize("version", [3, "2", None])
def test_an_evaluation_of_a_later_version_is_refused(tmp_path, version):
    (tmp_path / "evaluation.json").write_text(json.dumps({"format": version, "splits": {}}))
    with pytest.raises(ConfigError, match=rf"of format {version!r}.*--mode evaluate"):
        read(tmp_path / "evaluation.json")
