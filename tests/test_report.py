"""Reports of tiny synthetic runs: the numbers in the tables, the averages behind the lines, the ink in the pictures."""

import json
import math
import sys
import types

import numpy as np
import pytest
from lifelike import COMPETITIONS, SPLITS, instances, write_mle_run, write_run
from lifelike import KS as STEPS
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy.spatial.distance import pdist

from exit_jax import report
from exit_jax.errors import ConfigError
from exit_jax.report import instances as varied
from exit_jax.report import lineage, plots, scores, training
from exit_jax.report import runs as finished
from exit_jax.workdir.evaluation import chain_of

KS = [0, 1, 4]
SOLVED = [
    "a . | . b\n. . | . .",
    "a 1 | . b\n. . | . .",
    "a 1 | . b\n. . | . .",
    "a 1 | 2 b\n3 4 | 1 2",
    "a 1 | 2 b\n3 4 | 1 2",
]


def evaluation(shift=0.0):
    """Return a split's results in format 1, which is read, too: accuracy 10, 30, 50 % plus a shift in points."""
    rises = [0.1 + shift, 0.3 + shift, 0.5 + shift]
    return {
        "k": KS,
        "accuracy": rises,
        "quality": [0.4, 0.5, 0.625],
        "delta": [0.0, 0.2, 0.4],
        "net_corrections": [0.0, 8.0, 16.0],
        "corrected": [0.0, 9.0, 19.0],
        "broken": [0.0, 1.0, 3.0],
        "best_so_far": [value + 0.02 for value in rises],
        "stopped": [value - 0.05 for value in rises],
        "unchanged_right": [None, None, 0.875],
        "unchanged_wrong": [None, 0.25, 0.125],
        "restarts": {"every": 2, "best_so_far": [0.1, 0.25, 0.45], "stopped": [0.1, 0.2, 0.3]},
        "by_difficulty": {
            "clues": {
                "4": {"accuracy": [0.0, 0.1, 0.25 + shift], "num_tasks": 30},
                "7": {"accuracy": [0.2, 0.5, 0.75 + shift], "num_tasks": 10},
            }
        },
        "num_tasks": 40,
        "samples_per_task": 2,
    }


def row(step, variant):
    """Return a row of train.jsonl, with nulls where GRPO has nothing to average."""
    later = None if variant == "grpo" else 0.5 + 0.001 * step
    return {
        "step": step,
        "reward": 0.2 + 0.01 * step,
        "quality/base": 0.2,
        "quality/improve": later,
        "quality/diverge": None,
        "entropy": 1.0 / step,
        "clip_fraction": 0.0,
        "start_depth": 1.0 if variant == "grpo" else 1.0 + 0.1 * step,
        "sampled_from_iteration": None if variant == "grpo" else 0.7 * step,
        "distinct_instances": 10 * step if variant == "grpo" else 25 * step,
        "buffer/fill": min(1.0, 0.1 * step),
        "buffer/score_max": 0.1,
        "buffer/score_median": 0.05 + 0.001 * step,
        "buffer/score_min": 0.01,
    }


@pytest.fixture
def make_run(tmp_path):
    """Return a function that writes a workdir as a finished run leaves it."""

    def make(variant="exit", seed=0, shift=0.0, num_rows=30, splits=("test",), **config):
        path = tmp_path / f"{variant}-{seed}"
        path.mkdir()
        config = {"name": "toy", "variant": variant, "seed": seed, "optimizer": {"rate": 1.0}} | config
        versions = {"python": "3.11", "jax": "0.10.2", "exit_jax_revision": ""}
        (path / "config.json").write_text(json.dumps({"config": config, "versions": versions}))
        lines = [json.dumps(row(step, variant)) for step in range(1, num_rows + 1)]
        (path / "train.jsonl").write_text("\n".join(lines))
        (path / "evaluation.json").write_text(json.dumps({split: evaluation(shift) for split in splits}))
        chain = {"split": "test", "task": 3, "quality": [0.2, 0.4, 0.4, 1.0, 1.0], "responses": SOLVED}
        (path / "chains.jsonl").write_text(json.dumps(chain))
        (path / "buffer_scores.json").write_text(json.dumps({"score": [0.01, 0.02, 0.02, 0.1], "depth": [0, 1, 1, 2]}))
        np.savez(path / "instances.npz", **instances(np.random.default_rng(seed), 0.5, num_rows))
        return path

    return make


