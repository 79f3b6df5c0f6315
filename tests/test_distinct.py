"""How many distinct instances a run has trained on: counted by what they hold, over restarts too."""

import contextlib

import numpy as np

from exit_jax.workdir.metrics import MetricsWriter, read_jsonl

MARKS = np.array(
    [[[1, 0], [1, 0], [2, 0]], [[1, 0], [3, 0], [1, 1]], [[2, 0], [3, 0], [1, 1]], [[4, 0], [1, 0], [4, 0]]]
)
COUNTS = [2, 4, 4, 5]  # an instance that comes twice in a batch, or again later, is no new one; both halves count


def write(workdir, step, stop, name="train"):
    """Write the rows after ``step`` up to ``stop``, as a run that is resumed there does."""
    with contextlib.closing(MetricsWriter(workdir, name, step)) as writer:
        return writer.write(
            step + 1, {"reward": np.zeros(stop - step), "instances": MARKS[step:stop].astype(np.uint32)}, {}
        )


def counts(workdir):
    rows = read_jsonl(workdir / "train.jsonl")
    assert all(row.keys() == {"step", "reward", "distinct_instances"} for row in rows)
    return [row["distinct_instances"] for row in rows]


def test_equal_instances_count_once(tmp_path):
    assert write(tmp_path, 0, 4)["distinct_instances"] == 5
    assert counts(tmp_path) == COUNTS


def test_a_resumed_run_counts_on_from_its_checkpoint(tmp_path):
    """Rows after the checkpoint are cut, with what they brought: 3 and 1 of the second step are new to it again."""
    write(tmp_path, 0, 3)
    write(tmp_path, 1, 2)
    write(tmp_path, 2, 4)
    assert counts(tmp_path) == COUNTS


def test_a_run_that_began_without_the_file_has_no_count(tmp_path):
    write(tmp_path, 0, 2)
    (tmp_path / "instances.jsonl").unlink()
    write(tmp_path, 2, 3)
    write(tmp_path, 3, 4)
    assert counts(tmp_path) == [2, 4, None, None]


def test_the_warm_start_has_none(tmp_path):
    with contextlib.closing(MetricsWriter(tmp_path, "warm_start", 0)) as writer:
        assert writer.write(1, {"warm_start/loss": np.ones(2)}, {}) == {"step": 2, "warm_start/loss": 1.0}
    assert not (tmp_path / "instances.jsonl").exists()
