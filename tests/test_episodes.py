"""Rollouts of several turns against a plain reading of the rules, on a toy environment that answers with any tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import LLAMA, random_params

from exit_jax.domains.domain import ENDS, INVALID, VALID, Answer, Environment
from exit_jax.errors import UserError
from exit_jax.policy import decode, decoder, prefill, sampler
from exit_jax.policy.choice import SamplingConfig
from exit_jax.step.episodes import Played, TurnPrograms, play, play_steps
from exit_jax.types import History, Instances

B, G, P, M, S, TURNS, T = 6, 3, 5, 6, 4, 4, 30
STOPS = (3, 4, 8, 11)
SAMPLING = SamplingConfig(M, STOPS, 1.0)


@pytest.fixture(scope="module")
def params():
    return decoder.unstack(LLAMA, random_params(LLAMA))


LEAD = (5, 6)


ROOM = T + S + len(LEAD) + 1


def make_programs(width=ROOM):
    part = lambda tree, first, count: jax.tree.map(lambda leaf: leaf[first : first + count], tree)
    return TurnPrograms(part, lambda copy, *prompt: _start(copy, width, *prompt), _generate, _extend)


_start = jax.jit(
    lambda copy, width, prompt, length: prefill.start(LLAMA, copy, G, width, prompt, length), static_argnums=1
)
_generate = jax.jit(lambda copy, cursor, *args: decode.generate(LLAMA, SAMPLING, copy, cursor, *args), donate_argnums=1)
_extend = jax.jit(lambda copy, *args: prefill.extend(LLAMA, copy, *args), donate_argnums=1)


def make_instances(seed=0) -> Instances:
    rng = np.random.default_rng(seed)
    length = rng.integers(1, P + 1, B).astype(np.int32)
    prompt = np.where(np.arange(P) < length[:, None], rng.integers(4, 17, (B, P)), 0).astype(np.int32)
    return Instances(make_histories(), None, None, None, jnp.asarray(prompt), jnp.asarray(length))


def make_histories(turn=0) -> History:
    turns = jnp.broadcast_to(jnp.asarray(turn, jnp.int32), B)
    return History(None, None, None, None, turns, None, None, None, None)


def has_ending(tokens) -> bool:
    return int(tokens.sum()) % 3 > 0


def toy(max_turns=TURNS, max_transcript=T, log=None, lost=(), by_response=False) -> Environment:
    """An episode is the tuple of its responses; it ends after one that begins with 7 (validly) or 12 (not)."""

    def step(pairs):
        if log is not None:
            log.append(len(pairs))
        return [((*episode, tuple(int(t) for t in tokens)), reply(tokens)) for episode, tokens in pairs]

    def reply(tokens):
        if tokens[0] in (7, 12):
            return Answer((), VALID if tokens[0] == 7 else INVALID, has_ending(tokens))
        return Answer([4 + int(tokens.sum()) % 11] * (int(tokens.sum()) % (S + 1)), None, has_ending(tokens))

    def begin(rows, group):
        return [None if b in lost else () for b in range(rows.turn.size) for _ in range(group)]

    def ask_again(episode, response):
        return (9, *response[:3], *LEAD)

    figures = lambda episode: {"quality": float(len(episode or ()))}
    return Environment(
        max_turns=max_turns,
        max_tokens=M,
        max_observation=S,
        max_ask=6,
        max_transcript=max_transcript,
        generation_prompt=LEAD,
        begin=begin,
        step=step,
        ask_again=ask_again,
        figures=figures,
        show=str,
        by_response=by_response,
    )


def run(params, environment=None, num_lanes=2, seed=0, turn=0) -> Played:
    instances = dataclasses.replace(make_instances(), history=make_histories(turn))
    return play(make_programs(), environment or toy(), G, params, instances, jax.random.key(seed), num_lanes)


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


def test_no_row_takes_the_room_of_another(params):
    """Rows that are over may hold long transcripts while others play on: more room than is reckoned changes nothing."""

    def transcripts(room, seed):
        environment = toy(max_turns=8)
        played = play(make_programs(room), environment, G, params, make_instances(), jax.random.key(seed), 2)
        return played.rollouts.tokens, played.end

    for seed in range(12):  # of which some differ where the slots of rows that are over are kept
        for expected, found in zip(transcripts(ROOM + 40, seed), transcripts(ROOM, seed)):
            np.testing.assert_array_equal(found, expected)


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
            seen = [*answer.observation, *LEAD]
            if answer.end is not None:
                end = ENDS[answer.end]
            elif turn + 1 == TURNS:
                end = "out_of_turns"
            elif T - len(tokens) - len(seen) < M:
                end = "overlong_transcript"
            if end:
                break
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


def test_responses_with_an_ending_are_told_apart(params, played):
    """By response, whatever became of the episode, unless the environment failed in it; the rest is as it was."""
    assert played.rollouts.ended is None
    found = run(params, toy(by_response=True))
    np.testing.assert_array_equal(found.rollouts.tokens, played.rollouts.tokens)
    for row, episode in enumerate(found.episodes):
        b, g = divmod(row, G)
        rollouts, expected = found.rollouts, np.zeros(T, bool)
        starts = np.flatnonzero(rollouts.mask[b, g] & ~np.pad(rollouts.mask[b, g], (1, 0))[:-1])
        for start, response in zip(starts, episode):
            told = has_ending(np.array(response)) and ENDS[found.end[b, g]] != "invalid"
            expected[start : start + len(response)] = told
        np.testing.assert_array_equal(rollouts.ended[b, g], expected)
    of_end = {end: found.rollouts.ended[found.end == ENDS.index(end)].any() for end in ENDS}
    assert of_end["out_of_turns"]
    assert of_end["overlong_response"]
    assert not of_end["invalid"]
    assert (found.end == ENDS.index("invalid")).any()
    assert not run(params, toy(lost=(1, 4), by_response=True)).rollouts.ended[[1, 4]].any()


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


def test_rollouts_have_the_dtypes_of_one_turn(params, played):
    one = jax.eval_shape(
        lambda: sampler.sample(LLAMA, SAMPLING, G, params, *jax.tree.leaves(make_instances())[-2:], KEY)
    )
    assert jax.tree.map(lambda leaf: leaf.dtype, played.rollouts) == jax.tree.map(lambda leaf: leaf.dtype, one)


def test_only_rows_that_spoke_are_stepped(params):
    log: list[int] = []
    played = run(params, toy(log=log), num_lanes=1)
    spoke = played.num_turns.sum() - (played.end == ENDS.index("overlong_response")).sum()
    assert sum(log) == spoke
    assert log == sorted(log, reverse=True), "rows only ever leave"


def test_turns_before_count(params):
    played = run(params, turn=jnp.array([0, 1, 2, 3, 4, 0]))
    assert (played.num_turns <= np.array([4, 3, 2, 1, 0, 4])[:, None]).all()
    assert {ENDS[end] for end in played.end[4]} == {"out_of_turns"}
    assert not played.rollouts.mask[4].any()


def test_what_is_lost_samples_nothing_and_disturbs_no_one(params, played):
    found = run(params, toy(lost=(1, 4)))
    kept = [0, 2, 3, 5]
    assert {ENDS[end] for end in found.end[[1, 4]].flat} == {"lost"}
    assert not found.rollouts.mask[[1, 4]].any()
    np.testing.assert_array_equal(found.rollouts.tokens[kept], played.rollouts.tokens[kept])
    np.testing.assert_array_equal(found.end[kept], played.end[kept])


def test_an_environment_that_fails_costs_its_rows_alone(params, played, caplog):
    assert not played.failed

    def fail(pairs):
        raise RuntimeError("no more")

    found = run(params, dataclasses.replace(toy(), step=fail))
    assert {ENDS[end] for end in found.end.flat} <= {"invalid", "overlong_response"}
    assert "no more" in caplog.text
    assert found.failed
    found = run(params, dataclasses.replace(toy(), begin=lambda rows, group: 1 / 0))
    assert found.failed
    assert {ENDS[end] for end in found.end.flat} == {"lost"}


@pytest.mark.parametrize("name", ["begin", "step"])
def test_a_fault_that_a_user_can_mend_ends_the_run(params, name):
    """Such as a server that went away: another batch would be lost, too."""

    def fail(*given):
        raise UserError("bring it back")

    with pytest.raises(UserError, match="bring it back"):
        run(params, dataclasses.replace(toy(), **{name: fail}))


def restart(params, whole, row, tokens):
    """Return a cursor after one row's prompt and further tokens, in a cache of its own."""
    joined = [*whole.prompt[row, : whole.prompt_length[row]].tolist(), *tokens]
    prompt = np.zeros((1, P + 2 * T), np.int32)
    prompt[0, : len(joined)] = joined
    return _alone(params, prompt, np.array([len(joined)]))