def rows_of(text):
    """Return the tables' rows, first cell -> the others; of equal first cells the first."""
    table = {}
    for line in text.splitlines():
        if line.startswith("| "):
            first, *others = (cell.strip() for cell in line.strip("|").split("|"))
            table.setdefault(first, others)
    return table


def assert_shows_something(path):
    pixels = imread(path)[..., :3]
    assert pixels.shape[0] > 200
    assert pixels.shape[1] > 400
    assert pixels.std() > 0.02  # a white page has 0
    assert (pixels.min(-1) < 0.5).mean() > 0.002  # ink


def test_one_run_gives_all_tables_and_plots(make_run):
    path = make_run()
    written = report.report(path, [path])
    assert written == path / "report" / "report.md"
    text = written.read_text()
    for name in report.PLOTS:
        assert_shows_something(path / "report" / f"{name}.png")
        assert f"({name}.png)" in text
    rows = rows_of(text)
    assert rows["exit"][:2] == ["0", "30"]
    assert rows["accuracy"] == ["10.0", "30.0", "50.0"]
    assert rows["Δ"] == rows["net corrections"] == ["0.0", "20.0", "40.0"]  # 16 of 40 tasks
    assert rows["net corrections, sum"] == ["0.0", "16.0", "32.0"]  # 2 samples each, of a file that does not say it
    assert rows["right → wrong"] == ["0.0", "2.5", "7.5"]
    assert rows["quality"] == ["40.0", "50.0", "62.5"]
    assert rows["best so far"] == ["12.0", "32.0", "52.0"]
    assert rows["restarts, best so far"] == ["10.0", "25.0", "45.0"]
    assert rows["restarts, stopped"] == ["10.0", "20.0", "30.0"]
    assert rows["right left unchanged"] == ["–", "–", "87.5"]
    assert rows["accuracy, k = 4, by clues"] == ["4 (30 tasks)", "7 (10 tasks)"]
    assert "| exit | 25.0 | 75.0 |" in text
    assert "Versions: python 3.11, jax 0.10.2." in text
    assert "clipped tokens (%) = 0" in text
    assert "missing" not in text


def test_several_runs_are_averaged_by_variant(make_run, tmp_path):
    shifts = [0.0, 0.02, 0.07]
    runs = [make_run("exit", seed, shift) for seed, shift in enumerate(shifts)] + [make_run("grpo", 0)]
    text = report.report(tmp_path / "all", runs).read_text()
    for name in report.PLOTS:
        assert_shows_something(tmp_path / "all" / "report" / f"{name}.png")
    accuracy = 100 * (np.array(shifts)[:, None] + [0.1, 0.3, 0.5])
    cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(accuracy.mean(0), accuracy.std(0, ddof=1))]
    assert cells[0] == "13.0 ± 3.6"
    tables = text[text.index("## test") :]
    rows = rows_of(tables)
    assert list(rows)[2:4] == ["grpo", "exit"]  # the paper's order, not that of the arguments
    assert rows["exit"] == [*cells, "40.0 ± 0.0", "32.0 ± 0.0", "55.0 ± 3.6", "48.0 ± 3.6", "45.0 ± 0.0", "30.0 ± 0.0"]
    assert rows["grpo"][:3] == ["10.0", "30.0", "50.0"]  # one run has no deviation
    assert "| exit | 28.0 ± 3.6 | 78.0 ± 3.6 |" in tables


