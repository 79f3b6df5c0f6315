"""Every fault of a config is found before anything compiles, all of them at once."""

import dataclasses
import json
import os
import pathlib
import runpy
import subprocess
import sys
import types

import numpy as np
import pytest
import tiny_sudoku

from exit_jax import domains, main, run
from exit_jax.config import variants
from exit_jax.config.parse import default, validate
from exit_jax.config.schema import OPERATIONAL, Config, EvalConfig
from exit_jax.errors import ConfigError
from exit_jax.evaluation.evaluate import summarise
from exit_jax.evaluation.figures import mean_of
from exit_jax.evaluation.outcome import Chains, Outcome, Split
from exit_jax.evaluation.scaffolds import CHAIN, GREEDY, RESTARTS
from exit_jax.parallel import hosts
from exit_jax.parallel.mesh import MeshConfig
from exit_jax.run import check_tasks
from exit_jax.study import Experiment, finished, half_width, markdown, over_seeds, study
from exit_jax.workdir import identity
from exit_jax.workdir.identity import open_workdir, scientific, to_dict, write_json

ROOT = pathlib.Path(__file__).parents[1]


def content(arg: str = ""):
    return tiny_sudoku.get_config(arg)


@pytest.mark.parametrize("name", ["sudoku", "sudoku9", "smoke"])
@pytest.mark.parametrize("variant", ["grpo", "curriculum", "improve", "diverge", "exit"])
def test_configs_are_valid(name, variant):
    config = runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"](f"variant={variant},seed=3")
    assert validate(config, 1).seed == 3


@pytest.mark.parametrize("name", ["sudoku", "sudoku9", "smoke"])
def test_every_change_of_a_variant_reaches_every_size(name):
    get_config = runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"]
    fields = lambda variant: scientific(validate(get_config(f"variant={variant}"), 1)) | {"variant": "exit"}
    plain = fields("exit")
    own = "one" if name == "sudoku" else "all"  # the children that the config itself takes
    assert [change for change in variants.CHANGES if fields(f"exit-{change}") == plain] == [own]
    assert fields("exit-fresh")["algorithm.buffer_size"] == plain["algorithm.buffer_size"] // 4


def test_variants_use_the_same_rollouts():
    configs = [validate(content(f"variant={v}"), 1) for v in ("grpo", "curriculum", "improve", "diverge", "exit")]
    assert len({(c.algorithm.num_prompts, c.algorithm.group_size, c.run.num_iterations) for c in configs}) == 1
    assert len({c.algorithm for c in configs}) == len(configs)


def test_unknown_argument_of_a_config():
    with pytest.raises(ValueError, match="seeed=1"):
        content("seeed=1")
    with pytest.raises(ValueError, match="variant=expo"):
        content("variant=expo")


def test_all_faults_are_reported_together():
    config = content().unlock()
    config.algorithm.gruop_size = 3
    with config.ignore_type():
        config.algorithm.clip_low = "small"
        config.eval.steps = 4
    with pytest.raises(ConfigError) as caught:
        validate(config, 1)
    for part in (
        "gruop_size is unknown; did you mean group_size",
        "clip_low = 'small' is a str",
        "steps = 4 is not a tuple",
    ):
        assert part in str(caught.value)


def test_values_out_of_bounds_are_reported_together_with_those_of_the_domain():
    config = content()
    config.algorithm.group_size, config.policy.mlp_dim, config.domain.demo_noise = 1, 0, 2.0
    with pytest.raises(ConfigError, match="3 fault") as caught:
        validate(config, 1)
    for part in (
        "algorithm.group_size = 1 is below 2",
        "policy.mlp_dim = 0 is below 1; give the shape",
        "domain.demo_noise = 2.0 is not in [0, 1]",
    ):
        assert part in str(caught.value)


