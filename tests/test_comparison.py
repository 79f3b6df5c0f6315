"""The page that compares methods: its statistics against SciPy and brute force, and what it says of rows made by hand."""

import itertools
import json

import numpy as np
import pytest
from scipy import stats

from exit_jax.errors import ConfigError
from exit_jax.report import report, statistics

RNG = np.random.default_rng(7)


def test_paired_differences_are_a_t_test():
    x, y = RNG.normal(0.5, 0.1, 9), RNG.normal(0.45, 0.1, 9)
    expected = stats.ttest_rel(x, y)
    found = statistics.paired(x - y)
    low, high = expected.confidence_interval(0.95)
    np.testing.assert_allclose([found.p, found.low, found.high], [expected.pvalue, low, high], rtol=1e-9)
    assert found.num_seeds == 9


def test_too_few_seeds_have_no_interval_and_equal_ones_a_sure_difference():
    assert np.isnan(statistics.paired(np.array([0.1])).half_width)
    assert np.isnan(statistics.paired(np.array([])).mean)
    equal = statistics.paired(np.zeros(4))
    assert (equal.mean, equal.half_width, equal.p) == (0.0, 0.0, 1.0)
    assert statistics.paired(np.full(4, 0.25)).p == 0.0


def test_holm_rejects_what_the_step_down_rejects():
    """The procedure as Holm (1979) states it: at level a, the smallest p against a / n, the next against a / (n - 1), ..."""
    for _ in range(20):
        p = RNG.uniform(0, 0.2, 6) ** 2
        adjusted = statistics.holm(p)
        for level in (0.001, 0.01, 0.05, 0.2):
            rejected = set()
            for rank, i in enumerate(np.argsort(p)):
                if p[i] > level / (6 - rank):
                    break
                rejected.add(i)
            assert {i for i, value in enumerate(adjusted) if value <= level} == rejected
    np.testing.assert_equal(statistics.holm([np.nan, 0.02]), [np.nan, 0.02])


def test_interquartile_mean_is_scipys_and_its_interval_covers_it():
    scores = [RNG.uniform(size=10), RNG.uniform(size=5)]
    found = statistics.interquartile_mean(scores)
    assert found.value == pytest.approx(stats.trim_mean(np.concatenate(scores), 0.25))
    assert found.low < found.value < found.high


def test_the_bootstrap_draws_seeds_within_tasks():
    """Two tasks that differ much and whose seeds are alike: all variance would come from mixing the tasks."""
    found = statistics.interquartile_mean([np.full(5, 0.1), np.full(5, 0.9)])
    assert found.low == found.value == found.high == pytest.approx(0.5)


def test_bootstrap_interval_is_that_of_all_draws():
    x = RNG.normal(size=3)  # of which none is cut: the plain mean, of 27 draws that can be listed
    found = statistics.interquartile_mean([x])
    exact = sorted(np.mean(draw) for draw in itertools.product(x, repeat=3))
    np.testing.assert_allclose([found.low, found.high], np.quantile(exact, [0.025, 0.975]), atol=0.25 * np.ptp(x))
    assert min(exact) <= found.low <= found.high <= max(exact)


def test_probability_of_improvement_by_counting_pairs():
    x, y = (
        [RNG.integers(0, 4, 6) / 4, RNG.integers(0, 4, 3) / 4],
        [RNG.integers(0, 4, 5) / 4, RNG.integers(0, 4, 3) / 4],
    )
    counted = np.mean([np.mean([(a > b) + 0.5 * (a == b) for a in xs for b in ys]) for xs, ys in zip(x, y)])
    assert statistics.probability_of_improvement(x, y).value == pytest.approx(counted)


def row(variant, seed, accuracy, run=None, **more):
    chain = {"accuracy": [0.0, accuracy], "quality": [0.5, 0.9]}
    splits = {"test": {"k": [0, 16], "num_tasks": 100, "scaffolds": {"chain": chain}}}
    return {"variant": variant, "seed": seed, "run": run or f"{variant}{seed}", "evaluation": {"splits": splits}} | more


def write_rows(path, found):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in found))
    return path


