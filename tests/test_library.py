"""The functions of run.py as a notebook calls them: train, evaluate, and improve on a checkpoint and on a workdir."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import checkpoints
import numpy as np
import pytest
from small import LLAMA, ROOT, random_params, tiny_gym, tiny_math, tiny_tools

import exit_jax
from exit_jax import domains, run
from exit_jax.config import default
from exit_jax.domains.task.prompts import SPLIT, Asked, make_domain
from exit_jax.errors import UserError
from exit_jax.evaluation import asking, programs
from exit_jax.policy.hf import config as hf_config
from exit_jax.policy.hf.export import export
from exit_jax.step.policy import decoder_config
from exit_jax.types import Instances, Rollouts
from exit_jax.workdir.metrics import read_jsonl

REWARD = """
def score(prompt, completion, answer):
    hits = sum(a == b for a, b in zip(completion, answer))
    return {"quality": hits / len(answer), "feedback": f"{len(completion)} of {len(answer)} letters for {prompt}"}
"""
WORDS = ("lamp", "rope", "fish", "tree", "moon", "gold", "wind", "salt", "bird", "corn", "frog", "desk")
SMALL = {
    "domain.max_request_tokens": 24,
    "domain.max_tokens": 8,
    "domain.max_feedback_tokens": 40,
    "domain.num_test": 5,
    "domain.reward_workers": 1,
    "domain.gold_column": "answer",
    "policy.num_layers": 1,
    "policy.embed_dim": 16,
    "policy.num_heads": 2,
    "policy.num_kv_heads": 1,
    "policy.head_dim": 8,
    "policy.mlp_dim": 32,
    "policy.dtype": "float32",
    "policy.remat": "none",
    "policy.decode_stages": 1,
    "warm_start.num_steps": 2,
    "warm_start.num_states": 4,
    "algorithm.num_prompts": 4,
    "algorithm.group_size": 2,
    "algorithm.buffer_size": 16,
    "algorithm.min_buffer_size": 2,
    "eval.steps": (0, 1, 2),
    "eval.samples_per_task": 1,
    "eval.batch_size": 3,
    "run.num_iterations": 2,
    "run.checkpoint_every": 1,
    "run.mesh.data": 1,
}


def write_task(folder):
    """Write rows and a reward as a notebook does."""
    rows = [{"prompt": f"Spell {word} backwards", "answer": word[::-1]} for word in WORDS]
    (folder / "words.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "letters.py").write_text(REWARD)


def task(**changes):
    c = default("task", name="words")
    c.domain.tasks, c.domain.reward = ("words.jsonl",), ("letters.py:score",)
    c.update_from_flattened_dict(SMALL | {name.replace("__", "."): value for name, value in changes.items()})
    return c


@pytest.fixture
def folder(own_folder, monkeypatch):
    """Return a working directory with a task."""
    write_task(own_folder)
    monkeypatch.chdir(own_folder)
    return own_folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a folder with a task and a run of it in its default workdir, and the evaluation that was returned."""
    folder, before = tmp_path_factory.mktemp("library"), pathlib.Path.cwd()
    write_task(folder)
    os.chdir(folder)
    try:
        return folder, run.train(task())
    finally:
        os.chdir(before)


@pytest.fixture
def trained(whole, monkeypatch):
    """Return the same; its folder is the working directory."""
    monkeypatch.chdir(whole[0])
    return whole