def test_groups_keep_experiments_apart(make_run):
    runs = [make_run("exit", 0), make_run("exit", 1, name="other")]
    assert list(finished.group([finished.load(path) for path in runs])) == ["exit, toy", "exit, other"]


def test_runs_that_differ_in_more_than_the_seed_are_named(make_run, tmp_path):
    runs = [make_run("exit", 0), make_run("exit", 1, optimizer={"rate": 2.0})]
    assert "exit: its runs differ in optimizer of config.json" in report.report(tmp_path, runs).read_text()


def test_mean_std_agrees_with_numpy_and_leaves_nan_out():
    values = np.random.default_rng(0).normal(size=(5, 3))
    mean, std = finished.mean_std(values)
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(std, values.std(0, ddof=1))
    values[0, 0], values[1:, 1], values[:, 2] = np.nan, np.nan, np.nan
    mean, std = finished.mean_std(values)
    np.testing.assert_allclose([mean[0], std[0]], [values[1:, 0].mean(), values[1:, 0].std(ddof=1)])
    assert mean[1] == values[0, 1]
    assert np.isnan([std[1], mean[2], std[2]]).all()


def test_running_mean_by_hand():
    values = np.array([1.0, np.nan, 5.0, 7.0, 0.0])
    np.testing.assert_allclose(finished.running_mean(values, 3), [1.0, 3.0, 6.0, 4.0, 3.5])
    np.testing.assert_allclose(finished.running_mean(values[:2], 5), [1.0, 1.0])  # a window longer than the run
    assert np.isnan(finished.running_mean(np.full(4, np.nan), 3)).all()


def test_over_training_takes_common_iterations_of_runs_that_have_the_metric(make_run):
    runs = [finished.load(make_run("exit", seed, num_rows=n)) for seed, n in enumerate((30, 20))]
    steps, values = finished.over_training([*runs, finished.load(make_run("grpo"))], "quality/improve")
    assert steps.tolist() == list(range(1, 21))
    assert values.shape == (2, 20)
    np.testing.assert_allclose(values[0], 0.5 + 0.001 * steps)


def test_distinct_instances_are_relative_to_grpo(make_run):
    groups = finished.group([finished.load(make_run(variant)) for variant in ("exit", "grpo")])
    related = finished.relative_to_grpo(groups)
    _, ratio = finished.over_training(related["exit"], "distinct_relative")
    np.testing.assert_allclose(ratio, 2.5)
    assert finished.over_training(related["exit"], "distinct_instances")[0].size == 0
    assert finished.relative_to_grpo({"exit": groups["exit"]}) == {"exit": groups["exit"]}


def test_corrections_are_per_hundred_tasks(make_run):
    run = finished.load(make_run())
    np.testing.assert_allclose(finished.by_k([run], "test", KS, "corrected"), [[0.0, 22.5, 47.5]])
    assert np.isnan(finished.by_k([run], "test", [0], "unchanged_right")).all()


@pytest.mark.parametrize(
    ("name", "content", "absent", "note"),
    [
        ("evaluation.json", None, ["accuracy_by_k", "net_corrections"], "--mode evaluate"),
        ("evaluation.json", "{", ["accuracy_by_k", "net_corrections"], "--mode evaluate"),
        ("train.jsonl", None, ["training_curves", "curriculum"], "--mode train"),
        ("train.jsonl", "", ["training_curves", "curriculum"], "--mode train"),
        ("chains.jsonl", None, ["lineage"], "num_chains_saved"),
        ("instances.npz", None, ["distances", "instance_map"], "no instances.npz"),
        ("instances.npz", "PK", ["distances", "instance_map"], "no instances.npz"),
        ("config.json", "", [], "stands for its variant"),
    ],
)
def test_a_missing_empty_or_damaged_file_is_left_out_and_named(make_run, name, content, absent, note):
    path = make_run()
    (path / "report").mkdir()
    for plot in report.PLOTS:
        (path / "report" / f"{plot}.png").write_text("of an earlier report, which must not survive")
    (path / name).unlink() if content is None else (path / name).write_text(content)
    text = report.report(path, [path]).read_text()
    missing = text[text.index("## What is missing") :]
    assert note in missing
    for plot in report.PLOTS:
        assert (path / "report" / f"{plot}.png").exists() == (plot not in absent)
        assert (f"`{plot}.png` is not drawn" in missing) == (plot in absent)