def test_a_misspelt_field_of_a_config_file_names_the_near_miss():
    with pytest.raises(AttributeError, match="group_size"):
        content().algorithm.gruop_size = 3


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("algorithm.min_buffer_size", 65, "above algorithm.buffer_size = 64"),
        ("algorithm.min_buffer_size", 0, "below 1"),
        ("algorithm.advantage_eps", -1e-6, "below 0"),
        ("algorithm.num_prompts", 15, "data x fsdp = 8"),
        ("warm_start.num_states", 0, "below 1"),
        ("optimizer.learning_rate", -1e-4, "below 0"),
        ("optimizer.max_grad_norm", 0.0, "inf clips none"),
        ("warm_start.optimizer.b1", 1.5, r"not in \[0, 1\)"),
        ("algorithm.selection_prob", 1.5, r"not in \[0, 1\]"),
        ("algorithm.group_size", 1, "below 2"),
        ("algorithm.reward", "gold", "is not one of"),
        ("algorithm.temperature", 0.0, "must sample"),
        ("policy.num_kv_heads", 3, "not a multiple"),
        ("policy.head_dim", 7, "odd"),
        ("run.checkpoint_every", 7, "not a multiple of run.steps_per_call"),
        ("run.mesh.data", 9, "but there are 8"),
        ("eval.splits", ("tset",), "is not one of .'train', 'validation', 'test'"),
        ("domain_name", "chess", "not one of"),
        ("domain_name", ["sudoku"], "not one of"),
        ("eval.top_p", 0.0, "keeps all tokens"),
        ("algorithm.advantage_norm", "ema", "set both, as to 0.95, or neither"),
        ("algorithm.baseline_decay", 0.9, "set both, as to 0.95, or neither"),
        ("algorithm.clip_cov_band", (2.0, 1.0), r"is not \(low, high\)"),
        ("domain.box", 5, "not one of .2, 3."),
        ("domain.num_clues", (7, 4), "not a range of clues"),
        ("domain.max_edits", 17, "above 16, the cells"),
    ],
)
def test_contradictions(field, value, words):
    config = content()
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(ConfigError, match=words):
        validate(config, 8)


@pytest.mark.parametrize("group", ["policy", "eval", "run", "domain"])
def test_a_group_that_is_none_is_told(group):
    config = content().unlock()
    with config.ignore_type():
        config[group] = None
    with pytest.raises(ConfigError, match=rf"config.{group} = None is not a group of fields"):
        validate(config, 1)


def test_a_checkpoint_that_cannot_be_read_is_the_only_fault(tmp_path):
    with pytest.raises(ConfigError, match=r"^1 fault") as caught:
        validate(default("sudoku", checkpoint=str(tmp_path)), 1)
    assert str(tmp_path) in str(caught.value)


def test_a_domain_within_another_group_is_unknown():
    config = content().unlock()
    config.run.domain = 1
    with pytest.raises(ConfigError, match=r"config.run.domain is unknown"):
        validate(config, 1)


def test_a_change_of_what_a_domain_does_not_have_is_told():
    with pytest.raises(ValueError, match=r"variant=exit-blind: .*feedback"):
        variants.apply(default("math"), "exit-blind")


def test_a_report_asks_for_no_devices():
    config = content()
    config.update_from_flattened_dict({"run.mesh.fsdp": 2, "run.mesh.tensor": 2})
    assert validate(config, None).run.mesh == MeshConfig(1, 2, 2)
    with pytest.raises(ConfigError, match="but there are 1"):
        validate(config, 1)


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another --workdir"):
        open_workdir(tmp_path / "file" / "run", validate(content(), 1))


def test_damaged_config_json(tmp_path):
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "train.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="is damaged"):
        open_workdir(tmp_path, validate(content(), 1))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.algorithm.gruop_size=3"], "group_size"),
        (["--config.algorithm.min_buffer_size=10000"], "lower the first"),
        (["--mode", "evaluate"], "train first"),
        (["--mode", "dance"], "should be one of"),
        (["--push", "me/model"], "--push is for --mode export"),
        (["--mode", "export", "--public"], "--public for --push"),
    ],
)
def test_command_line_answers_with_one_error(flags, words, tmp_path):
    command = [
        sys.executable,
        "-m",
        "exit_jax.main",
        "--config",
        "configs/smoke.py",
        "--workdir",
        str(tmp_path / "run"),
    ]
    done = subprocess.run([*command, *flags], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 12
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--config.seed=7", "--config.algorithm.selection_prob=0.3"],
            "--config.algorithm.selection_prob, --config.seed",
        ),
        (["--config.study.variants=('exit','expo')"], "variant=expo"),
    ],
)
def test_a_study_refuses_what_would_mix_up_its_runs(flags, words, tmp_path):
    command = [sys.executable, "-m", "exit_jax.main", "--mode", "study", "--config", "configs/smoke.py"]
    command += ["--workdir", str(tmp_path / "study"), *flags]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) < 12
    assert not (tmp_path / "study").exists()