@pytest.fixture
def studied(tmp_path):
    """Six seeds: within grpo a method adds .3 and another, permuted one nothing; within exit it adds .1."""
    noise = np.linspace(-0.01, 0.01, 6)
    found = [row("base", seed, 0.1) for seed in range(6)]
    for seed in range(6):
        sign = (-1) ** seed
        found += [row("grpo", seed, 0.4 + noise[seed], training={"responses": 640})]
        found += [row("grpo-sec", seed, 0.7 + 2 * noise[seed], training={"responses": 640})]
        found += [row("grpo-sec-permuted", seed, 0.4 + noise[seed] + 0.002 * sign, training={"responses": 640})]
        found += [row("exit", seed, 0.8 + noise[seed], training={"responses": 640})]
        found += [row("exit-sec", seed, 0.9 + 2 * noise[seed], training={"responses": 640})]
    return write_rows(tmp_path / "grid.jsonl", found)


def cells(page, start):
    return [
        cell.strip() for cell in next(line for line in page.splitlines() if line.startswith(start)).split("|")[1:-1]
    ]


def test_page_says_what_each_method_adds(studied, tmp_path):
    path = report(tmp_path, [studied])
    page = path.read_text()
    sec = cells(page, "| sec |")
    assert sec[1] == "faithful"
    assert sec[2] == "6"
    assert sec[5].startswith("+0.300 ±")
    assert sec[7] == "better"
    permuted = cells(page, "| sec-permuted |")
    assert permuted[1] == "control"
    assert permuted[7] == "equal"
    assert "640 responses sampled in each training." in page
    assert "Policy before RL: 0.100" in page
    interaction = page.partition("less what it adds to grpo:")[2]
    assert cells(interaction, "| sec |")[2].startswith("-0.200 ±")
    assert {file.name for file in path.parent.iterdir()} == {
        "comparison.md",
        "comparison.png",
        "comparison_profiles.png",
    }


def test_several_studies_are_put_together(studied, tmp_path):
    other = write_rows(tmp_path / "other.jsonl", [json.loads(line) for line in studied.read_text().splitlines()])
    page = report(tmp_path, [studied, other]).read_text()
    assert "## 2 studies together: grpo" in page
    shared = page.partition("## 2 studies together: grpo")[2]
    assert cells(shared, "| sec |")[2].startswith("0.700")
    assert cells(shared, "| sec |")[3].startswith("1.000")


def test_unequal_cost_is_told(tmp_path):
    found = [row(variant, 0, 0.5, training={"responses": n}) for variant, n in (("grpo", 64), ("grpo-sec", 128))]
    assert "Not at equal responses" in report(tmp_path, [write_rows(tmp_path / "a.jsonl", found)]).read_text()


def test_one_seed_is_compared_without_intervals(tmp_path):
    found = [row("grpo", 0, 0.5), row("grpo-sec", 0, 0.6), row("grpo-nft", 1, 0.6)]
    page = report(tmp_path, [write_rows(tmp_path / "a.jsonl", found)]).read_text()
    assert cells(page, "| sec |")[5:8] == ["+0.100", "", "too few seeds"]
    assert cells(page, "| nft |")[5:8] == ["–", "", "too few seeds"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "holds no rows of a study"),
        ([row("grpo", 0, 0.5), row("exit", 0, 0.5)], "nothing to compare"),
        (
            [row("grpo", 0, 0.5), row("grpo-sec", 0, 0.5), row("grpo-sec", 0, 0.6, run="z")],
            "holds two runs of grpo-sec, seed 0",
        ),
    ],
)
def test_faults_say_what_to_do(rows, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        report(tmp_path, [write_rows(tmp_path / "a.jsonl", rows)])


def test_files_and_folders_are_not_mixed(studied, tmp_path):
    with pytest.raises(ConfigError, match="one kind or the other"):
        report(tmp_path, [studied, tmp_path])


def test_damaged_rows_are_left_out(studied, tmp_path, caplog):
    with studied.open("a") as file:
        file.write('{"variant": "exit"\n[1, 2]\n{"variant": "exit"}\n')
    report(tmp_path, [studied])
    assert caplog.text.count("is damaged") == 3
