"""Test what may come next: against the logits processors of transformers, and by hand, through every way of sampling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import LLAMA, random_params

from exit_jax.policy import choice, decode, decoder, prefill, sampler
from exit_jax.policy.choice import SamplingConfig
from exit_jax.policy.stops import StopText

VOCAB, STOPS = 23, (5, 11)
POLICY = dataclasses.replace(LLAMA, vocab_size=VOCAB, tie_embeddings=False)
PROMPT_BP = np.random.default_rng(0).integers(VOCAB, size=(4, 5))
LENGTH_B = np.array([5, 1, 3, 4])
PARAMS = random_params(POLICY)  # here, since what is made within jit may not be kept
GREEDY = SamplingConfig(max_tokens=7, stop_tokens=(5,), temperature=0.0, repetition_penalty=1.3)


@pytest.mark.parity
@pytest.mark.parametrize(
    "rules",
    [
        {"repetition_penalty": 1.05},
        {"repetition_penalty": 0.8},
        {"min_tokens": 4},
        {"suppress_tokens": (0, 3, VOCAB - 1)},
        {"top_k": 6, "top_p": 0.7, "min_p": 0.1},
        {"top_p": 0.6, "min_p": 0.3},
        {"repetition_penalty": 1.4, "min_tokens": 9, "suppress_tokens": (2,), "top_k": 9, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_the_distribution_is_that_of_transformers(require_parity, rules):
    """Of 64 rows with prompts of 6 tokens, at their first, fourth and tenth own token."""
    torch, process = require_parity("torch", "transformers.generation.logits_process")
    config = SamplingConfig(16, STOPS, temperature=0.6, **rules)
    rng = np.random.default_rng(1)
    logits, prompt, own = (
        rng.normal(0, 3, (64, VOCAB)),
        rng.integers(VOCAB, size=(64, 6)),
        rng.integers(20, size=(64, 16)),
    )
    logits = logits.astype(np.float32)
    theirs = process.LogitsProcessorList()
    if config.repetition_penalty != 1.0:
        theirs.append(process.RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.min_tokens:
        theirs.append(process.MinNewTokensLengthLogitsProcessor(6, config.min_tokens, torch.tensor(STOPS)))
    if config.suppress_tokens:
        theirs.append(process.SuppressTokensLogitsProcessor(config.suppress_tokens))
    theirs.append(process.TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        theirs.append(process.TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        theirs.append(process.TopPLogitsWarper(config.top_p))
    if config.min_p:
        theirs.append(process.MinPLogitsWarper(config.min_p))
    for position in (0, 3, 9):
        held = np.concatenate([prompt, own[:, :position]], axis=1)
        expected = torch.softmax(theirs(torch.tensor(held), torch.tensor(logits)), -1).numpy()
        seen = choice.mark(
            jnp.zeros((64, 1, VOCAB), bool), jnp.asarray(held)[:, None], jnp.ones((64, 1, held.shape[1]), bool)
        )
        allowed = choice.allow(config, jnp.asarray(logits)[:, None], jnp.asarray(own)[:, None], position, seen)
        kept = choice.truncate(allowed / config.temperature, config.top_k, config.top_p, config.min_p)
        np.testing.assert_allclose(jax.nn.softmax(kept, axis=-1)[:, 0], expected, atol=2e-6)
        plain = jax.nn.softmax(jnp.asarray(logits) / config.temperature, axis=-1)
        assert np.abs(plain - expected).max() > 0.01 or (list(rules) == ["min_tokens"] and position == 9)


@jax.jit
def _read(tokens, params):
    position = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
    hidden, _ = decoder.apply(POLICY, params, tokens, position, jnp.ones(tokens.shape, bool))
    return decoder.logits(POLICY, params, hidden)


def greedy_by_hand(prompt: list[int], count: int, stop: int, penalty: float) -> list[int]:
    """Take the likeliest token time and again, after the penalty on the logits of all tokens so far (CTRL, §4.1)."""
    held = list(prompt)
    while len(held) < len(prompt) + count and (len(held) == len(prompt) or held[-1] != stop):
        row = np.array([[held + [0] * (24 - len(held))]])
        logits = np.array(_read(row, PARAMS)[0, 0, len(held) - 1])
        for token in set(held):
            logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
        held.append(int(logits.argmax()))
    return held[len(prompt) :]


def found(rollouts):
    return [
        [t[m].tolist() for t, m in zip(*rows)] for rows in zip(np.asarray(rollouts.tokens), np.asarray(rollouts.mask))
    ]


@jax.jit
def _sample(key):
    return sampler.sample(POLICY, GREEDY, 3, PARAMS, PROMPT_BP, LENGTH_B, key)


def test_the_penalty_counts_prompt_and_own_tokens_of_each_row():
    rows = found(_sample(jax.random.key(0)))
    for b, group in enumerate(rows):
        prompt = PROMPT_BP[b, : LENGTH_B[b]].tolist()
        assert group == [greedy_by_hand(prompt, 7, 5, 1.3)] * 3
        assert any(greedy_by_hand(PROMPT_BP[i, : LENGTH_B[i]].tolist(), 7, 5, 1.0) != rows[i][0] for i in range(4))


def test_the_penalty_in_slots_and_across_turns():
    """A slot that is refilled forgets the response before; a turn counts what was said and observed before it."""
    hot = dataclasses.replace(GREEDY, temperature=0.7, repetition_penalty=2.0)
    run = jax.jit(sampler.sample, static_argnums=(0, 1, 2, 7))
    args = POLICY, hot, 5, PARAMS, PROMPT_BP, LENGTH_B, jax.random.key(1)
    assert found(run(*args, 0)) == found(run(*args, 2))

    observed, count = np.random.default_rng(5).integers(VOCAB, size=(4, 1, 4)), np.array([[4], [0], [2], [3]])

    @jax.jit
    def converse(key):
        cursor = prefill.start(POLICY, PARAMS, 1, 24, PROMPT_BP, LENGTH_B, GREEDY.counts_repeats)
        cursor, first = decode.generate(POLICY, GREEDY, PARAMS, cursor, key)
        cursor = prefill.extend(POLICY, PARAMS, cursor, observed, count)
        return first, decode.generate(POLICY, GREEDY, PARAMS, cursor, key)[1]

    first, second = map(found, converse(jax.random.key(0)))
    for b in range(4):
        before = [*PROMPT_BP[b, : LENGTH_B[b]].tolist(), *first[b][0], *observed[b, 0, : count[b, 0]].tolist()]
        assert second[b][0] == greedy_by_hand(before, 7, 5, 1.3)


def test_stop_sequences_are_held_back_like_stop_tokens():
    """No response ends, nor says a stop sequence, before its time; in slots, too."""
    free = SamplingConfig(max_tokens=10, stop_tokens=(), temperature=1.5)
    run = jax.jit(sampler.sample, static_argnums=(0, 1, 2, 7))
    sample = lambda config, slots=0: run(POLICY, config, 16, PARAMS, PROMPT_BP, LENGTH_B, jax.random.key(2), slots)
    common = np.bincount(np.asarray(sample(free).tokens).ravel()).argsort()[::-1].tolist()
    pair, single = (common[0], common[1]), (common[2],)
    late = dataclasses.replace(free, stop_sequences=(pair, single), min_tokens=5)
    rows = found(sample(late))
    ends = lambda row: tuple(row[-2:]) == pair or row[-1:] == list(single)
    for row in (row for group in rows for row in group):
        assert len(row) == 10 or len(row) > 5
        assert [t for t in range(len(row)) if ends(row[: t + 1])] in ([], [len(row) - 1])
    assert {len(row) for group in rows for row in group} > {6, 10}
    assert found(sample(late, 3)) == rows


def test_only_the_last_token_of_a_stop_sequence_is_held_back_and_only_after_its_others():
    """Of the tokens 4 1 4 with the sequences 4 6 and 8, and no end among the first three."""
    config = SamplingConfig(10, (5,), 1.0, min_tokens=3, stop_sequences=((4, 6), (8,)))
    held_back = {0: {5, 8}, 1: {5, 6, 8}, 2: {5, 8}, 3: set()}
    tokens = jnp.zeros((1, 1, 10), int).at[0, 0, :3].set(jnp.array([4, 1, 4]))
    for position, ids in held_back.items():
        logits = choice.allow(config, jnp.zeros((1, 1, VOCAB)), tokens, position, None)[0, 0]
        assert set(np.flatnonzero(np.isneginf(logits)).tolist()) == ids


def test_what_would_complete_a_stop_text_is_held_back():
    """Of the tokens a, b, ab, c and an id without a text, after "c a": b and ab end in "ab"."""
    config = SamplingConfig(6, (), 1.0, min_tokens=3, stop_text=StopText.of("ab", ["a", "b", "ab", "c", None]))
    tokens = jnp.zeros((1, 1, 6), int).at[0, 0, :2].set(jnp.array([3, 0]))
    for position, ids in {0: {2}, 1: {2}, 2: {1, 2}, 3: set()}.items():
        logits = choice.allow(config, jnp.zeros((1, 1, 6)), tokens, position, None)[0, 0]
        assert set(np.flatnonzero(np.isneginf(logits)).tolist()) == ids


def test_ids_that_no_token_has_are_in_no_response_no_probability_and_no_gradient():
    """A hole and the padding of a vocabulary, in the sampler and the learner, against a softmax over the other ids."""
    unused = np.isin(np.arange(VOCAB), (3, 4, 20, 21, 22))
    padded = dataclasses.replace(POLICY, unused_ids=((3, 5), (20, 23)))
    hot = SamplingConfig(max_tokens=8, stop_tokens=(5,), temperature=1.5)
    favoured = PARAMS["head"]["kernel"].at[:, 21].mul(3.0)  # so that padding would often be the likeliest
    params = PARAMS | {"head": {"kernel": favoured}}
    run = jax.jit(lambda params, key: sampler.sample(padded, hot, 16, params, PROMPT_BP, LENGTH_B, key))
    rollouts = run(params, jax.random.key(3))
    assert not unused[np.asarray(rollouts.tokens)[np.asarray(rollouts.mask)]].any()

    def loss(params):
        scores = sampler.logprobs(padded, 1.5, 3, params, PROMPT_BP, LENGTH_B, rollouts.tokens)
        return sum(jnp.where(rollouts.mask, x, 0.0).sum() for x in scores), scores

    (_, (logp, entropy)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(np.where(rollouts.mask, logp, 0.0), rollouts.logp, atol=5e-6)
    grad = np.asarray(grads["head"]["kernel"])
    assert np.isfinite(grad).all()
    assert not grad[:, unused].any()
    assert (np.abs(grad[:, ~unused]).max(0) > 0).all()

    mass = []
    for b, first in enumerate(np.asarray(rollouts.tokens[:, 0, 0])):
        prompt = PROMPT_BP[b, : LENGTH_B[b]].tolist()
        logits = np.float64(_read(np.array([[prompt + [0] * (24 - len(prompt))]]), params)[0, 0, len(prompt) - 1]) / 1.5
        mass.append(np.exp(logits[unused]).sum() / np.exp(logits).sum())
        exact = logits - np.log(np.exp(logits[~unused]).sum())
        np.testing.assert_allclose(logp[b, 0, 0], exact[first], rtol=1e-5)
        np.testing.assert_allclose(entropy[b, 0, 0], -(np.exp(exact) * exact)[~unused].sum(), rtol=1e-5)
    assert max(mass) > 0.1, "without a mask these ids would be sampled"
