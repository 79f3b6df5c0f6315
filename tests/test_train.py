"""The host loop: exact resume, kills, signals, damaged checkpoints, devices, compilations."""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_sudoku

from exit_jax import domains, run
from exit_jax.algorithm.iteration import iterate, sample
from exit_jax.config.parse import validate
from exit_jax.config.schema import Config
from exit_jax.errors import ConfigError, GradingError, Interrupted
from exit_jax.parallel import hosts
from exit_jax.parallel import mesh as meshes
from exit_jax.policy import decoder
from exit_jax.step.device import Constants, DeviceSteps
from exit_jax.step.hosted import HostedSteps, StepPrograms
from exit_jax.step.policy import decoder_config, make_reshard
from exit_jax.step.program import compile_key, make_program
from exit_jax.training import train
from exit_jax.training.start import frozen_params, initial_params, untrained, warm_start
from exit_jax.workdir import identity
from exit_jax.workdir.checkpoint import Checkpoints
from exit_jax.workdir.identity import open_workdir
from exit_jax.workdir.metrics import MetricsWriter, Timing, read_jsonl

ROOT = pathlib.Path(__file__).parents[1]


def smoke(arg: str = "", changes=None, **run) -> Config:
    content = tiny_sudoku.get_config(arg)
    content.algorithm.kl_coef = 0.001  # so that there is a reference to restore
    content.update_from_flattened_dict(changes or {})
    content.algorithm.reference_every = 3
    content.run.mesh.data = 1
    content.run.update(run)
    return validate(content, jax.device_count())


def leaves(state) -> list[np.ndarray]:
    raw = jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, state)
    return [np.asarray(x) for x in jax.tree.leaves(raw)]


def assert_same(state, other) -> None:
    for a, b in zip(leaves(state), leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def rows(workdir: pathlib.Path) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_jsonl(workdir / "train.jsonl")]


def train_and_die(config: Config, workdir, monkeypatch, step: int) -> None:
    """Train until the row of ``step``, the first of a program call, is to be written."""
    write = MetricsWriter.write

    def die(self, first, *args):
        if first == step:
            raise RuntimeError("killed")
        return write(self, first, *args)

    with monkeypatch.context() as patched:
        patched.setattr(MetricsWriter, "write", die)
        with pytest.raises(RuntimeError, match="killed"):
            run.train(config, workdir)