def experiment(tmp_path, line, **overrides):
    """Return an experiment whose file is the tiny one with a line of its own."""
    body = ("import tiny_sudoku", "def get_config(arg):", "    c = tiny_sudoku.get_config(arg).unlock()", f"    {line}")
    (tmp_path / "own.py").write_text("\n".join((*body, "    return c\n")))
    return Experiment(str(tmp_path / "own.py"), "", overrides)


def test_a_study_refuses_an_override_of_what_a_variant_alone_sets(tmp_path):
    """Of a field, too, that enters no hash at its default."""
    line = "c.algorithm.objective = 'cispo' if c.variant == 'exit' else 'clip'"
    with pytest.raises(ConfigError, match=r"--config.algorithm.objective would be the same in all runs"):
        experiment(tmp_path, line, **{"algorithm.objective": "clip"}).check(("grpo", "exit"), (0,))


def test_a_study_needs_no_warm_start(tmp_path):
    experiment(tmp_path, "del c.warm_start").check(("grpo", "exit"), (0,))


def fake_evaluation(accuracy, settings=None):
    row = {
        name: [0.0, accuracy] for name in ("accuracy", "best_so_far", "stopped", "quality", "delta", "quality_delta")
    }
    scaffolds = {"chain": row | {"unchanged_wrong": [None, 0.5]}, "restarts": {"best_so_far": [0.0, accuracy]}}
    test = {"k": [0, 4], "num_tasks": 8, "scaffolds": scaffolds}
    return {"format": 2, "settings": settings, "splits": {"test": test}}


@pytest.fixture
def fake_study(tmp_path):
    """Return a function that makes a study of runs that only leave files, under overrides; it returns what ran."""

    def make_study(variants=("grpo", "exit"), seeds=(0, 1, 2), folder=tmp_path, recorded=None, **overrides):
        ran = []

        def run(config, folder):
            open_workdir(folder, config)
            ran.append((config.variant, config.seed))
            if config.run.num_iterations:  # the base policy leaves none
                (folder / "checkpoints" / str(config.run.num_iterations)).mkdir(parents=True, exist_ok=True)
            result = fake_evaluation(
                {"base": 0.0, "grpo": 0.1, "exit": 0.4}[config.variant] + config.seed / 10, to_dict(config)["eval"]
            )
            write_json(folder / "evaluation.json", result)
            return result

        def make(variant, seed):
            given = content(f"variant={variant},seed={seed}")
            given.update_from_flattened_dict(overrides)
            return validate(given, 1)

        return study(make, variants, seeds, folder, run, recorded), ran

    return make_study


def test_study_skips_what_is_done_and_pairs_seeds(fake_study, tmp_path):
    summary, ran = fake_study()
    assert len(ran) == len(set(ran)) == 9
    before = (tmp_path / "exit/seed0/config.json").stat().st_mtime_ns
    assert fake_study() == (summary, [])
    assert (tmp_path / "exit/seed0/config.json").stat().st_mtime_ns == before, "it names the versions that made the run"
    exit_row = summary["test"]["variants"]["exit"]["accuracy"]
    assert exit_row["mean"][-1] == pytest.approx(0.5)
    assert exit_row["std"][-1] == pytest.approx(0.1)
    assert exit_row["minus_grpo"][-1] == pytest.approx(0.3)
    assert exit_row["minus_grpo_ci95"][-1] == pytest.approx(0.0, abs=1e-6)
    assert "| exit | 0.000 ± 0.000 | 0.500 ± 0.100 |" in (tmp_path / "study.md").read_text()


