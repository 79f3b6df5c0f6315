"""Domain and checkpoint that must belong together: tokenizers, lengths, tasks without a token. Nothing is compiled."""

import dataclasses
import json
import runpy

import checkpoints
import jax
import pytest
from checkpoints import FAMILIES
from small import ROOT, TINY_MATH, TINY_TOOLS
from tokenizers import Tokenizer

from exit_jax import domains
from exit_jax.config.parse import validate
from exit_jax.domains.domain import DomainError
from exit_jax.domains.math import domain as maths
from exit_jax.errors import ConfigError
from exit_jax.policy.hf.config import CheckpointError
from exit_jax.policy.shape import no_shape
from exit_jax.step.program import make_program
from exit_jax.step.requirements import longest_sequence, require_checkpoint_fits
from exit_jax.step.tasks import tasks_digest

WIDTHS = {  # the small tokenizers make a token of nearly each letter
    "domain.max_request_tokens": 150,
    "domain.max_solution_tokens": 200,
    "domain.max_tokens": 200,
    "domain.prompt_width": 800,
    "domain.num_train": 8,
}
QWEN = FAMILIES["qwen2_5"]


def write(folder, family=QWEN, **changes):
    return checkpoints.write(folder, family, checkpoints.short_template(family), **changes)


def settings(tmp_path, checkpoint, tokenizer, name="arithmetic_cpu", smaller=TINY_MATH, **changes):
    """Return a run of a text domain that starts from a checkpoint."""
    content = runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"]()
    kept = {field: value for field, value in smaller.items() if not field.startswith("policy.")}
    content.update_from_flattened_dict(kept | {"domain.data_dir": str(tmp_path / "data")} | changes)
    if checkpoint:
        content.policy.update(no_shape())
    content.checkpoint, content.domain.tokenizer = str(checkpoint), str(tokenizer)
    return validate(content, jax.device_count())


def require(config):
    require_checkpoint_fits(config, domains.make(config.domain_name, config.domain))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_of_each_family_fits_its_own_tokenizer(tmp_path, name):
    folder = write(tmp_path / name, FAMILIES[name])
    require(settings(tmp_path, folder, folder, **WIDTHS))


def test_a_run_refuses_the_tokenizer_of_another_checkpoint(tmp_path):
    """Both have 318 tokens and the same chat template."""
    ours, theirs = write(tmp_path / "ours"), write(tmp_path / "theirs")
    content = json.loads((theirs / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["x"], vocab["y"] = vocab["y"], vocab["x"]
    (theirs / "tokenizer.json").write_text(json.dumps(content))
    config = settings(tmp_path, theirs, ours, **WIDTHS)
    with pytest.raises(
        CheckpointError, match=r"domain.tokenizer = '.*ours' is not the tokenizer of .*theirs: 2 tokens"
    ):
        make_program(config)
    (tmp_path / "link").symlink_to(theirs)
    require(settings(tmp_path, theirs, tmp_path / "link", **WIDTHS))
    require(settings(tmp_path, write(tmp_path / "copy"), ours, **WIDTHS))


def test_a_checkpoint_does_not_take_the_tokenizer_that_a_domain_makes_unless_it_is_its_own(tmp_path):
    foreign = write(tmp_path / "foreign")
    with pytest.raises(CheckpointError, match=r"the tokenizer that the domain makes .* is not the tokenizer of"):
        require(settings(tmp_path, foreign, ""))
    made = maths.Math(settings(tmp_path, "", "").domain).tokenizer
    made.save_pretrained(str(foreign))  # as a policy that was trained with it is exported
    require(settings(tmp_path, foreign, ""))


@pytest.mark.parametrize(
    ("family", "fields", "field"),
    [
        ("llama3", {}, "max_position_embeddings"),
        ("qwen3", {}, "max_position_embeddings"),
        ("mistral", {"sliding_window": 64}, "max_position_embeddings"),
        ("llama3", {"max_position_embeddings": 4096}, "sliding_window"),  # which this family does not compute
        (
            "llama3",
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,  # of before the scaling, which counts no more
                }
            },
            "max_position_embeddings",
        ),
    ],
    ids=["llama", "qwen", "window", "window that is no part of it", "scaled rope"],
)
def test_a_run_stays_within_what_its_checkpoint_knows(tmp_path, family, fields, field):
    longest = WIDTHS["domain.prompt_width"] + WIDTHS["domain.max_tokens"]
    enough = write(tmp_path / "enough", FAMILIES[family], config=fields | {field: longest})
    require(settings(tmp_path, enough, enough, **WIDTHS))
    short = write(tmp_path / "short", FAMILIES[family], config=fields | {field: longest - 1})
    config = settings(tmp_path, short, short, **WIDTHS)
    with pytest.raises(
        ConfigError, match=rf"prompt_width = 800 .* up to {longest} tokens, but .*{field} = {longest - 1}"
    ):
        make_program(config)