def truncate(folder: pathlib.Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a run that was never interrupted: its state and workdir."""
    workdir = tmp_path_factory.mktemp("whole")
    return train.train(smoke(), workdir)[0], workdir


def test_resume_is_bitwise(whole, tmp_path):
    state, workdir = whole
    train.train(smoke(num_iterations=10), tmp_path)[0]
    resumed = train.train(smoke(), tmp_path)[0]
    assert int(resumed.step) == 20
    assert int(resumed.buffer.next_id) > 64, "the buffer was never full: this test would prove too little"
    assert_same(state, resumed)
    assert rows(tmp_path) == rows(workdir)


def test_a_signal_saves_and_stops_after_the_call_in_hand(whole, tmp_path, monkeypatch):
    write = MetricsWriter.write

    def told(self, step, metrics, *more):
        if "reward" in metrics:
            monkeypatch.undo()  # once: the next one would end pytest
            os.kill(os.getpid(), signal.SIGTERM)
        return write(self, step, metrics, *more)

    monkeypatch.setattr(MetricsWriter, "write", told)
    with pytest.raises(Interrupted, match="stopped at train step 5"):
        train.train(smoke(), tmp_path)
    assert_same(whole[0], train.train(smoke(), tmp_path)[0])
    assert rows(tmp_path) == rows(whole[1])


def test_calls_that_overshoot_the_end_are_refused(tmp_path):
    train.train(smoke(num_iterations=10), tmp_path)[0]
    config = smoke(num_iterations=30)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, steps_per_call=15, checkpoint_every=15))
    with pytest.raises(ConfigError, match="divisor of 20"):
        train.train(config, tmp_path)


def test_other_seed_differs(whole, tmp_path):
    other = train.train(smoke("seed=1"), tmp_path)[0]
    assert not np.array_equal(other.buffer.history.tokens, whole[0].buffer.history.tokens)


def test_a_checkpoint_of_another_version_is_left_alone(tmp_path):
    tree = lambda *names: {name: jnp.zeros(3) for name in names}
    with contextlib.closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
        checkpoints.save(1, tree("params", "cursor"))
    with contextlib.closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
        with pytest.raises(
            ConfigError, match=r"another version .*cursor: float32\[3\] there, absent here; starts: absent there"
        ):
            checkpoints.restore_latest(tree("params", "starts"))
        for form in (jnp.zeros(2), jnp.zeros(3, jnp.int32)):
            with pytest.raises(ConfigError, match=r"params: float32\[3\] there, "):
                checkpoints.restore_latest({"params": form, "cursor": jnp.zeros(3)})
        assert checkpoints.restore_latest(tree("params", "cursor")) is not None


def test_a_fault_that_passes_costs_nothing(tmp_path, monkeypatch):
    """While a file server is away, no checkpoint can be read, and none is to be taken for damaged."""
    state = {"params": jnp.zeros(3)}
    with contextlib.closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, state)

    def away(*_):
        raise OSError(errno.EIO, "Input/output error")

    with contextlib.closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(type(checkpoints._checkpointer), "load", away)
            with pytest.raises(ConfigError, match=r"none of the checkpoints 10, 20 .*\[Errno 5\]"):
                checkpoints.restore_latest(state)
        assert checkpoints.steps() == [10, 20]
        assert checkpoints.restore_latest(state) is not None


def test_a_reader_changes_nothing_under_a_run_that_saves(tmp_path):
    state = {"params": jnp.zeros(3)}
    with contextlib.closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, state)
    truncate(tmp_path / "20")
    (tmp_path / "30.orbax-checkpoint-tmp").mkdir()
    before = sorted(tmp_path.iterdir())
    with contextlib.closing(Checkpoints(tmp_path, keep=None)) as reader:
        assert reader.restore_latest(state) is not None
    assert sorted(tmp_path.iterdir()) == before
    with contextlib.closing(Checkpoints(tmp_path, keep=2)) as writer:
        assert writer.restore_latest(state) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20.damaged"]


def test_a_step_that_is_damaged_again_gets_another_name(tmp_path):
    state = {"params": jnp.zeros(3)}
    for _ in range(2):
        with contextlib.closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
            for step in (10, 20):
                checkpoints.save(step, state)
        truncate(tmp_path / "20")
        with contextlib.closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
            checkpoints.restore_latest(state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20.damaged", "20.damaged1"]


def test_runs_take_turns_in_a_folder_that_they_share(tmp_path, caplog):
    """The second of two runs that share a warm start finds it finished."""
    found = []

    def second():
        with contextlib.closing(Checkpoints(tmp_path / "shared", keep=2)) as checkpoints:
            found.extend(checkpoints.steps())

    with contextlib.closing(Checkpoints(tmp_path / "shared", keep=2)) as checkpoints:
        thread = threading.Thread(target=second)
        thread.start()
        while "waiting for another process" not in caplog.text:
            time.sleep(0.01)
        checkpoints.save(10, {"params": jnp.zeros(3)})
    thread.join(timeout=60)
    assert found == [10]


def test_damaged_checkpoint_falls_back(whole, tmp_path, caplog):
    train.train(smoke(), tmp_path)[0]
    truncate(tmp_path / "checkpoints/20")
    again = train.train(smoke(), tmp_path)[0]
    assert "cannot be read" in caplog.text
    assert (tmp_path / "checkpoints/20.damaged").exists()
    assert_same(whole[0], again)
    assert rows(tmp_path) == rows(whole[1])


def test_no_program_is_compiled_twice(whole, tmp_path):
    timing = Timing()
    with timing.phase("again"):
        train.train(smoke("seed=7"), tmp_path)[0]  # the same programs as the fixture's, other data
    compiled = timing.summary()["again"]["num_compilations"]
    assert compiled <= 3, "a second run in one process compiles programs of its own"


@pytest.mark.slow
def test_run_compiles_a_fixed_number_of_programs(tmp_path):
    """The count does not grow with the number of iterations or of batches of evaluation."""
    counts = []
    for name, iterations in (("short", 5), ("long", 20)):
        script = f"""
import sys; sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT)!r}]
import pathlib
from test_train import smoke
from exit_jax import run
run.train(smoke(num_iterations={iterations}, checkpoint_every=5), pathlib.Path({str(tmp_path / name)!r}))
"""
        subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
        timing = json.loads((tmp_path / name / "timing.json").read_text())
        counts.append([phase["num_compilations"] for phase in timing.values()])
    assert counts[0] == counts[1]
    assert sum(counts[0]) <= 40, counts


def one_iteration():
    """Return the config, domain and initial state of an iteration, and its parts on one device."""
    config = smoke()
    domain = domains.make(config.domain_name, config.domain)
    state = make_program(config).init(initial_params(config), 0)
    constants = Constants(domain.tasks("train"), None)
    return config, domain, state, constants


@pytest.mark.parametrize("shapes", [[(2, 2, 2)], pytest.param([(8, 1, 1), (1, 4, 2)], marks=pytest.mark.slow)], ids=str)
def test_one_learn_step_agrees_on_all_meshes(shapes):
    config, domain, state, constants = one_iteration()
    one = DeviceSteps(config, domain, make_program(config).mesh, constants)
    instances, key = jax.jit(one.select)(state)
    rollouts = jax.jit(one.rollout)(state.params, instances, key)
    grades = jax.jit(domain.grade)(instances, rollouts)
    outcomes = []
    for shape in [(1, 1, 1), *shapes]:
        run = dataclasses.replace(config.run, mesh=meshes.MeshConfig(*shape))
        program = make_program(dataclasses.replace(config, run=run))
        steps = DeviceSteps(config, domain, program.mesh, constants)
        arguments = jax.device_put((instances, rollouts, grades), meshes.replicated(program.mesh))
        where = jax.tree.map(lambda leaf: leaf.sharding, program.state)
        outcome, metrics = jax.jit(steps.learn, out_shardings=(where, None))(jax.device_put(state, where), *arguments)
        assert float(metrics["grad_norm"]) > 0
        kernel = outcome.opt_state[1][0].mu["blocks"]["mlp"]["up"]["kernel"]
        assert kernel.addressable_shards[0].data.size * shape[1] * shape[2] == kernel.size, "moments are split, too"
        outcomes.append(outcome)
    for other in outcomes[1:]:
        for a, b in zip(leaves(outcomes[0].params), leaves(other.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
        assert_same(outcomes[0].buffer, other.buffer)


def test_grading_on_the_host_changes_nothing(whole, tmp_path):
    """Four programs and the host between them do what the one program does, but for rounding; a fault costs its rows."""
    per_step = {"steps_per_call": 1, "num_iterations": 3, "checkpoint_every": 3}
    on_host, _ = train.train(smoke(changes={"domain.on_host": True}, **per_step), tmp_path)
    recorded = rows(tmp_path)
    for ours, theirs in zip(recorded, rows(whole[1])):
        assert ours.pop("grading_faults") == 0
        for name in theirs:
            assert (ours[name] is None) == (theirs[name] is None), name
            np.testing.assert_allclose(ours[name] or 0.0, theirs[name] or 0.0, rtol=1e-4, atol=1e-4, err_msg=name)
    assert int(on_host.step) == 3


@pytest.mark.slow
def test_second_attempts_are_the_same_with_grading_on_the_host(tmp_path):
    once = {"steps_per_call": 1, "num_iterations": 2, "checkpoint_every": 2}
    train.train(smoke("variant=exit-srpo", **once), tmp_path / "device")
    train.train(smoke("variant=exit-srpo", {"domain.on_host": True}, **once), tmp_path / "host")
    for ours, theirs in zip(rows(tmp_path / "device"), rows(tmp_path / "host"), strict=True):
        assert theirs["grading_faults"] == 0
        for name in ours:
            np.testing.assert_allclose(theirs[name] or 0.0, ours[name] or 0.0, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_fewer_slots_than_rollouts_change_nothing(whole, tmp_path):
    """What is sampled depends on no slot, so the first iterations are the same but for rounding."""
    train.train(smoke(sampler_slots=3, steps_per_call=1, num_iterations=3, checkpoint_every=3), tmp_path)
    for ours, theirs in zip(rows(tmp_path), rows(whole[1])):
        for name in theirs:
            assert (ours[name] is None) == (theirs[name] is None), name
            np.testing.assert_allclose(ours[name] or 0.0, theirs[name] or 0.0, rtol=1e-4, atol=1e-4, err_msg=name)


def test_buckets_change_nothing_but_widths():
    """Responses of up to 3 tokens of 7 are cut to 3, prompts of 33 of 40 to 34, and are learnt from as without buckets.

    So they are with Dr. GRPO's constant, which is the 7 that a response could have had, not the 3 that are left.
    """
    changes = {"domain.on_host": True, "algorithm.aggregation": "dr_grpo", "algorithm.temperature": 0.7}
    config = smoke(changes=changes, steps_per_call=1)
    program, domain = make_program(config), domains.make(config.domain_name, config.domain)
    constants, state = Constants(domain.tasks("train"), None), program.init(initial_params(config), 0)
    copies = [jax.tree.map(jnp.copy, state) for _ in range(2)]  # learning takes them
    _, rollouts = sample(HostedSteps(config, domain, program.mesh, program.steps, constants), state)
    short = dataclasses.replace(rollouts, mask=rollouts.mask & (jnp.arange(domain.max_tokens) < 3)[None, None])
    outcomes, widths = [], []

    def select(*args):
        instances, key = program.steps.select(*args)
        return dataclasses.replace(instances, prompt=jnp.pad(instances.prompt, ((0, 0), (0, 6)))), key

    def learn(constants, state, instances, rollouts, *graded):
        widths.append((instances.prompt.shape[-1], rollouts.tokens.shape[-1]))
        return program.steps.learn(constants, state, instances, rollouts, *graded)

    patched = dataclasses.replace(program.steps, select=select, sample=lambda *_: short, learn=learn)
    for own, prompts, responses in zip(copies, ((), (32, 34)), ((), (3, 5))):
        run = dataclasses.replace(config.run, prompt_buckets=prompts, response_buckets=responses)
        bucketed = dataclasses.replace(config, run=run)
        wider = dataclasses.replace(domain, prompt_width=40)
        outcomes.append(iterate(HostedSteps(bucketed, wider, program.mesh, patched, constants), own))
    assert widths == [(40, 7), (34, 3)]
    (one, metrics), (two, others) = outcomes
    assert float(metrics["loss"]) != 0
    assert float(metrics["gap/mean"]) < 1e-5, "learner and sampler, at a temperature that is not 1"
    for name in (name for name in metrics if not name.startswith("time/")):
        np.testing.assert_allclose(metrics[name], others[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for a, b in zip(leaves(one), leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_smallest_bucket_that_holds_the_longest_is_taken():
    config, domain, _, constants = one_iteration()
    program = make_program(config)
    steps = HostedSteps(config, domain, program.mesh, program.steps, constants)
    assert steps.bucket_of(jnp.array([3, 8]), (8,), 34) == 8
    assert steps.bucket_of(jnp.array([3, 9]), (8,), 34) == 34
    assert steps.bucket_of(jnp.array([3, 99]), (8,), 34) == 34  # truncated prompts
    assert steps.bucket_of(jnp.array([3, 9]), (), 34) == 34


def test_the_host_is_asked_after_every_iteration():
    with pytest.raises(ConfigError, match=r"steps_per_call = 5: .* set it to 1"):
        make_program(smoke(changes={"domain.on_host": True}))


def test_a_grading_fault_is_a_value(monkeypatch, caplog):
    config, domain, state, constants = one_iteration()
    broken = dataclasses.replace(domain, on_host=True, grade=lambda *_: 1 / 0)
    program = make_program(config)
    where = jax.tree.map(lambda leaf: leaf.sharding, program.state)
    before = leaves(state.params)
    programs = StepPrograms.make(config, broken, program.mesh, where)
    after, metrics = iterate(HostedSteps(config, broken, program.mesh, programs, constants), state)
    assert metrics["grading_faults"] == 1
    assert metrics["invalid"] == 1.0
    assert metrics["buffer/inserted"] <= config.algorithm.num_prompts  # the base tasks themselves, no children
    assert "ZeroDivisionError" in caplog.text
    for a, b in zip(before, leaves(after.params), strict=True):  # equal rewards have no advantage; KL is 0 at first
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_a_run_that_diverges_ends_before_it_is_saved(tmp_path):
    config = smoke(changes={"optimizer.learning_rate": 1e30}, num_iterations=10, checkpoint_every=5)
    with pytest.raises(ConfigError, match="train diverged by step 5: grad_norm is not finite"):
        train.train(config, tmp_path)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_three_failures_to_grade_in_a_row_stop_a_run(monkeypatch, tmp_path):
    """One alone does not; what stopped goes on where it was saved, once the fault is mended."""
    config = smoke(changes={"domain.on_host": True}, steps_per_call=1, num_iterations=6, checkpoint_every=1)
    grade, fails = hosts.on_rows, iter([True, False, True, True, True])

    def on_rows(function, *args):
        return grade(lambda *_: 1 / 0 if next(fails) else function(*_), *args)

    with monkeypatch.context() as patch:
        patch.setattr(hosts, "on_rows", on_rows)
        with pytest.raises(GradingError, match="stopped at step 5: in 3 iterations in a row"):
            train.train(config, tmp_path)
    assert [row["grading_faults"] for row in rows(tmp_path)] == [1, 0, 1, 1, 1]
    state, _ = train.train(config, tmp_path)
    assert int(state.step) == 6
    assert rows(tmp_path)[-1]["grading_faults"] == 0


LORA = {
    "policy.lora.rank": 2,
    "policy.lora.alpha": 4.0,
    "policy.lora.targets": ("query", "down"),
    "algorithm.entropy_coef": 0.1,
}


@pytest.mark.slow
def test_lora_trains_adapters_only_and_keeps_the_base(tmp_path):
    config = smoke(changes=LORA, num_iterations=5)
    state, params = train.train(config, tmp_path)
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.params)}
    assert len(names) == 4
    assert all("lora_" in name for name in names)
    moments = state.opt_state[1][0].mu
    assert jax.tree.structure(moments) == jax.tree.structure(state.params)
    start = decoder.join(initial_params(config), untrained(config))
    kernel = lambda tree: tree["blocks"]["attention"]["query"]
    np.testing.assert_array_equal(kernel(params)["kernel"], kernel(start)["kernel"])
    assert not np.array_equal(kernel(params)["lora_b"], kernel(start)["lora_b"])
    restored = train.restore_params(config, tmp_path)
    assert_same(params, restored)


@pytest.mark.slow
def test_sampling_in_int8_shows_in_the_gap_and_nowhere_else(whole, tmp_path):
    """The learner, and evaluation, which knows nothing of it, take the policy as it is."""
    train.train(smoke(changes={"sampling.int8": True}, num_iterations=5), tmp_path)
    for ours, theirs in zip(rows(tmp_path), rows(whole[1])):
        assert theirs["gap/mean"] < 1e-5
        assert 1e-4 < ours["gap/mean"] < 0.05
        assert ours["gap/clipped"] < 0.05


def test_the_copy_in_int8_is_split_as_its_kernels_are():
    config = smoke(changes={"policy.num_kv_heads": 2})
    policy = decoder_config(config)
    mesh = meshes.make_mesh(meshes.MeshConfig(2, 2, 2))
    params = decoder.init(policy, jax.random.key(0))
    plain, rounded = (jax.jit(make_reshard(policy, mesh, int8))(params) for int8 in (False, True))
    expected = decoder.unstack(policy, decoder.quantise(params))
    jax.tree.map(np.testing.assert_array_equal, rounded, expected)
    for name, split in (("up", True), ("down", False)):
        kernel, int8 = (copy["blocks"][0]["mlp"][name]["kernel"] for copy in (plain, rounded))
        assert int8.values.dtype == jnp.int8
        assert int8.values.sharding == kernel.sharding
        assert int8.scale.sharding.is_fully_replicated != split


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("lion", marks=pytest.mark.long), "adafactor"])
def test_other_optimizers_train_and_resume(kind, tmp_path):
    config = smoke(changes={"optimizer.kind": kind}, num_iterations=10)
    whole, _ = train.train(config, tmp_path / "whole")
    train.train(dataclasses.replace(config, run=dataclasses.replace(config.run, num_iterations=5)), tmp_path / "parts")
    resumed, _ = train.train(config, tmp_path / "parts")
    assert_same(whole, resumed)


@pytest.mark.parametrize(
    "word",
    [
        "dump",
        "refill",
        *(pytest.param(w, marks=pytest.mark.slow) for w in ("ghpo", "regroup", "restem", "spear", "srpo")),
    ],
)
def test_a_method_resumes_exactly(word, tmp_path):
    rounds = {"algorithm.right_at": 0.05, "algorithm.rounds.iterations": 3, "algorithm.num_epochs": 2}
    config = smoke(f"variant=exit-{word}", rounds if word == "restem" else {}, num_iterations=10)
    whole, _ = train.train(config, tmp_path / "whole")
    train.train(dataclasses.replace(config, run=dataclasses.replace(config.run, num_iterations=5)), tmp_path / "parts")
    resumed, _ = train.train(config, tmp_path / "parts")
    assert_same(whole, resumed)
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    if word == "dump":
        assert int(whole.curriculum.drawn.sum()) == int(whole.cursor)
    elif word == "ghpo":
        assert float(whole.start_level.level.max()) > 0
    elif word == "refill":
        assert 0 < int(whole.pool.updates) <= 10
    elif word == "srpo":
        assert rows(tmp_path / "whole")[-1]["second/made"] > 0.05
    elif word == "regroup":
        assert int((whole.regroup.score > 0).sum()) == rows(tmp_path / "whole")[-1]["regroup/kept"] > 20
        assert any(row["regroup/replaced"] for row in rows(tmp_path / "whole"))
    elif word == "restem":
        assert [row["pool/updates"] for row in rows(tmp_path / "whole")] == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
        assert [row["params_moved"] > 0.5 for row in rows(tmp_path / "whole")] == 3 * [False, False, True] + [False]
    else:
        assert int((whole.replay.born >= 0).sum()) > 20


def test_a_replay_draws_the_very_tasks(tmp_path):
    recorded = smoke("variant=grpo-sec", num_iterations=10)
    first, _ = train.train(recorded, tmp_path / "recorded")
    changes = {"method": "replay", "replay": str(tmp_path / "recorded"), "floor": 0.0}
    changes = {f"algorithm.curriculum.{name}": value for name, value in changes.items()}
    again, _ = train.train(smoke("variant=grpo", changes, num_iterations=10), tmp_path / "replay")
    np.testing.assert_array_equal(first.curriculum.drawn, again.curriculum.drawn)
    for ours, theirs in zip(rows(tmp_path / "recorded"), rows(tmp_path / "replay"), strict=True):
        for name in ours:  # weights over their sum twice are off by an ulp
            assert ours[name] == (pytest.approx(theirs[name], rel=1e-6) if "curriculum/" in name else theirs[name]), (
                name
            )


@pytest.mark.slow
def test_microbatches_and_chunks_train_as_one_batch(whole, tmp_path):
    train.train(smoke(num_microbatches=4, token_chunk=3, num_iterations=5), tmp_path)
    for ours, theirs in zip(rows(tmp_path), rows(whole[1])):
        for name in ("loss", "grad_norm", "entropy", "quality", "kl_reference"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_key_reuse():
    """No PRNG key is consumed twice in an iteration."""
    config, domain, state, constants = one_iteration()
    steps = DeviceSteps(config, domain, make_program(config).mesh, constants)
    with jax.debug_key_reuse(True):
        instances, key = jax.jit(steps.select)(state)
        jax.jit(steps.rollout)(state.params, instances, key)


def quick(**run) -> Config:
    return smoke(changes={"warm_start.num_steps": 0}, **{"num_iterations": 5, "checkpoint_every": 5} | run)


def raise_in(monkeypatch, name: str, number: int, times: int = 1) -> None:
    """Let a method of Checkpoints send signals to this process."""
    method = getattr(Checkpoints, name)

    def also(*args):
        for _ in range(times):
            signal.raise_signal(number)
        return method(*args)

    monkeypatch.setattr(Checkpoints, name, also)


def test_a_signal_during_the_last_save_stops_the_run(tmp_path, monkeypatch):
    raise_in(monkeypatch, "save", signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped at train step 5"):
        train.train(quick(), tmp_path)
    monkeypatch.undo()
    assert int(train.train(quick(), tmp_path)[0].step) == 5


def test_signals_act_as_usual_before_the_loop_and_the_second_time(tmp_path, monkeypatch, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with monkeypatch.context() as patch:
        raise_in(patch, "restore_latest", signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train.train(quick(), tmp_path)
    raise_in(monkeypatch, "save", signal.SIGINT, times=2)
    with pytest.raises(KeyboardInterrupt):  # in the warm start
        train.train(smoke(changes={"warm_start.num_steps": 5}, num_iterations=5), tmp_path)


def test_fewer_iterations_than_are_done_are_refused(tmp_path):
    train.train(quick(num_iterations=10), tmp_path)
    with pytest.raises(ConfigError, match=r"holds step 10, beyond the 5 .* set run.num_iterations to 10"):
        train.train(quick(), tmp_path)


def start(workdir: pathlib.Path, *flags: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "exit_jax.main",
        "--config",
        "tests/tiny_sudoku.py",
        "--workdir",
        str(workdir),
        *flags,
    ]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    flagged = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | cache | flagged, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    _, errors = process.communicate(timeout=300)
    return errors


def wait_for(path: pathlib.Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, finish(process)
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_runs_end_where_one_run_ends(tmp_path):
    """SIGKILL at random moments, a SIGTERM, then to the end: evaluation, metrics and checkpoint equal a single run's."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    errors = finish(process := start(whole))
    assert process.returncode == 0, errors
    rng = random.Random(0)
    process = start(broken)
    wait_for(broken / "warm_start", process)
    time.sleep(rng.uniform(0.0, 0.5))
    process.kill()
    process.wait()

    process = start(broken)
    wait_for(broken / "train.jsonl", process)  # the loop has begun, so the signal is caught
    process.send_signal(signal.SIGTERM)
    errors = finish(process)
    # 0 if it was just done, the signal itself if it evaluated already, where signals act as usual
    assert process.returncode in (0, 128 + signal.SIGTERM, -signal.SIGTERM), errors
    assert "Traceback" not in errors

    process = start(broken)
    time.sleep(rng.uniform(2.0, 8.0))
    process.kill()
    process.wait()
    errors = finish(process := start(broken))
    assert process.returncode == 0, errors
    assert json.loads((broken / "evaluation.json").read_text()) == json.loads((whole / "evaluation.json").read_text())
    assert rows(broken) == rows(whole)