def test_the_policy_before_training_needs_no_metrics(make_run):
    path = make_run("base", num_rows=0, run={"num_iterations": 0})
    assert "train.jsonl" not in report.report(path, [path]).read_text()


def test_nothing_at_all_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"absent.*--mode train"):
        report.report(tmp_path, [tmp_path / "absent"])
    with pytest.raises(ConfigError, match=str(tmp_path)):
        report.report(tmp_path, [])
    assert not (tmp_path / "report").exists()


def test_lineage_prefers_a_solved_chain_of_the_test_split_with_many_changes(make_run):
    path = make_run()
    solved = {"quality": [0.5, 0.5, 1.0], "responses": ["x", "y", "z"]}
    chains = [
        {"split": "test", "task": 0, "quality": [0.1, 0.9, 0.9], "responses": ["p", "q", "r"]},
        {"split": "validation", "task": 1, **solved},
        {"split": "test", "task": 2, "quality": [0.5, 1.0, 1.0], "responses": ["x", "z", "z"]},
        {"split": "test", "task": 3, **solved},
    ]

    def title():
        (path / "chains.jsonl").write_text("\n".join(json.dumps(chain) for chain in chains))
        plot = lineage.lineage(finished.group([finished.load(path)]))
        assert plot is not None
        return plot[0].axes[0].texts[0].get_text()

    assert title() == "exit, seed 0, test task 3: solved"
    del chains[1:]
    assert title() == "exit, seed 0, test task 0: not solved, but the best chain"


def test_equal_responses_collapse_and_changed_characters_are_marked():
    boxes = lineage.collapse({"quality": [0.2, 0.4, 0.4, 1.0, 1.0], "responses": SOLVED})
    assert [name for name, *_ in boxes] == [
        "k=0\nquality 0.20",
        "k=1–2 (×2)\nquality 0.40",
        "k=3–4 (×2)\nquality 1.00",
    ]
    assert boxes[0][2] == [("a . | . b", " " * 9), (". . | . .", " " * 9)]
    assert boxes[1][2][0] == ("a   | . b", "  1      ")


def test_free_text_is_compared_by_words_wrapped_and_cropped_around_the_change():
    before, after = "so x is 12 here", "so now x is 13 here"
    marked = "".join(c if new else " " for c, new in zip(after, lineage.changes(before, after)))
    assert marked.split() == ["now", "13"]
    text = "\n".join(f"line {i}" for i in range(60))
    lines = lineage.lines_of(text, lineage.changes(text.replace("line 30", "$30"), text))
    assert len(lines) == lineage.MAX_LINES + 2
    assert lines[0] == lines[-1] == ("…", "")
    assert "line" in "".join(new for _, new in lines)
    long = lineage.lines_of("w" * 70, [False] * 70)
    assert [len(kept) for kept, _ in long] == [30, 30, 10]


def test_text_stays_inside_its_box():
    lines = [("m" * lineage.WRAP, " " * lineage.WRAP)] * 3
    fig = lineage.draw_boxes("t", [("k=0", 0.5, lines), ("k=1", 1.0, lines)])
    assert isinstance(fig, Figure)
    fig.set_dpi(plots.STYLE["savefig.dpi"])
    fig.draw_without_rendering()
    ax = fig.axes[0]
    boxes = [patch.get_window_extent() for patch in ax.patches if patch.get_width() > 1]
    for text in ax.texts:
        if text.get_text().startswith("m"):
            extent = text.get_window_extent()
            assert any(box.x0 < extent.x0 and extent.x1 < box.x1 and box.y0 < extent.y0 for box in boxes)
    assert math.isclose(boxes[0].width, boxes[1].width)