def test_a_study_goes_on_elsewhere_from_its_rows(fake_study, tmp_path, caplog):
    rows, elsewhere = tmp_path / "kept/rows.jsonl", tmp_path / "elsewhere"
    half, ran = fake_study(seeds=(0,), recorded=rows)
    assert [(json.loads(line)["variant"], json.loads(line)["seed"]) for line in rows.read_text().splitlines()] == ran
    whole, ran = fake_study(seeds=(0, 1), folder=elsewhere, recorded=rows)
    assert {seed for _, seed in ran} == {1}
    assert (
        whole["test"]["variants"]["exit"]["accuracy"]["values"][0]
        == half["test"]["variants"]["exit"]["accuracy"]["values"][0]
    )
    assert fake_study(seeds=(0, 1), folder=tmp_path / "third", recorded=rows) == (whole, [])
    # what stands in folders alone is added
    fake_study(seeds=(0, 1), folder=elsewhere, recorded=tmp_path / "again.jsonl")
    assert len((tmp_path / "again.jsonl").read_text().splitlines()) == len(rows.read_text().splitlines()) == 6

    cut_off = rows.read_bytes()[:-40]  # of the run exit, 1
    rows.write_bytes(cut_off)
    assert fake_study(seeds=(0, 1), folder=tmp_path / "fourth", recorded=rows) == (whole, [("exit", 1)])
    assert "line 6" in caplog.text
    assert fake_study(seeds=(0, 1), folder=tmp_path / "fifth", recorded=rows) == (whole, [])


@pytest.mark.parametrize(
    "change", [{"eval.steps": (0, 4)}, {"run.num_iterations": 10}, {"optimizer.learning_rate": 1e-5}]
)
def test_a_row_stands_for_no_other_run(fake_study, tmp_path, change):
    rows = tmp_path / "rows.jsonl"
    fake_study(("exit",), (0,), recorded=rows)
    _, ran = fake_study(("exit",), (0,), folder=tmp_path / "other", recorded=rows, **change)
    assert ("exit", 0) in ran