@pytest.mark.parametrize("left", ["train.jsonl", "answers/test.jsonl", "evaluation.json", "checkpoints/100"])
def test_another_experiment_is_refused(tmp_path, left):
    left = tmp_path / left
    (tmp_path / "train.jsonl").write_text("")  # opened, and no more
    open_workdir(tmp_path, smoke("seed=3"))
    open_workdir(tmp_path, smoke())
    left.parent.mkdir(exist_ok=True)
    left.write_text("{}\n")
    open_workdir(tmp_path, smoke(num_iterations=100))  # operational: may change
    with pytest.raises(ConfigError, match=r"seed: 0 there, 5 here"):
        open_workdir(tmp_path, smoke("seed=5"))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"holds a run but no config.json"):
        open_workdir(tmp_path, smoke())


def test_config_json_says_how_a_run_began_and_what_came_later(tmp_path, monkeypatch):
    read = lambda: json.loads((tmp_path / "config.json").read_text())
    monkeypatch.setattr(identity, "versions", lambda: {"jax": "1", "exit_jax_revision": "old"})
    open_workdir(tmp_path, smoke("seed=3"))
    open_workdir(tmp_path, smoke())  # nothing was left by the first, so this one begins the run
    (tmp_path / "train.jsonl").write_text("{}\n")
    began = read()
    monkeypatch.setattr(identity, "versions", lambda: {"jax": "1", "exit_jax_revision": "new"})
    for _ in range(2):
        open_workdir(tmp_path, smoke(num_iterations=100))
        open_workdir(tmp_path, smoke())
    assert read()["versions"] == began["versions"] == {"jax": "1", "exit_jax_revision": "old"}
    assert read()["config"] == began["config"]
    new = {"versions.exit_jax_revision": "new"}
    assert read()["later"] == [new | {"run.num_iterations": 100}, new]