@pytest.mark.slow
def test_a_run_of_many_splits_shows_their_mean_and_no_sign_that_its_domain_lacks(tmp_path):
    path = write_run(tmp_path / "exit-0")
    text = report.report(path, [path]).read_text()
    for name in report.PLOTS:
        assert_shows_something(path / "report" / f"{name}.png")
    assert "missing" not in text
    assert "stopped" not in text
    figures = json.loads((path / "evaluation.json").read_text())["splits"]
    header, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text[text.index("## All splits") : text.index("## mean")].splitlines()
        if line.startswith("| ") and "--:" not in line
    ]
    assert header[1:] == ["mean", *SPLITS]
    for row, (metric, k) in zip(rows, [("accuracy", 0), ("accuracy", -1), ("delta", -1)]):
        assert row[1:] == [f"{100 * figures[split]['scaffolds']['chain'][metric][k]:.1f}" for split in header[1:]]
    assert rows[2][1:] == rows[3][1:]  # Δ and net corrections, of the mean too
    tables = rows_of(text[text.index("## aime_2024") :])
    majority = figures["aime_2024"]["scaffolds"]["restarts"]["majority"]
    assert tables["restarts, majority"] == [f"{100 * value:.1f}" for value in majority]
    assert "one standard error, over problems." in text
    assert text.count("*majority*") == len(SPLITS) + 1  # the mean has none; the plot's caption has it


def test_variants_and_seeds_share_one_table_of_all_splits(tmp_path):
    splits = ("math500", "aime_2024")
    runs = [
        write_run(tmp_path / f"{variant}-{seed}", variant, seed, num_rows=20, splits=splits)
        for variant in ("grpo", "exit")
        for seed in range(2)
    ]
    text = report.report(tmp_path / "all", runs).read_text()
    for name in report.PLOTS:
        assert_shows_something(tmp_path / "all" / "report" / f"{name}.png")
    overview = text[text.index("## All splits") : text.index("## mean")]
    values = np.array(
        [
            [
                100 * chain_of(json.loads((path / "evaluation.json").read_text())["splits"][split])["delta"][-1]
                for split in ("mean", *splits)
            ]
            for path in runs[2:]
        ]
    )
    cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(values.mean(0), values.std(0, ddof=1))]
    assert f"| exit | {' | '.join(cells)} |" in overview
    assert "| Δ, k = 16 | mean | math500 | aime_2024 |" in overview
    assert "Bands: one standard error, over seeds." in text
    assert "over problems" not in text


def test_standard_error_is_over_seeds_or_else_over_problems(make_run, tmp_path):
    runs = [finished.load(make_run("exit", seed, shift)) for seed, shift in enumerate([0.0, 0.02, 0.07])]
    np.testing.assert_allclose(
        finished.standard_error(runs, "test", KS, "accuracy"), np.std([0, 2, 7], ddof=1) / 3**0.5
    )
    assert np.isnan(finished.standard_error(runs[:1], "test", KS, "accuracy")).all()  # an old evaluation
    chain_of(runs[0].evaluation["test"])["accuracy"][0] = None
    np.testing.assert_allclose(
        finished.standard_error(runs, "test", KS, "accuracy"),
        [np.std([2, 7], ddof=1) / 2**0.5, *[np.std([0, 2, 7], ddof=1) / 3**0.5] * 2],
    )
    one = finished.load(write_run(tmp_path / "one", splits=("math500",)))
    known = 100 * np.array(chain_of(one.evaluation["math500"])["accuracy_se"])
    np.testing.assert_allclose(finished.standard_error([one], "math500", STEPS, "accuracy"), known)


