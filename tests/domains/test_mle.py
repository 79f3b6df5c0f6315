"""The ML-engineering domain: scripts that run, fail and cheat, the pieces of their children, runs that resume."""

import dataclasses
import os
import runpy
import shutil

import jax
import numpy as np
import pytest
from small import ROOT, tiny_tools
from small import tiny_mle as tiny

from exit_jax.algorithm.learnability import reward
from exit_jax.algorithm.prompts import render_by_mode
from exit_jax.domains.domain import DomainError
from exit_jax.domains.ml_engineering import domain as mle
from exit_jax.domains.ml_engineering import fragments, prompts, tokenizer
from exit_jax.domains.ml_engineering.competitions import SAMPLE
from exit_jax.domains.text import chat
from exit_jax.errors import ConfigError
from exit_jax.policy import decoder
from exit_jax.sandbox import Result
from exit_jax.step.device import Constants
from exit_jax.step.policy import decoder_config
from exit_jax.step.program import make_program
from exit_jax.training import train
from exit_jax.types import BASE, DIVERGE, IMPROVE, PIECES, Instances, Rollouts
from exit_jax.workdir.metrics import read_jsonl

SOUND = {"os": "os", "numpy": "numpy", "read": "read", "files": "files", "columns": "all", "scale": "standard"}
SOUND |= {"expand": "none", "target": "classes", "model": "ridge", "call": "ridge 1", "out": "last", "write": "write"}


@pytest.fixture(scope="module", autouse=True)
def require_sandbox():
    if shutil.which("bwrap") is None:
        assert os.environ.get("EXIT_JAX_REQUIRE_SANDBOX") != "1", "bubblewrap is required here, and not installed"
        pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def world(data_dir):
    return mle.MlEngineering(tiny(data_dir).domain)


@pytest.fixture(scope="module")
def wordy(data_dir):
    """The domain with the prompts of the 7B run, in bytes and fragments, for whole requests and traces."""
    fields = dataclasses.asdict(tiny(data_dir).domain) | {
        "brief": False,
        "base": prompts.BASE,
        "improve": prompts.IMPROVE,
        "diverge": prompts.DIVERGE,
        "improve_goal": prompts.GOALS["improve"],
        "debug_goal": prompts.GOALS["debug"],
        "preview_chars": 500,
        "prompt_width": 1 << 14,
        "max_goal_tokens": 128,
        "max_request_tokens": 4096,
        "max_solution_tokens": 2048,
        "max_feedback_tokens": 300,
        "max_tokens": 1500,
        "truncate": "middle",
    }
    made = object.__new__(mle.MleConfig)  # as with a checkpoint's tokenizer, which would be a file of its own
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return mle.MlEngineering(made)


def take(history, numbers):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[numbers], history)


def play(world, history, responses, mode=BASE):
    """Return the grades of responses [B][G] to histories [B]."""
    batch, group = len(responses), len(responses[0])
    tokens = np.zeros((batch, group, world.config.max_tokens), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for b, row in enumerate(responses):
        for g, text in enumerate(row):
            ids = [*world.encode(text), world.stop_tokens[0]]
            tokens[b, g, : len(ids)], mask[b, g, : len(ids)] = ids, True
    zero, zeros = np.zeros(batch, np.int32), np.zeros(tokens.shape, np.float32)
    instances = Instances(history, zero + mode, zero > 0, zero > 0, zero[:, None], zero)
    rollouts = Rollouts(tokens, mask, zeros, zeros, np.ones((batch, group), bool), zeros[:, :, :1])
    return world.grade(instances, rollouts)


def children(grades):
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[3:]), grades.children)


def pieces(world, history):
    return {name: world.texts_of(history, name) for name in PIECES}


def fenced(code):
    return fragments.FENCE + code + fragments.END_FENCE


def test_fragments_are_tokens_and_all_text_survives(world):
    text = fragments.respond(SOUND)
    ids = chat.encode_piece(world.tokenizer, text)
    assert len(ids) == len(SOUND) - 1 + 1 + 2  # no expansion, a target of two statements, two fences
    assert world.tokenizer.decode(ids) == text
    assert world.encode(text) == ids, "by statements as in one go"
    for name in fragments.vocabulary():
        assert len(chat.encode_piece(world.tokenizer, name)) == 1, name
    for other in ("def f():\n\n    é = 1\r\n  x\n", "", "\n\n a<|end|>", "```\n```"):
        assert world.tokenizer.decode(chat.encode_piece(world.tokenizer, other)) == other
    made = tokenizer.make()
    assert made.get_vocab() == world.tokenizer.get_vocab()