_alone = jax.jit(lambda params, *prompt: prefill.start(LLAMA, params, 1, M, *prompt))


@pytest.mark.parametrize("num_steps", [0, 2])
def test_k_steps_a_turn_see_the_clean_conversation_and_the_newest_response(params, num_steps):
    """Sample every response again, greedily, behind a prompt that is put together anew for it."""
    greedy = dataclasses.replace(SAMPLING, temperature=0.0)
    generate = jax.jit(lambda cursor, active: decode.generate(LLAMA, greedy, params, cursor, KEY, active))
    width = T + S + 2 * M + len(LEAD) + 7
    start = jax.jit(lambda copy, *prompt: prefill.start(LLAMA, copy, 1, width, *prompt))
    programs = TurnPrograms(
        make_programs().part,
        start,
        jax.jit(lambda copy, cursor, *args: decode.generate(LLAMA, greedy, copy, cursor, *args)),
        jax.jit(lambda copy, *args: prefill.extend(LLAMA, copy, *args)),
    )
    instances, environment = make_instances(7), toy()  # of which some play four turns
    context = instances.prompt, instances.prompt_length
    played = play_steps(programs, environment, params, context, instances.history, KEY, num_steps)
    num_turns = []
    for row in range(B):
        clean, num_tokens, end, episode = [], 0, None, ()
        while end is None:
            response = None
            for _ in range(num_steps + 1):
                ask = LEAD if response is None else environment.ask_again(episode, response)
                _, sampled = generate(restart(params, instances, row, [*clean, *ask]), jnp.ones((1, 1), bool))
                response = np.asarray(sampled.tokens[0, 0])[np.asarray(sampled.mask[0, 0])].tolist()
                num_tokens += len(response)
            if not sampled.finished[0, 0]:
                end = "overlong_response"
                break
            ((episode, answer),) = environment.step([(episode, np.array(response))])
            clean += [*LEAD, *response, *answer.observation]
            if answer.end is not None:
                end = ENDS[answer.end]
            elif len(episode) == TURNS:
                end = "out_of_turns"
            elif len(clean) + M > T:
                end = "overlong_transcript"
        assert played.episodes[row] == episode
        assert ENDS[played.end[row]] == end
        assert played.num_tokens[row] == num_tokens
        num_turns.append(len(episode))
    assert max(num_turns) > 1, "a test of single turns"