def test_all_bands_of_one_variants_runs_are_standard_errors(make_run):
    """Shifts of 0 and 8 points have the mean 4 and the standard error 4, so each band begins at the lower run."""
    runs = [finished.load(make_run("exit", seed, shift)) for seed, shift in enumerate([0.0, 0.08])]
    figure, text = plots.accuracy_by_k({"exit": runs})
    assert "one standard error" in text
    bands = figure.axes[0].collections
    lowest = [100 * min(chain_of(runs[0].evaluation["test"])[name]) for name in ("accuracy", "best_so_far", "stopped")]
    np.testing.assert_allclose([band.get_paths()[0].vertices[:, 1].min() for band in bands[:3]], lowest)


def test_what_a_domain_counts_of_its_tasks_gets_a_panel(tmp_path):
    groups = finished.group([finished.load(write_run(tmp_path / v, v, splits=("minerva",))) for v in ("grpo", "exit")])
    titles = lambda plot: [ax.get_title(loc="left") for ax in plot[0].axes]
    assert "task: gold steps" in titles(training.curriculum(groups))
    assert "grade: truncated" in titles(training.training_curves(groups))


def test_distances_agree_with_scipy_and_a_case_by_hand():
    rows = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    np.testing.assert_allclose(
        varied.mean_distances(rows), [pdist(rows, "cosine").mean(), pdist(rows).mean()], rtol=1e-6
    )
    # pairs: right angle, opposite, right angle; sides √2, 2, √2
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    np.testing.assert_allclose(varied.mean_distances(rows), [4 / 3, (2 + 2 * 2**0.5) / 3])
    np.testing.assert_allclose(varied.mean_distances(np.ones((3, 4))), [0.0, 0.0], atol=1e-7)
    assert np.isnan(varied.mean_distances(rows[:1])).all()


def test_instances_are_at_most_so_many_in_order_and_all_have_an_embedding(tmp_path):
    iteration = np.arange(5000, dtype=np.int32)
    embedding = np.stack([iteration + 1, np.ones(5000)], 1).astype(np.float32)
    embedding[::2], embedding[1] = np.nan, 0.0
    np.savez(tmp_path / "instances.npz", iteration=iteration, embedding=embedding)
    held = finished.load_instances(tmp_path / "instances.npz")
    assert held["iteration"].size == finished.MAX_INSTANCES
    assert (np.diff(held["iteration"]) > 0).all()
    assert (held["iteration"] % 2 == 1).all()
    assert held["iteration"][0] > 1
    np.testing.assert_array_equal(held["embedding"][:, 0], held["iteration"] + 1)


def test_the_map_is_a_plane_of_pca_or_umap(monkeypatch):
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(50, 2)) @ np.linalg.qr(rng.normal(size=(7, 2)))[0].T
    monkeypatch.setitem(sys.modules, "umap", None)  # not installed
    points, method = varied.project(flat)
    np.testing.assert_allclose(pdist(points), pdist(flat), atol=1e-9)
    assert method.startswith("PCA (100 % of the variance")
    fake = types.SimpleNamespace(UMAP=lambda **_: types.SimpleNamespace(fit_transform=lambda rows: rows[:, :2]))
    monkeypatch.setitem(sys.modules, "umap", fake)
    points, method = varied.project(flat)
    np.testing.assert_array_equal(points, flat[:, :2])
    assert method.startswith("UMAP")


def test_the_map_leaves_out_what_another_encoder_made(make_run, tmp_path):
    runs = [make_run(variant) for variant in ("grpo", "exit")]
    np.savez(runs[1] / "instances.npz", **instances(np.random.default_rng(0), 0.5, 30, width=9))
    plot = varied.instance_map(finished.group([finished.load(path) for path in runs]))
    assert [ax.get_title() for ax in plot[0].axes[:-1]] == ["grpo"]  # the last is the colour bar
    assert "exit" in plot[1]