@pytest.mark.parametrize(("steps", "longest"), [((0,), 3000 + 700), ((0, 1), 3000 + 700 + 100 + 64 + 900)])
def test_the_longest_sequence_of_episodes_is_that_of_their_evaluation(tmp_path, steps, longest):
    """A transcript; where responses are improved, what asks for that and one more response behind it."""
    changes = {
        "domain.prompt_width": 3000,
        "domain.max_context_tokens": 1800,
        "domain.max_request_tokens": 300,
        "domain.max_solution_tokens": 600,
        "domain.max_tokens": 100,
        "domain.max_transcript_tokens": 600,
        "domain.test_max_transcript_tokens": 700,
        "domain.improve": "{request}{solution}",
        "eval.steps": steps,
    }
    config = settings(tmp_path, "", write(tmp_path / "ours"), "tools_tiny", TINY_TOOLS, **changes)
    domain = domains.make(config.domain_name, config.domain)
    ask = domain.test_environment.max_ask - 900
    assert longest_sequence(config, domain) == longest + (ask - 64 if max(steps) else 0)


def test_a_task_without_a_token_is_refused(tmp_path, monkeypatch):
    folder = write(tmp_path / "ours")
    config = settings(tmp_path, "", folder, **WIDTHS)
    domain = domains.make(config.domain_name, config.domain)
    assert tasks_digest(config, "test")
    tasks = domain.tasks("test")
    tasks.lengths[3, 1] = 0
    blank = dataclasses.replace(domain, tasks=lambda split: tasks)
    monkeypatch.setattr(domains, "make", lambda *_: blank)
    with pytest.raises(ConfigError, match="1 of 8 tasks of test have a request of 0 tokens"):
        tasks_digest(config, "test")


def test_what_is_wrong_with_a_tokenizer_is_said_of_the_domain(tmp_path):
    folder = write(tmp_path / "ours")
    (folder / "tokenizer.json").unlink()
    config = settings(tmp_path, "", folder, **WIDTHS)
    with pytest.raises(DomainError, match=r"domain.tokenizer = '.*' cannot be loaded: .* holds no tokenizer.json"):
        domains.make(config.domain_name, config.domain)


def test_a_tokenizer_alone_is_enough_for_a_fresh_policy(tmp_path):
    folder = write(tmp_path / "ours")
    for name in ("config.json", "generation_config.json"):
        (folder / name).unlink()
    config = settings(tmp_path, "", folder, **WIDTHS)
    domain = domains.make(config.domain_name, config.domain)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert domain.stop_tokens == (plain.token_to_id("<|im_end|>"),)
    assert domain.vocab_size == plain.get_vocab_size() == 318


def test_demonstrations_end_in_the_token_that_the_template_closes_with(tmp_path):
    folder = write(tmp_path / "base", eos_token="<|endoftext|>")
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": plain.token_to_id("<|endoftext|>")}))
    config = settings(tmp_path, "", folder, **WIDTHS)
    domain = domains.make(config.domain_name, config.domain)
    end, document_end = (plain.token_to_id(text) for text in ("<|im_end|>", "<|endoftext|>"))
    assert domain.stop_tokens == (end, document_end)
    _, _, tokens, mask = domain.demonstrations(jax.random.key(0), 0, 4, 2)
    taught = [row[kept] for row, kept in zip(tokens.reshape(8, -1), mask.reshape(8, -1))]
    assert all(len(row) == 200 or row[-1] == end for row in taught)
    assert any(row[-1] == end for row in taught)