def test_grades_and_children(world):
    crash = fragments.respond(SOUND | {"numpy": "none"})
    good, other = fragments.respond(SOUND), fragments.respond(SOUND | {"call": "ridge 30"})
    bad = fragments.respond(SOUND | {"write": "without ids"})
    elsewhere = fragments.respond(SOUND | {"write": "elsewhere"})
    grades = play(world, take(world.tasks("train"), [0, 0]), [[good, crash, "import os\n"], [bad, other, elsewhere]])
    assert grades.quality[0, 0] > 0.7
    assert grades.quality[1, 1] > 0.5
    np.testing.assert_array_equal(grades.quality.reshape(-1)[[1, 2, 3, 5]], 0)
    assert grades.valid.all()
    np.testing.assert_array_equal(grades.insertable[..., 0], [[1, 1, 0], [1, 1, 1]])
    for name, expected in {
        "crashed": [[0, 1, 0], [0, 0, 0]],
        "no_code": [[0, 0, 1], [0, 0, 0]],
        "invalid_submission": [[0, 0, 0], [1, 0, 1]],
        "timeout": [[0, 0, 0], [0, 0, 0]],
    }.items():
        np.testing.assert_array_equal(grades.notes[name], expected, err_msg=name)
    assert (grades.notes["run_secs"] > 0).sum() == 5
    held = pieces(world, children(grades))
    assert held["context"] == ["improve\n", "debug\n", "debug\n", "debug\n", "improve\n", "debug\n"]
    assert held["feedback"][1:4] == ["NameError\n", "no code\n", "invalid\n"]
    assert held["feedback"][0] == held["feedback"][4] == "", (
        "a script that ran is told nothing, least of all its test score"
    )
    assert held["solution"][0] == fragments.write(SOUND)
    assert held["solution"][2] == ""
    assert set(held["request"]) == {"metric auc\ncolumns some\nrows many\n"}
    again = play(world, take(world.tasks("train"), [0]), [[good, crash]])
    np.testing.assert_array_equal(again.notes["cached"], 1)
    np.testing.assert_array_equal(again.quality[0], grades.quality[0, :2])
    template = render_by_mode(world.templates, children(grades), np.full(6, IMPROVE), world.config.prompt_width)
    assert world.decode(template[0][1][: template[1][1]]).startswith("debug\nmetric auc\n")
    diverge = render_by_mode(world.templates, children(grades), np.full(6, DIVERGE), world.config.prompt_width)
    assert world.decode(diverge[0][1][: diverge[1][1]]).startswith("diverge\nmetric auc\n")


