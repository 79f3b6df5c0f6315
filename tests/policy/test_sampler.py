"""Test the sampler: against the learner, NumPy and greedy search, and that a row depends on nothing but itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import LLAMA, random_params

from exit_jax.parallel import mesh as meshes
from exit_jax.policy import choice, decode, decoder, prefill, sampler
from exit_jax.policy.choice import SamplingConfig

POLICY = dataclasses.replace(LLAMA, vocab_size=11, tie_embeddings=False)
STOP = 7
PLAIN = SamplingConfig(max_tokens=6, stop_tokens=(STOP,), temperature=0.7)
LONG = dataclasses.replace(PLAIN, max_tokens=12)
LENGTH_B = np.array([5, 1, 3, 2, 4, 5, 2, 3])
PROMPT_BP = np.random.default_rng(0).integers(11, size=(8, 5))


def params():
    return random_params(POLICY, seed=1)


@functools.partial(jax.jit, static_argnums=(0, 1, 6))
def _sample(sampling, group_size, params, prompt_BP, length_B, key, num_slots=0):
    return sampler.sample(POLICY, sampling, group_size, params, prompt_BP, length_B, key, num_slots)


def sample(sampling=PLAIN, group_size=4, seed=0, rows=slice(8), num_slots=0):
    return _sample(sampling, group_size, params(), PROMPT_BP[rows], LENGTH_B[rows], jax.random.key(seed), num_slots)


_logprobs = jax.jit(sampler.logprobs, static_argnums=(0, 2))


def logprobs(tokens_BGT, temperature=PLAIN.temperature):
    return _logprobs(POLICY, temperature, 0, params(), PROMPT_BP, LENGTH_B, tokens_BGT)


def logprobs_of_all(prefix_BT, temperature=PLAIN.temperature):
    """Return the learner's log-probs [B, V] of every token behind each prefix of fewer than 6 tokens."""
    B, T = prefix_BT.shape
    tokens_BVT = np.zeros((B, 11, 6), int)
    tokens_BVT[..., :T] = prefix_BT[:, None]
    tokens_BVT[..., T] = np.arange(11)
    return np.asarray(logprobs(tokens_BVT, temperature)[0][..., T], np.float64)


def test_logp_is_the_learners():
    """The two run matmuls of other shapes (one token a step, or all at once), so float32 sums round differently."""
    gaps = []
    for seed in range(20):
        rollouts = sample(seed=seed)
        logp_BGT, _ = logprobs(rollouts.tokens)
        gaps.append(np.abs(np.where(rollouts.mask, logp_BGT - rollouts.logp, 0.0)).max())
    assert max(gaps) < 5e-6  # 7e-7 measured


def test_entropy_is_that_of_the_distribution():
    tokens_BGT = np.asarray(sample().tokens)
    _, entropy_BGT = logprobs(tokens_BGT)
    for t in range(6):
        logp_BV = logprobs_of_all(tokens_BGT[:, 0, :t])
        np.testing.assert_allclose(np.exp(logp_BV).sum(1), 1.0, rtol=1e-5)
        np.testing.assert_allclose(entropy_BGT[:, 0, t], -(np.exp(logp_BV) * logp_BV).sum(1), rtol=1e-5)


def test_zero_temperature_and_top_1_are_the_argmax_chain():
    greedy = sample(dataclasses.replace(PLAIN, temperature=0.0))
    top_1 = sample(dataclasses.replace(PLAIN, top_k=1), seed=1)
    np.testing.assert_array_equal(greedy.tokens, top_1.tokens)
    np.testing.assert_array_equal(top_1.sampled_logp, 0.0)
    np.testing.assert_array_equal(greedy.sampled_logp, 0.0)
    chain_BT = np.zeros((8, 0), int)
    for _ in range(6):
        ended_B = (chain_BT == STOP).any(1)
        best_B = np.where(ended_B, 0, logprobs_of_all(chain_BT).argmax(1))
        chain_BT = np.concatenate([chain_BT, best_B[:, None]], axis=1)
    np.testing.assert_array_equal(greedy.tokens, chain_BT[:, None].repeat(4, 1))
    assert len(np.unique(chain_BT)) > 3