def test_evaluations_share_the_programs_of_training():
    assert compile_key(smoke(changes={"eval.steps": (0, 1)})) == compile_key(smoke(changes={"eval.steps": (0, 2)}))


@pytest.mark.slow
def test_runs_of_all_seeds_may_begin_alike(tmp_path):
    changes = {"warm_start.seed": 7, "warm_start.num_steps": 10}
    one, other = (warm_start(smoke(f"seed={seed}", changes), tmp_path, None) for seed in (0, 1))
    assert len(list((tmp_path / "warm_start").iterdir())) == 1
    own = warm_start(smoke("seed=7", changes | {"warm_start.seed": -1}), tmp_path, None)
    for a, b, c in zip(*map(leaves, (one, other, own))):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    apart = warm_start(smoke("seed=1", changes | {"warm_start.seed": -1}), tmp_path, None)
    assert any((a != b).any() for a, b in zip(leaves(one), leaves(apart)))


@pytest.mark.parametrize("num_steps", [0, 5])
def test_they_begin_alike_without_a_warm_start_and_under_adapters(tmp_path, num_steps):
    configs = [smoke(f"seed={s}", LORA | {"warm_start.seed": 7, "warm_start.num_steps": num_steps}) for s in (0, 1)]
    frozen = [frozen_params(config) for config in configs]
    assert_same(*frozen)
    assert_same(*(warm_start(config, tmp_path, base) for config, base in zip(configs, frozen)))