def test_a_short_run_has_whole_iterations_and_no_ticks_of_rounding_errors(make_run):
    path = make_run(num_rows=2)
    rng = np.random.default_rng(0)
    held = {"iteration": np.arange(24) % 2 + 1, "embedding": 1 + 1e-4 * rng.normal(size=(24, 8))}
    np.savez(path / "instances.npz", **held)
    groups = finished.group([finished.load(path)])
    figures = [plot(groups)[0] for plot in (varied.distances, varied.instance_map, training.curriculum)]
    for fig in figures:
        fig.draw_without_rendering()
    (cosine, l2), bar, panel = figures[0].axes, figures[1].axes[-1], figures[2].axes[0]
    for axis in (cosine.xaxis, l2.xaxis, bar.yaxis, panel.xaxis):
        assert all(float(at).is_integer() for at in axis.get_ticklocs()), axis
    for ax in (cosine, l2):
        assert not ax.yaxis.get_offset_text().get_text()
        assert ax.get_ylim()[0] < np.nanmin(ax.lines[0].get_ydata()) < ax.get_ylim()[1]
        assert np.ptp(ax.get_ylim()) >= varied.MIN_SPAN


def test_rows_that_are_no_chains_are_passed_over_and_counted(make_run):
    path = make_run()
    good = (path / "chains.jsonl").read_text()
    worse = [json.loads(good) | change for change in ({"quality": []}, {"responses": [1] * 5}, {"quality": [None] * 5})]
    lines = [good, "[]", "{", *map(json.dumps, worse), '{"split": "test"}', "", good[:40]]
    (path / "chains.jsonl").write_bytes("\n".join(lines).encode() + b"\xff")
    run = finished.load(path)
    assert len(list(run.chains)) == 1
    assert run.chains.num_skipped == 7
    assert "7 rows of chains.jsonl that are no chains" in report.report(path, [path]).read_text()


def assert_scored_report_is_whole(folder, text):
    for name in report.SCORE_PLOTS:
        assert_shows_something(folder / f"{name}.png")
        assert f"({name}.png)" in text
    assert "missing" not in text


def test_scores_of_one_run_by_k_and_by_task(tmp_path):
    path = write_mle_run(tmp_path / "exit-0")
    text = report.report(path, [path]).read_text()
    assert_scored_report_is_whole(path / "report", text)
    figures = json.loads((path / "evaluation.json").read_text())["splits"]["test"]["scaffolds"]
    rows = rows_of(text[text.index("## test") :])
    for name, values in (
        ("plain chain, last response", figures["chain"]["quality"]),
        ("greedy search", figures["greedy"]["quality"]),
    ):
        assert rows[name] == [f"{100 * value:.1f}" for value in [*values, values[-1] - values[0]]]
    assert rows["greedy search: crashed"] == ["0.400", "0.300", "0.250", "0.200", "0.200", "0.200"]
    assert rows["`" + f"{path.parent.name}/{path.name}" + "`"] == ["83.0", "76.0", "89.0"]
    assert "the best of *n independent* first responses" in text
    overview = rows_of(text[text.index("## All splits") :])
    assert overview["score, greedy search, k = 16"][1] == f"{100 * figures['greedy']['quality'][-1]:.1f}"
    loaded = finished.group([finished.load(path)])
    panels = [ax.get_title() for ax in scores.score_by_task(loaded)[0].axes]
    assert panels == [f"{split}: {name}" for split, names in COMPETITIONS.items() for name in names]
    by_k, by_task = (draw(loaded)[0] for draw in (scores.score_by_k, scores.score_by_task))
    kinds = ["plain chain, best so far", "greedy search", "best of n independent"]
    assert [line.get_label() for line in by_task.axes[0].get_lines()] == kinds, "all of them pick the best by the score"
    assert [t.get_text() for t in by_k.legends[0].get_texts()] == ["plain chain, last response", *kinds]
    lines = by_task.axes[-1].get_lines()
    np.testing.assert_allclose(
        lines[1].get_ydata(), 100 * np.array(figures["greedy"]["by_task"]["torn_scans"]["quality"])
    )


