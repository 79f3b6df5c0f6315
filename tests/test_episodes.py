"""Rollouts of several turns against a plain reading of the rules, on a toy environment that answers with any tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import LLAMA, random_params

from exit_jax.algorithm.types import Instances
from exit_jax.domains.domain import Answer, Environment
from exit_jax.episodes import ENDS, Played, TurnPrograms, play
from exit_jax.policy import decoder, sampler
from exit_jax.policy.sampler import SamplingConfig

B, G, P, M, S, TURNS, T = 6, 3, 5, 6, 4, 4, 30
STOPS = (3, 4, 8, 11)
SAMPLING = SamplingConfig(M, STOPS, 1.0)


@pytest.fixture(scope="module")
def params():
    return decoder.unstack(LLAMA, random_params(LLAMA))


def make_programs(width=TURNS * (M + S + 1)):
    return TurnPrograms(lambda copy, *prompt: _start(copy, width, *prompt), _generate, _extend)


_start = jax.jit(
    lambda copy, width, prompt, length: sampler.start(LLAMA, copy, G, width, prompt, length), static_argnums=1
)
_generate = jax.jit(
    lambda copy, reading, *args: sampler.generate(LLAMA, SAMPLING, copy, reading, *args), donate_argnums=1
)
_extend = jax.jit(lambda copy, *args: sampler.extend(LLAMA, copy, *args), donate_argnums=1)


def make_instances() -> Instances:
    rng = np.random.default_rng(0)
    length = rng.integers(1, P + 1, B).astype(np.int32)
    prompt = np.where(np.arange(P) < length[:, None], rng.integers(4, 17, (B, P)), 0).astype(np.int32)
    return Instances(None, None, None, None, jnp.asarray(prompt), jnp.asarray(length))


def toy(max_turns=TURNS, max_transcript=T, log=None) -> Environment:
    """An episode is the tuple of its responses; it ends after one that begins with 7 (validly) or 12 (not)."""

    def step(pairs):
        if log is not None:
            log.append(len(pairs))
        return [((*episode, tuple(int(t) for t in tokens)), reply(tokens)) for episode, tokens in pairs]

    def reply(tokens):
        if tokens[0] in (7, 12):
            return Answer((), True, tokens[0] == 7)
        return Answer([4 + int(tokens.sum()) % 11] * (int(tokens.sum()) % (S + 2)), False)

    return Environment(max_turns, S, max_transcript, lambda rows, group: [()] * (len(rows.prompt) * group), step)


def run(params, environment=None, num_lanes=2, seed=0) -> Played:
    key = jax.random.key(seed)
    return play(make_programs(), environment or toy(), G, params, make_instances(), key, num_lanes)


@pytest.fixture(scope="module")
def played(params):
    return run(params)


def test_a_transcript_is_read_by_the_learner_in_one_pass(params, played):
    instances, rollouts = make_instances(), played.rollouts
    score = jax.jit(lambda *args: sampler.logprobs(LLAMA, 1.0, 0, random_params(LLAMA), *args))
    logp, _ = score(instances.prompt, instances.prompt_length, jnp.asarray(rollouts.tokens))
    np.testing.assert_allclose(np.where(rollouts.mask, logp, 0.0), rollouts.logp, atol=2e-5)
    assert (played.num_turns > 1).sum() > 5
    assert not (rollouts.mask & (np.arange(T) >= 25)).all(), "some transcripts are short"


def test_episodes_follow_the_rules(played):
    """Rebuild every row from the responses that its environment has seen: tokens, mask, and how it ended."""
    environment = toy()
    for row, episode in enumerate(played.episodes):
        b, g = divmod(row, G)
        tokens, mask, end = [], [], None
        for turn, response in enumerate(episode):
            assert response[-1] in STOPS
            tokens += response
            mask += [True] * len(response)
            ((_, answer),) = environment.step([((), np.array(response))])
            if answer.ended:
                end = "valid" if answer.valid else "invalid"
            elif T - len(tokens) - min(len(answer.observation), S) < M:
                end = "overlong_transcript"
            elif turn + 1 == TURNS:
                end = "out_of_turns"
            if end:
                break
            seen = list(answer.observation)[:S]
            tokens, mask = tokens + seen, mask + [False] * len(seen)
        if end is None:  # the response that came next found no stop token, and no environment saw it
            end = "overlong_response"
            tokens += played.rollouts.tokens[b, g, len(tokens) : len(tokens) + M].tolist()
            mask += [True] * M
            assert not set(STOPS) & set(tokens[-M:])
        assert ENDS[played.end[b, g]] == end
        assert played.rollouts.finished[b, g] == (end == "valid")
        np.testing.assert_array_equal(played.rollouts.tokens[b, g], tokens + [0] * (T - len(tokens)))
        np.testing.assert_array_equal(played.rollouts.mask[b, g], mask + [False] * (T - len(mask)))
        assert played.num_turns[b, g] == len(episode) + (end == "overlong_response")
    assert len(set(played.end.flat)) >= 3, "a test of few ends"


@pytest.mark.parametrize("num_lanes", [1, 3, 99])
def test_lanes_change_nothing(params, played, num_lanes):
    other = run(params, num_lanes=num_lanes)
    np.testing.assert_array_equal(other.rollouts.tokens, played.rollouts.tokens)
    np.testing.assert_array_equal(other.rollouts.mask, played.rollouts.mask)
    np.testing.assert_array_equal(other.end, played.end)
    np.testing.assert_allclose(other.rollouts.hidden, played.rollouts.hidden, atol=1e-5)
    assert other.episodes == played.episodes
    np.testing.assert_array_equal(other.rows, range(B))


def test_limits(params):
    """One turn ends all that go on; a transcript with room for one response and a bit ends the others."""
    once = run(params, toy(max_turns=1))
    assert once.num_turns.max() == 1
    assert "out_of_turns" in {ENDS[end] for end in once.end.flat}
    tight = run(params, toy(max_transcript=M + 3))
    assert "overlong_transcript" in {ENDS[end] for end in tight.end.flat}
    assert tight.rollouts.tokens.shape[-1] == M + 3


def test_only_rows_that_spoke_are_stepped(params):
    log: list[int] = []
    played = run(params, toy(log=log), num_lanes=1)
    spoke = played.num_turns.sum() - (played.end == ENDS.index("overlong_response")).sum()
    assert sum(log) == spoke
    assert log == sorted(log, reverse=True), "rows only ever leave"