def test_truncation_keeps_the_support_of_a_numpy_oracle():
    def kept(logits_V, top_k, top_p):
        """Keep a token if fewer than k are likelier, and of those if the likelier ones hold less than p; ties stay."""
        likelier_VV = logits_V[None] > logits_V[:, None]
        inside_V = (likelier_VV.sum(1) < top_k) | (top_k == 0)
        probability_V = np.where(inside_V, np.exp(logits_V - logits_V.max()), 0.0)
        return inside_V & (likelier_VV @ probability_V < top_p * probability_V.sum())

    rng = np.random.default_rng(2)
    logits_NV = np.float32([*rng.normal(0, 2, (50, 11)), *rng.integers(0, 4, (50, 11))])  # the latter: ties
    for top_k in (0, 1, 3, 10, 11, 99):
        for top_p in (1.0, 0.93, 0.5, 0.01):
            kept_NV = np.array([kept(logits_V, top_k, top_p) for logits_V in logits_NV])
            truncated_NV = choice.truncate(jnp.asarray(logits_NV), top_k, top_p)
            np.testing.assert_array_equal(truncated_NV, np.where(kept_NV, logits_NV, -np.inf), f"{top_k=} {top_p=}")


def test_logp_is_that_of_the_truncated_distribution():
    logits_BGV = jnp.float32(np.random.default_rng(3).normal(0, 2, (8, 4, 11)))
    top_3 = dataclasses.replace(PLAIN, top_k=3)
    keys = jax.random.split(jax.random.key(0), (8, 4))
    token_BG, whole_BG, logp_BG = choice.sample_token(top_3, logits_BGV, logits_BGV, keys)
    kept_BGV = logits_BGV >= jnp.sort(logits_BGV)[..., -3:-2]
    weight_BGV = np.where(kept_BGV, np.exp(logits_BGV / top_3.temperature), 0.0)
    weight_BG = np.take_along_axis(weight_BGV, np.asarray(token_BG)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(np.exp(logp_BG), weight_BG / weight_BGV.sum(-1), rtol=1e-5)
    every_BG = np.exp(logits_BGV / top_3.temperature).sum(-1)
    np.testing.assert_allclose(np.exp(whole_BG), weight_BG / every_BG, rtol=1e-5)


def test_first_tokens_are_as_frequent_as_their_probabilities():
    count, rows = 20_000, slice(1)
    tokens = sample(dataclasses.replace(PLAIN, max_tokens=2), group_size=count, rows=rows).tokens[0, :, 0]
    frequency_V = np.bincount(tokens, minlength=11) / count

    logp_V = logprobs_of_all(np.zeros((8, 0), int), temperature=1.0)[0]

    def deviation(temperature):
        """Return the largest distance from a token's probability, in standard deviations of its frequency."""
        p_V = np.exp(logp_V / temperature) / np.exp(logp_V / temperature).sum()
        return (np.abs(frequency_V - p_V) / np.sqrt(p_V * (1 - p_V) / count)).max()

    assert deviation(0.7) < 4  # a right sampler exceeds it with one seed in 1,400
    assert deviation(0.8) > 8


def test_finished_rows_hold_the_stop_token_and_nothing_behind_it():
    rollouts = sample(LONG, group_size=4)
    lengths = set()
    for tokens_T, mask_T, logp_T, finished in zip(
        *(np.asarray(x).reshape(32, -1) for x in (rollouts.tokens, rollouts.mask, rollouts.logp, rollouts.finished))
    ):
        length = tokens_T.tolist().index(STOP) + 1 if finished else 12
        assert (STOP in tokens_T) == finished
        np.testing.assert_array_equal(mask_T, np.arange(12) < length)
        assert not tokens_T[length:].any()
        assert not logp_T[length:].any()
        assert (logp_T[:length] < 0).all()
        lengths.add(length)
    assert {1, 12} < lengths
    assert rollouts.tokens.dtype == jnp.int32


@pytest.mark.parametrize(("stops", "passes"), [(True, 1), (False, 6)])
def test_decoding_ends_with_the_last_row(monkeypatch, stops, passes):
    """Once all rows have stopped, no further pass is made: here after the prompt's own."""
    tree = jax.tree.map(lambda leaf: leaf, params())
    tree["embedding"] = tree["embedding"].at[:, 0].set(1e3)  # so the final norm gives 4 in the first place, always
    tree["final_norm"]["scale"] = jnp.ones(16)
    tree["head"]["kernel"] = jnp.zeros((16, 11)).at[0, STOP if stops else 3].set(100.0)
    calls, apply = [], decoder.apply

    def counted(*args, **more):
        jax.debug.callback(lambda: calls.append(1))
        return apply(*args, **more)

    monkeypatch.setattr(decoder, "apply", counted)
    run = jax.jit(functools.partial(sampler.sample, POLICY, PLAIN, 4))
    rollouts = run(tree, PROMPT_BP, LENGTH_B, jax.random.key(0))
    jax.effects_barrier()
    assert len(calls) == passes
    first, rest = (STOP, 0) if stops else (3, 3)
    np.testing.assert_array_equal(rollouts.tokens, np.broadcast_to([first] + 5 * [rest], (8, 4, 6)))
    np.testing.assert_array_equal(rollouts.mask.sum(-1), 1 if stops else 6)
    np.testing.assert_array_equal(rollouts.finished, stops)


def test_a_row_is_the_same_with_and_without_others():
    eight, four = sample(), sample(rows=slice(4))
    np.testing.assert_array_equal(eight.tokens[:4], four.tokens)
    np.testing.assert_allclose(eight.logp[:4], four.logp, atol=1e-5)
    assert (eight.tokens[:, 0] != eight.tokens[:, 1]).any()  # but rollouts of a group differ
    assert (eight.tokens != sample(seed=1).tokens).any()
    np.testing.assert_array_equal(eight.tokens, sample(LONG).tokens[..., :6])


def test_equal_prompts_get_different_responses():
    rollouts = _sample(PLAIN, 4, params(), PROMPT_BP[:1].repeat(8, 0), LENGTH_B[:1].repeat(8), jax.random.key(0))
    assert len(np.unique(rollouts.tokens[:, 0], axis=0)) > 4


def test_number_of_devices_does_not_matter():
    def on(num_devices):
        shard = functools.partial(meshes.shard_batch, meshes.make_mesh(meshes.MeshConfig(num_devices, 1, 1)))
        run = lambda *args: shard(sampler.sample(POLICY, PLAIN, 4, params(), *shard((PROMPT_BP, LENGTH_B)), *args))
        return jax.jit(run)(jax.random.key(0))

    one, eight = on(1), on(8)
    assert len(eight.tokens.sharding.device_set) == 8
    for name in ("tokens", "mask", "finished"):
        np.testing.assert_array_equal(getattr(one, name), getattr(eight, name), name)
    np.testing.assert_allclose(one.logp, eight.logp, atol=1e-5)


def test_no_key_is_used_twice():
    with jax.debug_key_reuse(True):
        jax.jit(functools.partial(sampler.sample, POLICY, PLAIN, 4))(params(), PROMPT_BP, LENGTH_B, jax.random.key(0))
        with pytest.raises(jax.errors.KeyReuseError):
            jax.jit(lambda key: jax.random.uniform(key) + jax.random.uniform(key))(jax.random.key(0))


@pytest.mark.parametrize("num_slots", [0, 2])
def test_of_a_prompt_beyond_its_room_what_fits_is_read(num_slots):
    """By the sampler, in slots too, and by the learner alike."""
    key, longer = jax.random.key(3), np.where(LENGTH_B == 5, 9, LENGTH_B)
    whole = _sample(PLAIN, 4, params(), PROMPT_BP, LENGTH_B, key, num_slots)
    cut = _sample(PLAIN, 4, params(), PROMPT_BP, longer, key, num_slots)
    jax.tree.map(np.testing.assert_array_equal, cut, whole)
    np.testing.assert_array_equal(
        *(_logprobs(POLICY, 1.0, 0, params(), PROMPT_BP, length_B, whole.tokens)[0] for length_B in (longer, LENGTH_B))
    )


def start_cursor(width=16):
    start = jax.jit(prefill.start, static_argnums=(0, 2, 3))
    return start(POLICY, params(), 2, width, PROMPT_BP, LENGTH_B)


_extend = jax.jit(prefill.extend, static_argnums=0)
_generate = jax.jit(decode.generate, static_argnums=(0, 1))
OBSERVED = np.random.default_rng(5).integers(11, size=(8, 2, 4))
COUNT = np.random.default_rng(6).integers(0, 5, size=(8, 2))


def test_extend_then_sample_is_one_prefill():
    """Given tokens, ragged, read in two goes behind the prompt equal a longer prompt, also for rows that are given none."""
    cursor = _extend(POLICY, params(), start_cursor(), OBSERVED[..., :2], np.minimum(COUNT, 2))
    cursor = _extend(POLICY, params(), cursor, OBSERVED[..., 2:], np.maximum(COUNT - 2, 0))
    np.testing.assert_array_equal(cursor.length, LENGTH_B[:, None] + COUNT)
    _, rollouts = _generate(POLICY, PLAIN, params(), cursor, jax.random.key(0))

    rows = list(np.ndindex(8, 2))
    prompts = np.zeros((16, 9), int)
    for row, (b, g) in enumerate(rows):
        parts = [*PROMPT_BP[b, : LENGTH_B[b]], *OBSERVED[b, g, : COUNT[b, g]]]
        prompts[row, : len(parts)] = parts
    lengths = (LENGTH_B[:, None] + COUNT).reshape(-1)
    whole = _sample(PLAIN, 1, params(), prompts, lengths, jax.random.key(0))  # logical rows are the same 16
    np.testing.assert_array_equal(rollouts.tokens.reshape(16, -1), whole.tokens[:, 0])
    np.testing.assert_allclose(rollouts.logp.reshape(16, -1), whole.logp[:, 0], atol=1e-5)


def test_what_is_read_in_chunks_is_read_all_the_same(monkeypatch):
    whole = prefill.extend(POLICY, params(), start_cursor(), OBSERVED, COUNT)
    monkeypatch.setattr(prefill, "READ_CHUNK", 2)
    parts = prefill.extend(POLICY, params(), start_cursor(), OBSERVED, COUNT)
    np.testing.assert_allclose(parts.hidden, whole.hidden, atol=1e-5)
    np.testing.assert_array_equal(parts.cache.mask, whole.cache.mask)


def test_slots_that_rows_leave_unused_are_used_again():
    """Rows read 4 tokens in turns: a call begins behind the longest row, not behind all calls before."""
    cursor = start_cursor()
    for turn in range(4):
        count = np.where((np.arange(8)[:, None] + turn) % 2 == 0, 4, 0) * np.ones((1, 2), int)
        cursor = _extend(POLICY, params(), cursor, OBSERVED, count)
    held = cursor.cache.mask.sum(-1)
    assert held.max() == 8
    assert int(cursor.cache.used) == 8 + 5, "the longest row and the last call, where four calls took 20"


@pytest.mark.parametrize("windows", [(), (3, 0)], ids=["all", "window"])
def test_turns_over_one_cache_equal_one_pass_of_the_learner(windows, monkeypatch):
    """Sample, observe, sample on: the transcript's log-probs in one pass of the learner are the sampler's.

    Slots that hold nothing lie between those of a row, and count nothing of a layer's window.
    """
    monkeypatch.setitem(globals(), "POLICY", dataclasses.replace(POLICY, layer_windows=windows))
    cursor, first = _generate(POLICY, PLAIN, params(), start_cursor(), jax.random.key(0))
    active = np.arange(8)[:, None] != np.array([[3, 5]])  # two rows sit the second turn out
    count = np.where(active, COUNT, 0)
    cursor = _extend(POLICY, params(), cursor, OBSERVED, count)
    cursor, second = _generate(POLICY, PLAIN, params(), cursor, jax.random.key(1), active)
    assert not second.mask[~active].any()
    assert first.finished.any()
    assert not first.finished.all()

    transcript, of_model = np.zeros((8, 2, 16), int), np.zeros((8, 2, 16), bool)
    sampled = np.zeros((8, 2, 16), np.float32)
    for b, g in np.ndindex(8, 2):
        n, m, c = first.mask[b, g].sum(), second.mask[b, g].sum(), count[b, g]
        parts = [*first.tokens[b, g, :n], *OBSERVED[b, g, :c], *second.tokens[b, g, :m]]
        transcript[b, g, : len(parts)] = parts
        for start, length, logp in ((0, n, first.logp), (n + c, m, second.logp)):
            of_model[b, g, start : start + length] = True
            sampled[b, g, start : start + length] = logp[b, g, :length]
        assert cursor.length[b, g] + cursor.unread[b, g] == LENGTH_B[b] + len(parts)
    logp, _ = logprobs(transcript)
    np.testing.assert_allclose(np.where(of_model, logp, 0.0), sampled, atol=1e-5)


def test_stop_tokens_stop_sequences_and_the_least_number_of_tokens():
    plain = sample(LONG, group_size=8)
    two = sample(dataclasses.replace(LONG, stop_tokens=(STOP, 2)), group_size=8)
    pair = tuple(int(t) for t in plain.tokens[0, 0, :2])
    ending = sample(dataclasses.replace(LONG, stop_tokens=(), stop_sequences=(pair, (9,))), group_size=8)
    late = sample(dataclasses.replace(LONG, min_tokens=4), group_size=8)
    endless = sample(dataclasses.replace(LONG, stop_tokens=()), group_size=8).tokens
    for row in np.ndindex(8, 8):
        free = endless[row].tolist()

        def cut(ends, free=free):  # the first t at which a row ends, or all
            return next((free[: t + 1] for t in range(12) if ends(free[: t + 1])), free)

        found = lambda rollouts, row=row: rollouts.tokens[row][rollouts.mask[row]].tolist()
        assert found(two) == cut(lambda held: held[-1] in (STOP, 2))
        assert found(ending) == cut(lambda held: tuple(held[-2:]) == pair or held[-1] == 9)
        assert STOP not in found(late)[:4]
    assert (
        late.mask.sum(-1) >= 5
    ).all()  # and the log-probs are of the whole distribution, and of what was sampled from
    assert (late.sampled_logp >= late.logp - 1e-6).all()
    assert (late.sampled_logp[..., :4] > late.logp[..., :4]).all()


def test_min_p_keeps_what_is_near_the_likeliest():
    logits = jnp.log(jnp.array([0.5, 0.26, 0.24, 1e-9]))
    kept = jnp.isfinite(choice.truncate(logits, 0, 1.0, min_p=0.5))
    np.testing.assert_array_equal(kept, [True, True, False, False])


def test_responses_of_one_token():
    one = dataclasses.replace(PLAIN, max_tokens=1)
    rollouts = sample(one)
    np.testing.assert_array_equal(rollouts.tokens, sample().tokens[..., :1])
    logp, _ = logprobs(rollouts.tokens)
    np.testing.assert_allclose(logp, rollouts.logp, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 6, 7])