@pytest.mark.slow
def test_scores_of_variants_share_tables_and_panels(tmp_path):
    runs = [write_mle_run(tmp_path / f"{v}-{s}", v, s, num_rows=10) for v in ("grpo", "exit") for s in range(2)]
    text = report.report(tmp_path / "all", runs).read_text()
    assert_scored_report_is_whole(tmp_path / "all" / "report", text)
    evaluations = [json.loads((path / "evaluation.json").read_text())["splits"]["test"] for path in runs[2:]]
    found = [figures["scaffolds"]["greedy"]["quality"] for figures in evaluations]
    values = 100 * np.array(found)
    values = np.concatenate([values, values[:, -1:] - values[:, :1]], 1)
    cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(values.mean(0), values.std(0, ddof=1))]
    table = text[text.index("## test") :]
    table = table[table.index("| greedy search, k = |") :]
    assert rows_of(table)["exit"] == cells
    groups = finished.group([finished.load(path) for path in runs])
    fig = scores.score_by_k(groups)[0]
    assert [ax.get_title() for ax in fig.axes[::2]] == [
        "train: plain chain, last response",
        "train: plain chain, best so far",
        "train: greedy search",
        "train: best of n independent",
    ]
    np.testing.assert_allclose(fig.axes[5].get_lines()[1].get_ydata(), 100 * np.mean(found, 0))
    assert [len(ax.get_lines()) for ax in fig.axes] == [2] * 8
    best, last = (
        [chain_of(run.evaluation["test"])[name] for run in groups["exit"]] for name in ("best_quality", "quality")
    )
    solid, dashed = fig.axes[1].get_lines()[1], fig.axes[3].get_lines()[1]
    np.testing.assert_allclose(solid.get_ydata(), 100 * np.mean(last, 0))
    np.testing.assert_allclose(dashed.get_ydata(), 100 * np.mean(best, 0))
    assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
    assert {line.get_color() for line in fig.axes[1].get_lines()} == set(plots.COLOURS[:2])


def test_answers_that_are_right_or_wrong_have_no_figures_of_scores(tmp_path):
    path = write_run(tmp_path / "exit-0", splits=("aime_2024",), num_rows=5)
    text = report.report(path, [path]).read_text()
    assert "missing" not in text
    assert "Normalised score" not in text
    assert not any((path / "report" / f"{name}.png").exists() for name in report.SCORE_PLOTS)


def test_distances_among_solutions_that_training_started_from(tmp_path):
    """Two tasks, two solutions each."""
    path = write_run(tmp_path / "exit-0", splits=("aime_2024",), num_rows=5)
    rows = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float16)
    held = {"iteration": np.arange(7), "embedding": np.ones((7, 4))}
    np.savez(path / "instances.npz", **held, start_task=np.array([0, 1, 0, 1]), start_embedding=rows[[0, 2, 1, 3]])
    text = varied.starting_solutions(finished.group([finished.load(path)]))
    pairs = [rows[:2].astype(float), rows[2:].astype(float)]
    expected = [np.mean([pdist(pair, kind)[0] for pair in pairs]) for kind in ("cosine", "euclidean")]
    assert rows_of(text)["exit"] == [*(f"{value:.3f}" for value in expected), "4"]
    more = np.concatenate([rows[[0, 2, 1, 3]], [[np.inf, 1, 1, 1], [0, 0, 0, 0]]])  # too large for float16, and blank
    np.savez(path / "instances.npz", **held, start_task=np.array([0, 1, 0, 1, 0, 0]), start_embedding=more)
    assert varied.starting_solutions(finished.group([finished.load(path)])) == text
    np.savez(path / "instances.npz", **held)  # of an older version
    assert varied.starting_solutions(finished.group([finished.load(path)])) == ""