@pytest.fixture(scope="module", params=["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def checkpoint(tmp_path_factory, request):
    """Return a random checkpoint of Qwen2's shape, with tokenizer and chat template, stored in a dtype."""
    folder = tmp_path_factory.mktemp("qwen")
    source = checkpoints.make(folder / "source", "qwen2_5")
    shape = dataclasses.replace(LLAMA, **hf_config.read(source))
    export(random_params(shape), shape, folder / "whole", source, request.param)
    for file in source.glob("*"):
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, folder / "whole")
    return folder / "whole"


# train and evaluate


@pytest.mark.slow
def test_a_config_is_trained_in_the_folder_that_the_command_line_names(trained):
    folder, results = trained
    workdir = folder / "runs/words-exit-seed0"
    assert json.loads((workdir / "evaluation.json").read_text()) == results
    assert run.evaluate(task()) == results
    assert run.train(task(), workdir) == results, "there is nothing left to do"
    assert (workdir / "checkpoints/2").exists()


@pytest.mark.slow
def test_the_command_line_is_a_user_of_the_same_functions(trained):
    folder, results = trained
    (folder / "words_config.py").write_text(
        "from exit_jax.config import default\n"
        f"SMALL = {SMALL!r}\n"
        "def get_config(arg=''):\n"
        "    c = default('task', name='words')\n"
        "    c.domain.tasks, c.domain.reward = ('words.jsonl',), ('letters.py:score',)\n"
        "    c.update_from_flattened_dict(SMALL)\n"
        "    return c\n"
    )
    command = [sys.executable, "-m", "exit_jax.main", "--config", "words_config.py", "--mode", "evaluate"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "runs/words-exit-seed0/evaluation.json").read_text()) == results


def test_all_faults_are_told_at_once(folder):
    with pytest.raises(exit_jax.config.ConfigError, match="2 fault"):
        run.train(task(algorithm__group_size=1, domain__reward=()))
    with pytest.raises(UserError, match=r"config = 'configs/task.py' is a str"):
        run.train("configs/task.py")
    with pytest.raises(UserError, match="holds no run; train first"):
        run.evaluate(task(), "nowhere")


def test_a_function_of_the_notebook_itself_is_refused_with_the_remedy(folder):
    def score(prompt, completion):
        return 1.0

    content = task()
    content.domain.reward = (score,)
    with pytest.raises(UserError, match=r"domain\.reward\[0\] .* is a function.*%%writefile.*file\.py:function"):
        run.train(content)
    with pytest.raises(UserError, match=r"__main__:score.*%%writefile"):
        run.train(task(domain__reward=("__main__:score",)), "elsewhere")


def test_files_that_are_written_anew_are_read_anew(folder):
    """A notebook's process outlives them: another workdir is of what they hold now, not of what it has seen of them."""
    none = {"warm_start__num_steps": 0, "run__num_iterations": 0, "eval__steps": (0,)}
    first = run.train(task(**none), "first")
    (folder / "letters.py").write_text("def score(completion): return 1.0  # whatever it says\n")
    second = run.train(task(**none), "second")
    quality = lambda results: results["splits"]["test"]["scaffolds"]["chain"]["quality"]
    assert quality(first)[0] < 1.0
    assert quality(second) == [1.0]
    with (folder / "words.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "Spell snow backwards", "answer": "wons"}) + "\n")
    run.train(task(**none), "third")
    second, third = (json.loads((folder / name / "tasks.json").read_text()) for name in ("second", "third"))
    assert second != third


# improve


def test_base_answers_are_those_of_transformers(checkpoint, require_parity):
    torch, transformers = require_parity("torch", "transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    chats = [
        [{"role": "user", "content": "What is 1 + 2?"}],
        [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Improve the response."},
            {"role": "assistant", "content": "It is 3"},
            {"role": "user", "content": "What is 3, not 345?"},
        ],
    ]
    answers = run.improve(checkpoint, ["What is 1 + 2?", chats[1]], 0, temperature=0.0, max_tokens=9, dtype="float32")
    for chat, (ours,) in zip(chats, answers, strict=True):
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        plain = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None, "max_new_tokens": 9}
        plain["suppress_tokens"] = [*range(len(tokenizer), model.config.vocab_size)]  # padding of the vocabulary
        with torch.no_grad():
            theirs = model.generate(**ids, **plain)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(theirs, skip_special_tokens=True).strip() == ours
        assert ours


