"""What is exported is what was trained: `transformers` alone makes the same prompts, stops and greedy text, in all domains."""

import dataclasses
import json
import types
from typing import Any

import jax
import numpy as np
import pytest
from small import LLAMA, tiny_math, tiny_mle, tiny_tools

from exit_jax import domains
from exit_jax.algorithm.prompts import render_by_mode
from exit_jax.domains.text import chat, tokenizer
from exit_jax.domains.text.prompts import IMPROVE, IMPROVE_BY_FEEDBACK
from exit_jax.domains.text.scored import TextConfig, text_domain
from exit_jax.policy import sampler
from exit_jax.step.policy import decoder_config, evaluation_sampling
from exit_jax.step.program import make_program
from exit_jax.training import export
from exit_jax.types import BASE

MESSAGES = [
    {"role": "system", "content": "Answer in \\boxed{}."},
    {"role": "user", "content": "What is 10 + 25?\n\n# Request\nMia has 12 shells.\n"},
]


def write(config, folder):
    """Export fresh parameters; return the folder, the policy's shape and the parameters."""
    params = make_program(config).init_params(0)
    return export.write_policy(config, params, folder)[0], decoder_config(config), params


def prompt_of(domain, split="train"):
    """Return the ids of the base prompt of a split's first task."""
    history = jax.tree.map(lambda leaf: leaf[:1], domain.tasks(split))
    prompt, length = render_by_mode(domain.templates, history, np.array([BASE]), domain.prompt_width)
    return np.asarray(prompt)[0, : int(length[0])]


def greedy(config, policy, params, prompt, count):
    """Return our own greedy response, as evaluation would sample it."""
    domain = domains.make(config.domain_name, config.domain)
    settings = dataclasses.replace(config.eval, temperature=0.0)
    sampling = evaluation_sampling(settings, domain, count)
    args = params, prompt[None], np.array([prompt.size]), jax.random.key(0)
    rollouts = jax.jit(lambda *args: sampler.sample(policy, sampling, 1, *args))(*args)
    return np.asarray(rollouts.tokens)[0, 0][np.asarray(rollouts.mask)[0, 0]]


@pytest.mark.parity
@pytest.mark.parametrize("make", [tiny_math, tiny_tools, tiny_mle], ids=["arithmetic", "tools", "mle"])
def test_transformers_alone_does_the_same(require_parity, tmp_path, make):
    torch, transformers = require_parity("torch", "transformers")
    config = make(tmp_path / "data", policy__vocab_size=1200, eval__repetition_penalty=1.2, eval__temperature=0.7)
    folder, policy, params = write(config, tmp_path)
    domain = domains.make(config.domain_name, config.domain)
    found = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = prompt_of(domain)
    text = domain.tokenizer.decode(prompt)
    assert found.encode(text, add_special_tokens=False) == prompt.tolist()
    ids = lambda one: one.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert ids(found) == ids(domain.tokenizer)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == list(domain.stop_tokens)
    assert model.generation_config.repetition_penalty == 1.2
    assert model.generation_config.temperature == 0.7
    assert model.generation_config.suppress_tokens[-1] == 1199  # the padding of the vocabulary
    ours = greedy(config, policy, params, prompt, 12)
    plain = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None, "max_new_tokens": 12}
    with torch.no_grad():
        theirs = model.generate(torch.tensor(prompt[None]), **plain)[0, prompt.size :].numpy()
    np.testing.assert_array_equal(ours, theirs)
    assert found.decode(theirs) == domain.tokenizer.decode(ours)
    assert "## base" in (folder / "README.md").read_text() or make is tiny_tools


@pytest.mark.parity
def test_the_tokenizer_is_the_domains_not_the_checkpoints(require_parity, tmp_path, caplog):
    """Whatever the architecture: where AutoTokenizer would take a class of its own, as for Qwen2, it is said how to load it."""
    (transformers,) = require_parity("transformers")
    other = tokenizer.train(["Mia has 12 shells. 10 + 25 = 35\n"] * 3, 300, tmp_path / "other")
    other.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "config.json").write_text('{"model_type": "llama"}')
    changes = {"domain__tokenizer": str(tmp_path / "tokenizer"), "domain__max_request_tokens": 120}
    changes |= {"domain__prompt_width": 600, "domain__max_solution_tokens": 80, "domain__max_tokens": 60}
    for name, biased in (("llama", False), ("qwen2", True)):
        config = tiny_math(tmp_path / "data", policy__qkv_bias=biased, **changes)
        folder, *_ = write(config, tmp_path / name)
        load = transformers.PreTrainedTokenizerFast if biased else transformers.AutoTokenizer
        found = load.from_pretrained(folder)
        text = "Mia has 12 shells\n  and 10 + 25"
        assert found.encode(text) == other.encode(text)
        assert found.chat_template == other.chat_template
        assert ("PreTrainedTokenizerFast" in (folder / "README.md").read_text()) == biased
    assert "AutoTokenizer takes another class" in caplog.text


def test_sudoku_says_what_it_is(tmp_path):
    from test_train import smoke

    folder, *_ = write(smoke(), tmp_path)
    readme = (folder / "README.md").read_text()
    assert "no text" in readme
    assert "4x4 sudoku" in readme
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [8]
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "README.md")
    }


@pytest.mark.parametrize(("room", "text"), [(0, IMPROVE), (16, IMPROVE_BY_FEEDBACK)])
def test_a_default_prompt_is_told_as_it_was_used(room, text):
    settings = TextConfig(max_feedback_tokens=room)
    domain = text_domain(settings, lambda split: [{"prompt": "Hello"}], lambda task, answer: 0.5)
    names = {"name": "own", "domain_name": "own.py:make", "variant": "exit", "seed": 0, "checkpoint": ""}
    config: Any = types.SimpleNamespace(domain=settings, **names)
    readme = export.describe(config, domain, LLAMA)
    assert f"## improve\n\n```\n{text}\n```" in readme
    assert [line for line in readme.splitlines() if line.startswith("## ")] == ["## base", "## improve", "## diverge"]


@pytest.mark.parity
def test_inputs_of_a_chat_template_are_its_defaults(require_parity, tmp_path):
    (jinja,) = require_parity("jinja2")
    made = tokenizer.train(["Today is 26 Jul 2024. /no_think"] * 3, 300, tmp_path)
    made.chat_template = (
        "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
        "<|system|>Today {{ strftime_now('%d %b %Y') }}, {{ date_string }}{% if enable_thinking %}, think{% endif %}<|end|>"
        + made.chat_template
    )
    inputs = {"date_string": '26 "Jul" 2024\n', "enable_thinking": True}
    expected = chat._apply(made, MESSAGES, True, inputs)
    made.chat_template = chat.with_inputs(made, inputs)
    apply = lambda **more: made.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True, **more)
    assert apply() == expected
    assert ", think<" not in apply(enable_thinking=False)
    assert jinja