def test_hostile_responses_are_feedback(wordy):
    sample = f"import os, shutil\nshutil.copyfile(os.environ['DATA_DIR'] + '/{SAMPLE}', 'submission.csv')\n"
    scripts = [
        "import os\nos.symlink('/etc/passwd', 'submission.csv')\n",
        "open('submission.csv', 'wb').write(bytes(range(256)) * 1000)\n",
        "import sklearn.datasets\nsklearn.datasets.load_iris()\n",
        "import os\nprint(os.listdir(os.environ['DATA_DIR'] + '/../private'))\n",
        "raise ValueError('<|end|> ' + '\\ud800')\n",
        sample + "raise SystemExit(3)\n",
        sample,
        "x = '" + "\x00" + "'\n",
    ]
    grades = play(wordy, take(wordy.tasks("train"), [0]), [[fenced(script) for script in scripts]])
    np.testing.assert_array_equal(grades.quality, 0)
    assert grades.valid.all()
    assert grades.insertable.all()
    held = pieces(wordy, children(grades))
    assert "it is a link, not a regular file" in held["feedback"][0]
    assert "submission.csv is not valid" in held["feedback"][1]
    assert "FileNotFoundError" in held["feedback"][2], "the bundled data sets are hidden"
    assert "FileNotFoundError" in held["feedback"][3]
    assert "DATA_DIR/../private" in held["feedback"][3]
    assert "ValueError: <|end|>" in held["feedback"][4]
    assert "exit status 3" in held["feedback"][5]
    assert held["feedback"][6] == prompts.RAN
    goals = [prompts.GOALS["debug"]] * 8
    goals[6] = prompts.GOALS["improve"]
    assert held["context"] == goals
    assert "submission.csv" in held["request"][0]
    assert wordy.describe(children(grades))[6] == sample
    assert wordy.feedback(children(grades))[6] == prompts.RAN
    tokens, lengths = render_by_mode(wordy.templates, children(grades), np.full(8, IMPROVE), wordy.config.prompt_width)
    prompt = wordy.decode(tokens[5][: lengths[5]])
    assert f"```python\n{scripts[5]}```\n\n# Its last run\nIt failed: exit status 3." in prompt
    assert f"# Goal\n{prompts.GOALS['debug']}\n" in prompt


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_prompt_tells_a_test_score(wordy, split):
    """Neither an improve nor a diverge prompt, of training or of held-out competitions, tells two scores apart."""
    fill = lambda value: (
        "import csv, os\n"
        f"rows = list(csv.reader(open(os.environ['DATA_DIR'] + '/{SAMPLE}')))\n"
        "write = csv.writer(open('submission.csv', 'w')).writerow\n"
        f"for i, row in enumerate(rows): write(row if i == 0 else [row[0], {value}])\n"
    )
    values = {"train": ("float(i % 2)", "0.5"), "test": ("str(i % 10)", "'1'")}[split]
    base = take(wordy.tasks(split), [0])  # tumours by AUC, numerals by accuracy
    responses = [[fenced(fill(value)) for value in values]]
    grades = play(wordy, base, responses)
    assert grades.notes["invalid_submission"].sum() == grades.notes["crashed"].sum() == 0
    assert grades.quality[0, 0] != grades.quality[0, 1]
    for mode in (IMPROVE, DIVERGE):
        mode = np.full(2, mode)
        tokens, lengths = render_by_mode(wordy.templates, children(grades), mode, wordy.config.prompt_width)
        first, second = (wordy.decode(tokens[i][: lengths[i]]) for i in range(2))
        assert first.replace(values[0], values[1]) == second


def test_a_score_is_told_where_the_config_asks_for_it(world, wordy):
    task = lambda made: take(made.tasks("train"), [0])
    good = fragments.respond(SOUND)
    brief = mle.MlEngineering(dataclasses.replace(world.config, show_score=True))
    grades = play(brief, task(brief), [[good]])
    assert brief.feedback(children(grades)) == [fragments.score(grades.quality[0, 0])]
    told = brief.texts_of(brief.demonstrations(jax.random.key(3), 5, 32, 2)[0], "feedback")
    assert any(map(fragments.is_score, told))
    asking = mle.MlEngineering(object.__new__(mle.MleConfig))
    vars(asking.config).update(vars(wordy.config) | {"show_score": True})
    grades = play(asking, task(asking), [[good]])
    assert f"normalised {grades.quality[0, 0]:.3f} of 1" in asking.feedback(children(grades))[0]


def test_an_improvement_is_paid_by_what_was_possible(world):
    poor = fragments.respond(SOUND | {"columns": "half", "scale": "none", "model": "nearest", "call": "nearest 3"})
    first = play(world, take(world.tasks("train"), [0]), [[poor]])
    held = children(first)
    before = held.quality
    second = play(world, held, [[fragments.respond(SOUND), fragments.respond(SOUND | {"os": "none"})]], IMPROVE)
    after = second.quality
    assert after[0, 0] > before[0] > 0
    paid = reward("improvement", after, second.valid, before, np.array([IMPROVE]))
    np.testing.assert_allclose(paid, [[(after[0, 0] - before[0]) / (1 - before[0]), 0]], rtol=1e-5)
    diverged = reward("improvement", after, second.valid, before, np.array([DIVERGE]))
    np.testing.assert_allclose(diverged, after, rtol=1e-6)
    assert children(second).step.tolist() == [1, 1]


def test_a_fault_of_the_sandbox_is_no_grade(world, monkeypatch):
    fault = Result("fault", "the sandbox failed: no memory")
    monkeypatch.setattr(world.sandbox, "run", lambda jobs, owners: [fault] * len(jobs))
    grades = play(world, take(world.tasks("train"), [0]), [[fragments.respond(SOUND), ""]])
    assert grades.valid.tolist() == [[False, True]]
    assert grades.notes["faults"].tolist() == [[1.0, 0.0]]
    assert not grades.insertable.any()


