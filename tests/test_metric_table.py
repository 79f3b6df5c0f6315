"""The table of metrics, and the report's panels, against what a real run writes."""

import functools
import importlib
import inspect
import json
import pathlib

import pytest
from test_train import smoke

from exit_jax import report, run
from exit_jax.report import tables, training
from exit_jax.workdir import metric_table
from exit_jax.workdir.metrics import read_jsonl

ROOT = pathlib.Path(__file__).parents[1]
# what this run has not: other domains' and another config's
ELSEWHERE = (
    *("grade/<note>", "children_repeated", "turns", "end/<reason>"),
    *("curriculum/<unit>", "start_level", "admitted", "pool/waiting", "pool/updates"),
    *("regroup/replaced", "regroup/kept"),
    *("<rows>/loss", "<rows>/clip_fraction", "<rows>/approx_kl_old"),
    *("importance/weight", "importance/bounded"),
    *("second/made", "second/quality", "second/better", "second/worse"),
    *("clip_cov_fraction", "teacher/informed", "teacher/advantage", "baseline/<mode>"),
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Return the workdir of a run that is graded on the host, with its evaluation."""
    path = tmp_path_factory.mktemp("run")
    changes = {"domain.on_host": True, "run.steps_per_call": 1, "warm_start.num_steps": 5, "eval.splits": ("test",)}
    changes |= {"eval.scaffolds": ("best_of_n",), "run.eval_every": 5, "run.eval_tasks": 3}
    run.train(smoke(changes=changes, num_iterations=10), path)
    return path


@pytest.fixture(scope="module")
def written(workdir):
    """Return the names of a run's metrics by table."""
    (warm,) = workdir.glob("warm_start/*/warm_start.jsonl")
    return {"train": read_jsonl(workdir / "train.jsonl")[-1].keys(), "warm_start": read_jsonl(warm)[-1].keys()}


@pytest.mark.parametrize(("name", "metrics"), [("train", metric_table.TRAIN), ("warm_start", metric_table.WARM_START)])
def test_a_run_writes_what_the_table_has(name, metrics, written):
    found = {key: metric_table.find(metrics, key) for key in written[name]}
    assert not [key for key, metric in found.items() if metric is None], (
        "they are not in exit_jax/workdir/metric_table.py"
    )
    assert {metric.name for metric in metrics} - {metric.name for metric in found.values()} <= {*ELSEWHERE}
    assert len({metric.name for metric in metrics}) == len(metrics)


def test_an_evaluation_has_what_the_table_has(workdir):
    def names(figures):
        """Yield the names of figures; what is below one is the domain's or the config's."""
        for name, value in figures.items():
            if metric_table.find(metric_table.EVALUATION, name) or not isinstance(value, dict):
                yield name
            else:  # a split or a scaffold
                yield from names(value)

    written = set(names(json.loads((workdir / "evaluation.json").read_text())["splits"]))
    found = {name: metric_table.find(metric_table.EVALUATION, name) for name in written}
    assert not [name for name, metric in found.items() if metric is None]
    assert {metric.name for metric in metric_table.EVALUATION} - {metric.name for metric in found.values()} <= {
        "majority"
    }


@pytest.mark.parametrize(
    "metric", [*metric_table.TRAIN, *metric_table.WARM_START, *metric_table.EVALUATION], ids=lambda metric: metric.name
)
def test_makers_make_them(metric):
    """A maker's source has the name in quotes, up to where another name goes on."""
    parts = metric.maker.split(".")
    module = importlib.import_module(".".join(["exit_jax", *parts[:2]]))
    maker = functools.reduce(getattr, parts[2:], module)
    start, bracket, _ = metric.name.partition("<")
    if start:
        assert f'"{start}' + ("" if bracket else '"') in inspect.getsource(maker)


def test_every_panel_and_every_row_of_a_table_is_of_a_metric_that_runs_write(workdir, written):
    panels = training.TRAINING | training.CURRICULUM | training.BUFFER
    drawn = {key for keys, _ in panels.values() for key in keys}
    assert drawn - written["train"] == {"distinct_relative"}, "the report's own ratio"
    scaffolds = json.loads((workdir / "evaluation.json").read_text())["splits"]["test"]["scaffolds"]
    for path in (*tables.BY_K, *tables.SCORES_BY_K, *tables.LAST):
        scaffold, figure = ("chain", *path) if len(path) == 1 else path
        if scaffold != "greedy" and figure != "majority":
            assert isinstance(scaffolds[scaffold][figure], list), path


@pytest.mark.slow
def test_the_report_of_a_real_run_is_whole(workdir):
    text = report.report(workdir, []).read_text()
    assert "missing" not in text
    for name in report.PLOTS:
        assert (workdir / f"report/{name}.png").exists()


def test_names_are_found_by_kind():
    table = (metric_table.Metric("task/<level>", "", "", ""), metric_table.Metric("task/a", "", "", ""))
    assert metric_table.find(table, "task/a") == table[1]
    assert metric_table.find(table, "task/b") == table[0]
    for other in ("task/", "task", "mytask/b"):
        assert metric_table.find(table, other) is None


def test_the_page_is_up_to_date():
    page = (ROOT / "docs/metrics.md").read_text()
    assert page == metric_table.markdown(), "python -m exit_jax.workdir.metric_table > docs/metrics.md"