def test_without_self_iteration_evaluation_plays_as_training_does(params):
    """The same policy, greedily, sees the same tokens in both: as many turns, the same responses, the same ends."""
    greedy = dataclasses.replace(SAMPLING, temperature=0.0)
    start = jax.jit(lambda copy, *prompt: prefill.start(LLAMA, copy, 1, ROOM + 6 + M, *prompt))
    generate = jax.jit(lambda copy, cursor, *args: decode.generate(LLAMA, greedy, copy, cursor, *args))
    extend = jax.jit(lambda copy, *args: prefill.extend(LLAMA, copy, *args))
    programs = TurnPrograms(make_programs().part, start, generate, extend)
    instances, environment = make_instances(7), toy()
    evaluated = play_steps(
        programs, environment, params, (instances.prompt, instances.prompt_length), instances.history, KEY, 0
    )
    prompt, length = np.pad(instances.prompt, ((0, 0), (0, len(LEAD)))), np.asarray(instances.prompt_length)
    for row in range(B):
        prompt[row, length[row] : length[row] + len(LEAD)] = LEAD
    asked = dataclasses.replace(instances, prompt=jnp.asarray(prompt), prompt_length=jnp.asarray(length + len(LEAD)))
    trained = play(programs, environment, 1, params, asked, KEY, 2)
    assert evaluated.episodes == trained.episodes
    np.testing.assert_array_equal(evaluated.end, trained.end[:, 0])
    assert trained.num_turns.max() > 2, "a test of few turns"


KEY = jax.random.key(3)