def test_timeouts_are_told(data_dir):
    world = mle.MlEngineering(tiny(data_dir, domain__wall_secs=0.5, domain__train=("tumours",)).domain)
    grades = play(world, world.tasks("train"), [[fenced("while True: pass\n")]])
    assert grades.notes["timeout"].tolist() == [[1.0]]
    assert pieces(world, children(grades))["feedback"] == ["timeout\n"]


@pytest.mark.parametrize(
    ("line", "last"), [("[{}]\ttrain-rmse:0.89\n", "[399]\ttrain-rmse:0.89"), ("word " * 100 + "{}\n", "word word")]
)
def test_a_long_trace_leaves_room_for_why_the_run_failed(wordy, monkeypatch, line, last):
    stderr = "".join(map(line.format, range(400)))
    results = [Result("timeout", "more than 300 s by the clock", stderr=text) for text in (stderr, "Killed\n")]
    monkeypatch.setattr(wordy.sandbox, "run", lambda jobs, owners: results)
    grades = play(wordy, take(wordy.tasks("train"), [0]), [[fenced("a = 1\n"), fenced("b = 1\n")]])
    long, short = pieces(wordy, children(grades))["feedback"]
    assert grades.notes["trace_cut"].tolist() == [[1.0, 0.0]]
    why = "It failed: more than 300 s by the clock. The end of its error trace:\n```\n"
    assert short == why + "Killed\n```"
    assert long.startswith(why)
    assert long.endswith("\n```")
    shown = long.removeprefix(why).removesuffix("\n```")
    assert last in shown
    assert wordy.config.max_feedback_tokens - 30 < children(grades).lengths[0, PIECES.index("feedback")]