def test_a_checkpoint_improves_its_answers(checkpoint):
    asked = [f"What is {n} + 2?" for n in range(5)]
    said = []

    def feedback(prompt, answer):
        said.append((prompt, answer))
        return "It is 3."

    settings = {"max_tokens": 6, "dtype": "float32", "temperature": 1.0}
    plain = run.improve(checkpoint, asked, 2, **settings)
    assert [len(answers) for answers in plain] == [3] * 5
    assert plain == run.improve(str(checkpoint), asked, 2, **settings), "the same call, the same answers"
    assert plain != run.improve(checkpoint, asked, 2, seed=1, **settings)
    told = run.improve(checkpoint, asked, 1, feedback=feedback, **settings)
    assert [answers[0] for answers in told] == [answers[0] for answers in plain], "first answers know no feedback"
    assert [answers[1] for answers in told] != [answers[1] for answers in plain]
    assert {(prompt, answer) for prompt, answer in said} == {
        (prompt, answer) for prompt, answers in zip(asked, told) for answer in answers
    }


@pytest.mark.slow
def test_other_prompts_of_about_the_same_length_compile_nothing(checkpoint):
    settings = {"max_tokens": 6, "dtype": "float32"}
    run.improve(checkpoint, ["What is 1 + 2?", "It is 3"], 1, **settings)
    before = programs.respond.cache_info().misses
    run.improve(checkpoint, ["Improve the response.", "What is 3 + 4?"], 1, seed=2, **settings)
    assert programs.respond.cache_info().misses == before


@pytest.mark.slow
def test_a_workdir_answers_as_its_evaluation_did(trained):
    """Of the same rows by the same seed, also in a second batch that is not full."""
    folder, _ = trained
    workdir = folder / "runs/words-exit-seed0"
    rows = [row for row in read_jsonl(workdir / "answers/test.jsonl", "chain")]
    count = 1 + max(row["chain"] for row in rows)
    prompts = [next(row["request"] for row in rows if row["chain"] == i) for i in range(count)]
    stored = [
        [row["text"] for k in range(3) for row in rows if (row["chain"], row["k"]) == (i, k)] for i in range(count)
    ]

    def feedback(prompt, answer):
        return f"{len(answer)} of 4 letters for {prompt}"

    assert run.improve(workdir, prompts, 2, feedback=feedback, batch_size=3) == stored
    assert len(set(map(tuple, stored))) == count
    assert run.improve(workdir, prompts, 2) != stored, "without its feedback"


@pytest.mark.slow
def test_an_export_answers_as_its_workdir_does(trained):
    folder, _ = trained
    workdir = folder / "runs/words-exit-seed0"
    whole, *_ = run.export(task(run__export_dtype="float32"))
    settings = {"max_tokens": 8, "temperature": 0.0, "dtype": "float32", "batch_size": 8}
    asked = ["Spell moss backwards", [{"role": "user", "content": "Spell lake backwards"}]]
    by_workdir = run.improve(workdir, asked, 1, **settings, data=1)
    assert run.improve(whole, asked, 1, **settings, data=1) == by_workdir