def test_logprobs_in_chunks_are_the_same(chunk):
    tokens = np.asarray(sample().tokens)

    def run(chunk):
        loss = lambda p: sum(x.sum() for x in sampler.logprobs(POLICY, 0.7, chunk, p, PROMPT_BP, LENGTH_B, tokens))
        return jax.jit(jax.value_and_grad(loss))(params())

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), run(chunk), run(0))


def test_chunks_save_the_logits_memory():
    """A vocabulary of 4096 makes logits of 8 x 2 x 64 tokens of 17 MB; those of chunks of 4 tokens are a sixteenth."""
    tokens = jax.ShapeDtypeStruct((8, 2, 64), jnp.int32)

    def peak(chunk, vocab_size):
        policy = dataclasses.replace(POLICY, vocab_size=vocab_size)
        tree = jax.eval_shape(lambda: decoder.init(policy, jax.random.key(0)))
        loss = lambda p, t: sampler.logprobs(policy, 0.7, chunk, p, PROMPT_BP, LENGTH_B, t)[0].sum()
        return jax.jit(jax.grad(loss)).lower(tree, tokens).compile().memory_analysis().temp_size_in_bytes

    logits = 8 * 2 * 64 * 4096 * 4
    assert peak(0, 4096) - peak(0, 16) > 2 * logits
    assert peak(4, 4096) - peak(4, 16) < logits / 2