def test_the_diversity_bonus_compares_scripts_and_nothing_else(data_dir, make_history):
    """The oracle reads each solution alone, without padding, prompt or the rest of the response."""
    config = tiny(data_dir)
    assert config.algorithm.diversity_bonus
    program = make_program(config)
    params, policy = program.init_params(0), decoder_config(config)
    batch, group = config.algorithm.num_prompts, config.algorithm.group_size
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, policy.vocab_size, (batch, group, 1, 25))
    lengths = np.tile([1, 3, 0, 1], (batch, group, 1, 1))
    lengths[..., 2] = rng.integers(2, 15, (batch, group, 1))
    lengths[1, 1, 0, 2] = 0
    children = make_history(batch, group, 1, width=25, tokens=tokens, lengths=lengths)
    given = Constants(train.base_tasks(config, "train"), None)
    found = np.asarray(program.steps.embed_solutions(given, params, children, 16))
    assert found.shape == (batch, group, policy.embed_dim)
    assert not found[1, 1].any(), "no script"
    for b, g in [(0, 0), (3, 1)]:
        count = lengths[b, g, 0, 2]
        alone = tokens[b, g, 0, 4 : 4 + count][None, None]
        hidden, _ = decoder.apply(policy, params, alone, np.arange(count)[None, None], np.ones_like(alone, bool))
        np.testing.assert_allclose(found[b, g], np.asarray(hidden[0, 0]).mean(0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match='"solution": a response of the domain tool_use leaves no single solution'):
        make_program(tiny_tools(data_dir, algorithm__diversity_embedding="solution"))


@pytest.mark.parametrize("name", ["mle_r1_qwen7b", "mle_tiny"])
def test_the_configs_take_the_papers_reading(name):
    c = runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"]()
    assert (c.algorithm.reward, c.algorithm.learnability_of) == ("improvement", "reward")
    assert c.algorithm.diversity_embedding == "solution"
    assert c.domain.show_score is False
    assert c.domain.compact_descriptions is True


def test_a_warm_start_is_named_by_all_that_it_reads(data_dir):
    def name(**changes):
        return mle.make_domain(tiny(data_dir, **changes).domain).demonstrations_id

    assert set(mle.NOT_TAUGHT) < {field.name for field in dataclasses.fields(mle.MleConfig)}
    assert name(domain__wall_secs=7.0, domain__train=("tumours",)) == name()
    assert name(domain__show_score=True) != name(), "its demonstrations tell scores"
    assert name(domain__system="metric auc\n", domain__prompt_width=64) != name(domain__prompt_width=64)


def test_demonstrations_run(world):
    key = jax.random.key(3)
    history, mode, tokens, mask = world.demonstrations(key, 5, 32, 2)
    np.testing.assert_array_equal(tokens, world.demonstrations(key, 5, 32, 2)[2])
    assert {BASE, IMPROVE, DIVERGE} == set(mode.tolist())
    assert ((history.lengths[:, 2] > 0) == (mode != BASE)).all()
    scripts = world.texts(tokens, mask)
    assert all(text.startswith(fragments.SLOTS["os"]["os"]) or fragments.READ in text for text in scripts)
    assert all("```" not in text for text in scripts), "an encoder sees the script alone"
    told = world.texts_of(history, "feedback")
    assert "" in told
    assert not any(map(fragments.is_score, told))
    rng = np.random.default_rng(0)
    for row, competition in enumerate(world.competitions[name] for name in world.config.names("train")):
        drawn = [fragments.draw(competition.metric, 0.0, rng) for _ in range(2)]
        held = [fragments.draw(competition.metric, 0.3, rng) for _ in range(2)]
        mended = [fragments.mend(competition.metric, one, 0.0, rng) for one in held]
        other = [fragments.diverge(competition.metric, one, 0.0, rng) for one in held]
        assert all(a["model"] != b["model"] for a, b in zip(held, other, strict=True))
        texts = [fragments.respond(one) for one in (*drawn, *mended, *other)]
        grades = play(world, take(world.tasks("train"), [row]), [texts])
        assert grades.notes["crashed"].sum() == 0
        assert grades.notes["invalid_submission"].mean() < 0.4  # overflows of a logistic regression are its own


def test_faults_of_the_config_say_what_to_do(data_dir):
    with pytest.raises(ConfigError, match="'lions' is not one of") as error:
        tiny(data_dir, domain__train=("lions",), domain__isolation="open", domain__wall_secs=0.0, domain__brief=False)
    for part in ("isolation = 'open'", "wall_secs = 0.0", "set domain.brief"):
        assert part in str(error.value)
    with pytest.raises(ConfigError, match="sepals is both"):
        tiny(data_dir, domain__train=("sepals",))
    with pytest.raises(ConfigError, match="say by domain"):
        tiny(data_dir, domain__max_solution_tokens=10)
    with pytest.raises(DomainError, match=r"prompt_width = 12 is too narrow: improve takes up to \d+ tokens"):
        mle.make_domain(tiny(data_dir, domain__prompt_width=12).domain)
    with pytest.raises(DomainError, match="max_goal_tokens = 1"):
        assert mle.MlEngineering(tiny(data_dir, domain__debug_goal="fix it").domain).goals


def test_long_texts_are_cut(wordy):
    short = mle.MlEngineering(dataclasses.replace(wordy.config, brief=True, max_request_tokens=900))
    object.__setattr__(short.config, "brief", False)
    request = short.decode(short.requests["progression"])
    assert len(short.requests["progression"]) <= 900
    assert "\n[...]\n\n# Data files\n" in request
    assert request.startswith(short.competitions["progression"].description[:20])
    object.__setattr__(short.config, "max_request_tokens", 100)
    with pytest.raises(DomainError, match="no room for tumours"):
        assert short._request(short.competitions["tumours"])
    solution, was_cut = wordy.cut_solution(wordy.encode("é = 1\n" * 1000 + "last\n"))
    assert was_cut
    assert len(solution) == 2048
    assert wordy.decode(solution).endswith("é = 1\nlast\n")


def rows(workdir):
    own = ("time/", "grade/cached")
    return [{k: v for k, v in row.items() if not k.startswith(own)} for row in read_jsonl(workdir / "train.jsonl")]


@pytest.mark.slow
def test_resume_from_a_single_competition_is_bitwise(data_dir, tmp_path):
    config = tiny(data_dir, domain__train=("tumours",), run__warm_start_dir=str(tmp_path / "warm"))
    whole, _ = train.train(config, tmp_path / "whole")
    short = dataclasses.replace(config, run=dataclasses.replace(config.run, num_iterations=2))
    train.train(short, tmp_path / "part")
    resumed, _ = train.train(config, tmp_path / "part")
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(whole.buffer.history.tokens, resumed.buffer.history.tokens)
    assert rows(tmp_path / "part") == rows(tmp_path / "whole")
    assert {"grade/crashed", "grade/no_code"} <= set(rows(tmp_path / "whole")[-1])
    assert (np.asarray(whole.buffer.history.task)[np.asarray(whole.buffer.history.id) >= 0] == 0).all()