@pytest.mark.slow
def test_a_run_that_began_from_a_checkpoint(checkpoint, folder):
    """Its shape is the checkpoint's, its sampling what the run was evaluated with, unless changed."""
    c = default("task", name="qwen", checkpoint=str(checkpoint))
    shape = ("num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
    changes = {name: value for name, value in SMALL.items() if name.removeprefix("policy.") not in shape}
    changes |= {"domain.tokenizer": str(checkpoint), "domain.max_request_tokens": 64, "warm_start.num_steps": 0}
    c.update_from_flattened_dict(changes | {"run.num_iterations": 1, "run.export_dtype": "float32"})
    c.domain.tasks, c.domain.reward = ("words.jsonl",), ("letters.py:score",)
    run.train(c, "qwen")
    asked, settings = ["Spell moss backwards", "Spell lake backwards"], {"temperature": 0.0, "dtype": "float32"}
    answers = run.improve("qwen", asked, 1, **settings)
    whole, *_ = run.export(c, "qwen")
    assert run.improve(whole, asked, 1, **settings, max_tokens=8, data=1) == answers
    with pytest.raises(UserError, match=r"run\.mesh\.fsdp = 'x' is a str"):
        run.improve("qwen", asked, 1, fsdp="x")


FAULTS = [
    (["a", ""], {}, "prompts\\[1\\]: empty prompt"),
    (
        ["a", [{"role": "system", "content": "b"}], 3],
        {},
        "(?s)2 prompt.*prompts\\[1\\].*prompts\\[2\\]: prompt: neither",
    ),
    (["a", "b " * 4000], {}, "prompts\\[1\\]: its longest prompt, with an answer to improve takes 8\\d+ tokens of 35"),
    (["a", "b c d"], {"max_request_tokens": 2}, "prompts\\[1\\]: its last message takes \\d+ tokens of 2"),
    ("a", {}, "prompts = 'a' is no list"),
    ([], {}, "at least one"),
    (["a"], {"k": -1}, "k = -1 is no number"),
    (["a"], {"temprature": 1.0}, "temprature: no such setting; did you mean temperature"),
    (["a"], {"temperature": -1.0, "top_p": 2.0}, "(?s)2 fault.*eval.temperature.*eval.top_p"),
    (["a"], {"temperature": "hot"}, "eval.temperature = 'hot' is a str"),
    (["a"], {"fsdp": 16}, "run.mesh takes"),
    (["a"], {"improve": "{request}: {solution}", "feedback": lambda *_: ""}, "does not show the feedback"),
    (["a"], {"improve": "{request}: {answer}"}, "domain.improve: .*'answer'"),
]


@pytest.mark.parametrize(("prompts", "settings", "words"), FAULTS, ids=[words[:30] for _, _, words in FAULTS])
def test_faults_are_told_before_anything_compiles(checkpoint, prompts, settings, words, monkeypatch):
    monkeypatch.setattr("exit_jax.evaluation.asking.load_policy", lambda config: pytest.fail("weights were loaded"))
    with pytest.raises(UserError, match=words):
        run.improve(checkpoint, prompts, **{"k": 1} | settings)


@pytest.mark.parametrize(
    ("feedback", "words"),
    [
        (lambda prompt, answer: answer / 2, r"feedback on prompts\[0\]: .*test_library.py, line \d+, raises TypeError"),
        (lambda prompt, answer: 3, r"feedback on prompts\[0\] is 3, a int; it should be a text"),
    ],
)
def test_feedback_that_fails_is_one_error(feedback, words):
    """Not an evaluation that stops for want of a verifier."""
    about = {"prompts": ["What is 1?"], "feedback": feedback, "max_request_tokens": 0}
    domain = make_domain(Asked(**about, max_tokens=4))
    history = domain.tasks(SPLIT)
    instances = Instances(history, np.zeros(1, np.int32), None, None, None, None)
    tokens = np.array([[domain.tokenizer.encode("2")]], np.int32)
    rollouts = Rollouts(tokens, np.ones_like(tokens, bool), None, None, np.ones((1, 1), bool), None)
    with pytest.raises(UserError, match=words):
        domain.grade(instances, rollouts)


@pytest.mark.parametrize("make", [tiny_math, tiny_gym], ids=["math", "gym"])
def test_other_domains_of_text_bring_their_words_along(make, tmp_path):
    if make is tiny_gym:
        pytest.importorskip("reasoning_gym")
    config = make(tmp_path, policy__dtype="bfloat16")
    asked = asking.make_config(
        asking.source_of_run(config), ["What is 1 + 2?"], 3, 7, None, {"policy.dtype": "float32"}
    )
    domain = domains.make(asked.domain_name, asked.domain)
    assert domain.tokenizer is domains.make(config.domain_name, config.domain).tokenizer
    assert (domain.max_tokens, asked.eval.seed, asked.seed) == (config.domain.max_tokens, 7, config.seed)
    assert domain.messages["base"] == config.domain.base
    shape = lambda of: dataclasses.replace(decoder_config(of), dtype="")
    assert shape(asked) == shape(config)


def test_what_is_no_checkpoint_of_text(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        run.improve(tmp_path / "absent", ["a"], 1)
    (tmp_path / "config.json").write_text(json.dumps({"config": {"policy": {}}, "versions": {}}))
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        run.improve(tmp_path, ["a"], 1)
    from exit_jax.workdir.identity import open_workdir

    open_workdir(tmp_path / "tools", tiny_tools(tmp_path / "data"))
    with pytest.raises(UserError, match="tool_use plays episodes of several turns"):
        run.improve(tmp_path / "tools", ["a"], 1)