def test_draw_is_categorical():
    keys = jax.random.split(jax.random.key(4), (16, 8))
    logits = jax.random.normal(jax.random.key(5), (16, 8, 500)).at[..., :100].set(-jnp.inf)
    expected = jax.vmap(jax.vmap(jax.random.categorical))(keys, logits)
    np.testing.assert_array_equal(choice.gumbel_argmax(keys, logits), expected)
    assert len(np.unique(expected)) > 50


@pytest.mark.parametrize("num_slots", [1, 2, 5])
@pytest.mark.parametrize("width", [1, 12])
def test_slots_that_are_refilled_change_nothing(width, num_slots):
    """Responses are those of a row each, token by token, whichever slot of the ring they come to lie in."""
    long = dataclasses.replace(PLAIN, max_tokens=width, stop_sequences=((2, 5), (1, 9, 3)), min_tokens=1)
    expected = sample(long, group_size=6)
    found = sample(long, group_size=6, num_slots=num_slots)
    for name in ("tokens", "mask", "finished"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    for name in ("logp", "sampled_logp", "hidden"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-5, err_msg=name)
    lengths = set(np.asarray(expected.mask.sum(-1)).ravel().tolist())
    assert width == 1 or len(lengths) > 4, "a test of even lengths"


@pytest.mark.parametrize("decode_stages", [2, 5, 16])
def test_stages_change_nothing(decode_stages):
    """Two turns over one cache of 16 slots, of which the second begins in a later stage than the first."""

    def converse(config):
        cursor, first = _generate(config, PLAIN, params(), start_cursor(), jax.random.key(0))
        cursor = _extend(config, params(), cursor, OBSERVED, COUNT)
        cursor, second = _generate(config, PLAIN, params(), cursor, jax.random.key(1))
        return cursor.cache, first, second

    expected, found = converse(POLICY), converse(dataclasses.replace(POLICY, decode_stages=decode_stages))
    assert int(expected[0].used) > 8
    np.testing.assert_array_equal(found[0].mask, expected[0].mask)
    for ours, whole in zip(found[1:], expected[1:]):
        for name in ("tokens", "mask", "finished"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(whole, name), err_msg=name)
        np.testing.assert_allclose(ours.logp, whole.logp, atol=1e-5)


@pytest.mark.parametrize(("decode_stages", "width"), [(1, 16), (2, 8), (3, 6)])
def test_a_stage_reads_its_slots_and_no_more(decode_stages, width):
    """What lies behind a stage's slots spoils nothing; what lies within does, so it is read."""
    config = dataclasses.replace(POLICY, decode_stages=decode_stages)
    cursor = start_cursor()

    def spoilt_from(slot):
        held = cursor.cache.layers
        layers = dataclasses.replace(held, value=held.value.at[..., slot:, :].set(jnp.nan))
        spoilt = dataclasses.replace(cursor, cache=dataclasses.replace(cursor.cache, layers=layers))
        return _generate(config, PLAIN, params(), spoilt, jax.random.key(0))[1].logp

    assert np.isfinite(spoilt_from(width)).all()
    assert np.isnan(spoilt_from(width - 1)).any()