def test_a_file_of_rows_that_cannot_be_used_is_one_error(fake_study, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read study\.rows"):
        fake_study(("exit",), (0,), recorded=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot (read|write) study\.rows"):
        fake_study(("exit",), (0,), recorded=tmp_path / "file/rows.jsonl")


@pytest.mark.parametrize("text", ["{", '{"config": 3}', '{"config": []}', "[]"])
def test_a_study_tells_of_a_damaged_config(fake_study, tmp_path, text):
    fake_study(("exit",), (0,))
    (tmp_path / "exit/seed0/config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"seed0/config.json is damaged"):
        fake_study(("exit",), (0,))


def test_the_base_policy_of_a_study_has_no_change_of_a_variant(tmp_path):
    ran = []

    def run(config, folder):
        folder.mkdir(parents=True)
        ran.append(config)
        return fake_evaluation(0.1)

    make = lambda variant, seed: validate(content(f"variant={variant},seed={seed}"), 1)
    for folder, names in (("a", ("exit-blind", "improve")), ("b", ("grpo", "exit-blind"))):
        study(make, names, (0,), tmp_path / folder, run)
    first, second = (scientific(config) for config in ran if config.variant == "base")
    assert first == second
    assert first["domain.feedback"] is True


def test_the_first_process_alone_writes_and_says_what_is_written_once(fake_study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hosts, "is_lead", lambda: False)
    fake_study(("exit",), (0,))
    assert not list(tmp_path.glob("study.*"))
    monkeypatch.setattr(run, "study", lambda *_: None)
    monkeypatch.setattr(run, "evaluate", lambda *_: fake_evaluation(0.1))
    monkeypatch.setattr(run, "export", lambda *_: [tmp_path])
    monkeypatch.setattr(main, "find_workdir", lambda: tmp_path)
    for name in ("PUSH", "PUBLIC"):  # as if the command line had been parsed
        monkeypatch.setattr(main, f"_{name}", types.SimpleNamespace(value=main.FLAGS[name.lower()].default))
    for mode in ("evaluate", "export", "study"):
        main.compute(mode, validate(content(), 1), experiment(tmp_path, ""))
    assert not capsys.readouterr().out


def test_figures_of_a_study_keep_the_order_of_its_seeds(fake_study):
    split = fake_study(seeds=(2, 0))[0]["test"]
    assert split["seeds"] == [2, 0]
    assert [row[-1] for row in split["variants"]["exit"]["accuracy"]["values"]] == pytest.approx([0.6, 0.4])


def test_gains_of_a_study_are_since_k_0_whatever_is_shown():
    """One task whose quality goes 0, 0.25, 1 in the plain chain; 0.5 at once, and 1 at last, in its rivals."""

    def outcome(*quality):
        quality = np.array(quality)[:, None]
        blank = np.zeros(quality.shape, bool)
        return Outcome(Chains(quality, blank, ~blank, blank, 5 * ~blank, 1 * ~blank, {}, None), str, None)

    given = content()
    given.eval.steps = (1, 2)
    chain, rival = outcome(0.0, 0.25, 1.0), outcome(0.5, 0.25, 1.0)
    given.eval.samples_per_task = given.eval.restart_every = 1
    config = validate(given, 1)
    about = Split(config.eval, domains.make(config.domain_name, config.domain))
    figures = summarise(about, {CHAIN: chain, RESTARTS: rival, GREEDY: rival})
    for split in (figures, mean_of([figures, figures])):
        row = over_seeds({"exit": {0: {"splits": {"test": split}}}})["test"]["variants"]["exit"]
        assert row["delta"]["mean"] == [0.0, 1.0]
        assert row["quality_delta"]["mean"] == [0.25, 1.0]
        assert row["greedy_delta"]["mean"] == row["restarted_quality_delta"]["mean"] == [0.0, 0.5]


def test_a_study_evaluates_anew_by_other_settings_and_adds_runs(fake_study):
    fake_study(("exit",), (0, 1))
    _, ran = fake_study(("grpo", "exit"), (0, 1))
    assert ran == [("grpo", 0), ("grpo", 1)]
    _, ran = fake_study(("exit",), (0,), **{"eval.steps": (0, 4)})
    assert ran == [("base", 0), ("exit", 0)]
    _, ran = fake_study(("exit",), (0, 1), **{"eval.steps": (0, 4)})
    assert ran == [("base", 1), ("exit", 1)]


def test_a_study_takes_evaluations_from_before_a_setting_had_a_field(fake_study, tmp_path):
    fake_study(("exit",), (0,))
    for file in tmp_path.glob("*/seed0/evaluation.json"):
        figures = json.loads(file.read_text())
        del figures["settings"]["repetition_penalty"], figures["settings"]["suppress_tokens"]
        file.write_text(json.dumps(figures))
    assert not fake_study(("exit",), (0,))[1]
    assert fake_study(("exit",), (0,), **{"eval.repetition_penalty": 1.05})[1]


@pytest.mark.parametrize(("field", "value"), [("algorithm.group_size", 32), ("run.num_iterations", 10)])
def test_a_study_does_not_take_the_runs_of_another_experiment(fake_study, field, value):
    fake_study(("exit",), (0,))
    with pytest.raises(ConfigError, match=f"(?s)seed0 holds .*{field}.*--workdir|--workdir.*{field}"):
        fake_study(("exit",), (0,), **{field: value})


def test_a_study_goes_on_with_a_run_that_was_evaluated_half_way(fake_study, tmp_path):
    fake_study(("exit",), (0,))
    _, ran = fake_study(("exit",), (0,), **{"run.num_iterations": 40})
    assert ran == [("exit", 0)], "the base policy is not trained"
    _, ran = fake_study(("exit",), (0,), **{"run.num_iterations": 40})
    assert ran == []


def test_training_on_sets_the_evaluation_of_the_policy_so_far_aside(tmp_path, monkeypatch):
    """Else a study would take it, after a kill between training and evaluation, for that of the finished run."""
    config = validate(content(), 1)
    (tmp_path / "checkpoints/10").mkdir(parents=True)
    write_json(tmp_path / "config.json", {"config": to_dict(config), "versions": {}})
    write_json(tmp_path / "evaluation.json", fake_evaluation(0.1, to_dict(config)["eval"]))

    class KilledError(Exception):
        pass

    def train(*_):
        (tmp_path / "checkpoints/20").mkdir()
        raise KilledError

    monkeypatch.setattr("exit_jax.training.train.train", train)
    with pytest.raises(KilledError):
        run.train(config, tmp_path)
    assert finished(config, tmp_path) is None
    assert (tmp_path / "evaluation-10.json").exists()


def test_a_field_of_run_that_a_later_version_added_is_no_change(tmp_path):
    open_workdir(tmp_path, validate(content(), 1))
    (tmp_path / "train.jsonl").write_text("{}\n")
    held = json.loads((tmp_path / "config.json").read_text())
    del (
        held["config"]["run"]["allow_idle_updates"],
        held["config"]["run"]["trackers"],
    )  # a tuple, too, which JSON has as a list
    write_json(tmp_path / "config.json", held)
    open_workdir(tmp_path, validate(content(), 1))
    assert "later" not in json.loads((tmp_path / "config.json").read_text())


def test_interval_is_students():
    """For differences 1, 2, 3: s = 1, t(2 df) = 4.303, so the half width is 4.303 / sqrt(3) = 2.484."""
    assert half_width(np.array([[1.0], [2.0], [3.0]]))[0] == pytest.approx(2.484, abs=1e-3)


def test_a_run_notices_other_tasks(tmp_path):
    """Of the splits that it has met: a split that is evaluated later is recorded then."""
    given = content()
    config = validate(given, 1)
    given.domain.num_train //= 2
    other = validate(given, 1)
    check_tasks(config, tmp_path, {"train"})
    check_tasks(other, tmp_path, {"train"})  # nothing was left by the first
    check_tasks(config, tmp_path, {"train"})
    (tmp_path / "train.jsonl").write_text("{}\n")
    check_tasks(config, tmp_path, {"train", "test"})
    with pytest.raises(ConfigError, match=r"begun with other tasks of train: .* choose another --workdir"):
        check_tasks(other, tmp_path, {"train", "test"})
    assert sorted(json.loads((tmp_path / "tasks.json").read_text())) == ["test", "train"]


def test_a_single_seed_has_no_spread():
    summary = over_seeds({"grpo": {0: fake_evaluation(0.1)}, "exit": {0: fake_evaluation(0.2)}})
    assert summary["test"]["variants"]["exit"]["accuracy"]["minus_grpo_ci95"] == [None, None]
    assert "| exit | +0.100 | +0.100 | +0.000 |" in markdown(summary)


def test_a_study_of_scores_shows_them_by_k_and_leaves_out_what_no_run_has():
    plain = {"grpo": {0: fake_evaluation(0.1)}}
    assert "greedy" not in markdown(over_seeds(plain)).replace("*greedy*", "")
    scored = fake_evaluation(0.0)
    better = fake_evaluation(0.0)
    for found, chain, search in ((scored, [0.25, 0.5], [0.25, 0.75]), (better, [0.5, 0.5], [0.5, 1.0])):
        scaffolds = found["splits"]["test"]["scaffolds"]
        scaffolds["chain"]["quality"] = chain
        scaffolds["greedy"] = {"quality": search, "quality_delta": [0.0, 0.5]}
    text = markdown(over_seeds({"grpo": {0: scored}, "exit": {0: better}}))
    assert "| score, plain chain | k=0 | k=4 | Δ_4 |" in text
    assert "| exit | 0.500 | 1.000 | 0.500 |" in text[text.index("score, greedy search") :]
    assert "restarted_quality |" not in text
    assert "| accuracy | k=0" not in text, "nothing was ever right"
    assert "| accuracy | k=0" in markdown(over_seeds(plain))
    differences = text[text.index("minus GRPO") :]
    assert differences.splitlines()[2].endswith("| +0.250 |")


def test_a_field_with_a_default_may_be_left_out_and_orphans_no_run(tmp_path, monkeypatch):
    """A field that a later version adds: old config files and old workdirs read as its default, and hashes stay."""
    settings = content()
    plain = validate(settings, 1)
    open_workdir(tmp_path, plain)
    (tmp_path / "train.jsonl").write_text("{}\n")

    @dataclasses.dataclass(frozen=True)
    class Wider(EvalConfig):
        num_votes: int = 3

    monkeypatch.setitem(Config.__annotations__, "eval", Wider)
    monkeypatch.setattr(identity, "OPERATIONAL", tuple(name for name in OPERATIONAL if name != "eval"))
    known = validate(settings, 1)
    assert known.eval.num_votes == 3
    assert "eval.num_votes" not in scientific(known)
    assert scientific(known) == scientific(plain)
    assert open_workdir(tmp_path, known) == tmp_path
    settings.eval.unlock().num_votes = 4
    with pytest.raises(ConfigError, match=r"eval.num_votes: 'the default' there, 4 here"):
        open_workdir(tmp_path, validate(settings, 1))
