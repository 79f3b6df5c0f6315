"""Whole iterations, several in a row, against ``oracle``, over settings of which every two values meet in some case."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from oracle import Held, Instance, Rollout

from exit_jax.algorithm.in_flight import state_for_next_selection
from exit_jax.algorithm.iteration import init_state, learn
from exit_jax.algorithm.selection import select
from exit_jax.algorithm.streams import stream
from exit_jax.config.schema import OptimizerConfig
from exit_jax.step.optimizer import make_optimizer
from exit_jax.types import MODES, NO_ID, Grades, History, Rollouts

B, G, U, T, V, P, W, N, M, FEATURES, DIM = 4, 4, 2, 5, 6, 12, 10, 10, 5, 3, 2
MAX_TOKENS = 9  # responses could have had more tokens than the batch is wide
NUM_ITERATIONS = 5
TEMPLATES = {  # of the improve prompt some do not fit
    "base": ("context", "request"),
    "improve": ((5,), "context", "request", "solution", (5, 5), "feedback"),
    "diverge": ((4, 4), "request", "solution", "context"),
}
# qualities whose shares of the possible gain are sums of powers of two, as their variances then are: no rounding breaks a tie
QUALITIES = np.float32([0.0, 0.5, 0.75, 1.0])

FACTORS = {
    "learnability_of": ("quality", "reward"),
    "reward": ("quality", "improvement", "improve_or_keep"),
    "diversity": ((False, "grades"), (True, "grades"), (True, "policy")),
    "diversity_cap": (float("inf"), 1.1),
    "advantage_norm": ("group", "batch", "none", "mean", "ema"),
    "objective": ("clip", "cispo", "nft", "rft", "ail"),
    "right_at": (1.0, 0.75),
    "advantage_eps": (1e-6, 0.1),
    "zero_variance": ("keep", "drop"),
    "clip": ((0.2, 0.2), (0.1, 0.3)),
    "ratio_level": ("token", "sequence"),
    "aggregation": ("sequence_mean", "token_mean", "dr_grpo"),
    "mask_overlong": (False, True),
    "kl": ((0.0, "k3"), (0.3, "k1"), (0.3, "k2"), (0.3, "k3")),
    "entropy_coef": (0.0, 0.1),
    "num_epochs": (1, 2),
    "reference": ((1, 0.25), (2, 1.0), (3, 0.5)),  # every M iterations, mix α
    "recompute_logp": (False, True),
    "rollout_lag": (0, 1),
    "num_microbatches": (1, 2),
    "children": ("all", "distinct", "improved", "best", "one"),
    "self_iteration": (True, False),
    "divergence_prob": (0.5, 0.0),
    "max_depth": (0, 2),
    "optimizer": ((0, 0, 0.0, 1e9), (3, 0, 0.1, 0.05), (1, 4, 0.0, 0.5)),  # warm-up, decay, weight decay, largest norm
}


def covering(factors, seed=0):
    """Return rows, one value a factor, in which every two values of two factors meet; the first ONCE have every value once.

    Greedy: of 20 random rows that have the first pair that is missing, the one with most such pairs.
    """
    rng, names = np.random.default_rng(seed), list(factors)
    pairs = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(names, 2)
        for i, j in itertools.product(range(len(factors[a])), range(len(factors[b])))
    }
    places = {name: rng.permutation(ONCE) % len(factors[name]) for name in names}
    rows = [[int(places[name][n]) for name in names] for n in range(ONCE)]
    meet = lambda row: pairs & set(itertools.combinations(zip(names, row), 2))
    for row in rows:
        pairs -= meet(row)
    while pairs:
        drawn = rng.integers([[len(factors[name]) for name in names]] * 20).tolist()
        (a, i), (b, j) = min(pairs)
        for row in drawn:
            row[names.index(a)], row[names.index(b)] = i, j
        rows.append(max(drawn, key=lambda row: len(meet(row))))
        pairs -= meet(rows[-1])
    return [{name: factors[name][i] for name, i in zip(names, row)} for row in rows]


ONCE = max(map(len, FACTORS.values()))
CASES = covering(FACTORS)
GAINS = {
    "reward": "improvement",
    "learnability_of": "reward",
    "self_iteration": True,
}  # what is held has a say in all of these
FAST = {*range(ONCE), next(n for n, case in enumerate(CASES) if GAINS.items() <= case.items())}


def settings(exit_config, case):
    """Return the ExItConfig of a case, how many microbatches, and the optimiser's settings."""
    given = dict(case)
    given["diversity_bonus"], given["diversity_embedding"] = given.pop("diversity")
    given["clip_low"], given["clip_high"] = given.pop("clip")
    given["kl_coef"], given["kl_estimator"] = given.pop("kl")
    given["reference_every"], given["reference_mix"] = given.pop("reference")
    given["baseline_decay"], given["negative_weight"] = 0.7 * (given["advantage_norm"] == "ema"), 0.3
    parts = given.pop("num_microbatches")
    warmup, decay, weight_decay, max_norm = given.pop("optimizer")
    optimizer = OptimizerConfig("adamw", 0.05, warmup, decay, 0.9, 0.95, weight_decay, max_norm)
    config = exit_config(num_prompts=B, group_size=G, buffer_size=N, selection_prob=0.7, score_temperature=5.0, **given)
    return config, parts, optimizer


def logprobs(params, prompt, prompt_length, tokens):
    """Return what ``oracle.Policy`` says, in JAX."""
    last = jnp.take_along_axis(prompt, jnp.minimum(prompt_length, P)[:, None] - 1, axis=1)
    total = jnp.where(jnp.arange(P)[None] < prompt_length[:, None], prompt, 0).sum(1)
    first = jnp.broadcast_to(last[:, None], (*tokens.shape[:2], 1))
    before = jnp.concatenate([first, tokens[..., :-1]], axis=-1)
    logits = params["W"][before] + params["U"][total % FEATURES][:, None, None]
    logp = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0], -(jnp.exp(logp) * logp).sum(-1)


def pack(histories, shape):
    """Return a History of the given leading shape; None is a blank row."""
    blank = Held((), (), (), (), 0, 0, -1, 0.0)
    held = [h or blank for h in histories]
    pieces = [(h.context, h.request, h.solution, h.feedback) for h in held]
    joined = [[*itertools.chain(*row)] for row in pieces]
    arrays = {name: np.array([getattr(h, name) for h in held], np.int32) for name in ("id", "task", "turn", "step")}
    arrays |= {name: np.array([getattr(h, name) for h in held], np.int32) for name in ("born", "parent")}
    arrays["quality"] = np.array([h.quality for h in held], np.float32)
    arrays["tokens"] = np.array([row + [0] * (W - len(row)) for row in joined], np.int32)
    arrays["lengths"] = np.array([[len(piece) for piece in row] for row in pieces], np.int32)
    return History(**{name: array.reshape(*shape, *array.shape[1:]) for name, array in arrays.items()})


def unpack(history, *index):
    """Return one row of a History as plain numbers."""
    row = jax.tree.map(lambda leaf: np.asarray(leaf)[index], history)
    ends = np.cumsum(row.lengths).tolist()
    tokens = row.tokens.tolist()
    pieces = [tuple(tokens[a:b]) for a, b in zip([0, *ends], ends)]
    numbers = {name: getattr(row, name).item() for name in ("task", "turn", "step", "quality", "born", "parent", "id")}
    return Held(*pieces, **numbers)


BASE_TASKS = [Held((), (1 + m % 3, 1 + m), (), (), m, 0, -1, 0.0) for m in range(M)]


def make_children(rng, held, quality):
    """Return the histories of a rollout of up to two turns: an answer to the turn in hand, and one to the next."""
    answers = rng.integers(1, 4, 2).tolist()
    feedback = tuple(rng.integers(1, 3, rng.integers(3)).tolist())
    fields = {"solution": (answers[0],), "feedback": feedback, "step": held.step + 1, "quality": quality}
    children = [dataclasses.replace(held, **fields) if rng.random() < 0.9 else None, None]
    if held.turn < 2 and rng.random() < 0.7:
        context = (*held.context, answers[0])
        fields |= {"context": context, "turn": held.turn + 1, "solution": (answers[1],), "step": 0}
        children[1] = dataclasses.replace(held, **fields)
    return [child and dataclasses.replace(child, id=NO_ID, parent=NO_ID, born=0) for child in children]


def expand(rng, policy, key, step, instances, modes):
    """Return the instances with rollouts of a policy, as the oracle takes them, and what ``learn`` takes."""
    held = [unpack(instances.history, b) for b in range(B)]
    prompts = [np.asarray(instances.prompt)[b, : min(n, P)].tolist() for b, n in enumerate(instances.prompt_length)]
    tokens = rng.integers(0, V, (B, G, T))
    length = rng.integers(0, T + 1, (B, G, 1))
    mask = (np.arange(T) < length) & (rng.random((B, G, T)) < 0.85)  # with holes, as for observations
    finished, valid = rng.random((B, G)) < 0.85, rng.random((B, G)) < 0.9
    quality = QUALITIES[rng.integers(0, 4, (B, G))]
    quality[rng.random(B) < 0.2] = 0.5
    lost = np.array([(h.id % 5 == 3 and h.turn > 0) or (h.step < 0 and h.task % 5 == 1) for h in held])
    finished, valid, quality = finished & ~lost[:, None], valid & ~lost[:, None], quality * ~lost[:, None]
    embedding, hidden = rng.normal(size=(2, B, G, DIM)).astype(np.float32)
    embedding[rng.random(B) < 0.2] = 0.25
    old = [[policy.score(prompts[b], tokens[b, g].tolist())[0] for g in range(G)] for b in range(B)]
    old = (np.array(old) + 0.15 * rng.normal(size=(B, G, T))).astype(np.float32)
    preference = np.asarray(jax.random.uniform(stream(key, "expand", step), (B, G)))
    children = [[make_children(rng, held[b], quality[b, g].item()) for g in range(G)] for b in range(B)]
    children = [[row if not lost[b] else [None] * U for row in group] for b, group in enumerate(children)]

    def plain(vectors):
        return [
            Instance(held[b], modes[b], bool(instances.from_buffer[b]), prompts[b], rollouts, bool(lost[b]))
            for b, rollouts in enumerate(
                [
                    Rollout(
                        *(tokens[b, g].tolist(), mask[b, g].tolist(), old[b, g].tolist(), bool(finished[b, g])),
                        *(quality[b, g].item(), bool(valid[b, g]), vectors[b, g], children[b][g]),
                        preference[b, g].item(),
                    )
                    for g in range(G)
                ]
                for b in range(B)
            )
        ]

    padding = np.where(mask, old, np.float32(np.nan))  # what is no token of the policy's may be anything
    rollouts = Rollouts(tokens, mask, padding, padding, finished, hidden)
    flat = [child for group in children for row in group for child in row]
    insertable = np.array([child is not None for child in flat]).reshape(B, G, U)
    grades = Grades(quality, valid, embedding, pack(flat, (B, G, U)), insertable, {"told": quality}, lost)
    return {"grades": plain(embedding), "policy": plain(hidden)}, jax.tree.map(jnp.asarray, (rollouts, grades))


def check_prompts(instances, modes):
    """Check each prompt against the template of its mode, joined in Python."""
    for b, mode in enumerate(modes):
        held = unpack(instances.history, b)
        joined = [*itertools.chain(*(getattr(held, x) if isinstance(x, str) else x for x in TEMPLATES[mode]))]
        assert instances.prompt_length[b] == len(joined)
        assert instances.prompt[b].tolist() == (joined + [0] * P)[:P]


def contents(buffer):
    """Return what a buffer holds, as the oracle's slots do; of empty slots nothing may be left but blanks."""
    full = np.asarray(buffer.history.id) != NO_ID
    assert np.isneginf(np.asarray(buffer.score)[~full]).all()
    return {(unpack(buffer.history, n), float(buffer.score[n]), int(buffer.num_draws[n])) for n in np.flatnonzero(full)}


@functools.partial(jax.jit, static_argnums=0)
def compiled_select(config, divergence_prob, tasks, state, in_flight):
    """Compile once for all cases, of whose settings selection reads but one."""
    config = dataclasses.replace(config, divergence_prob=divergence_prob)
    return select(config, TEMPLATES, P, tasks, state_for_next_selection(state, in_flight), in_flight)


@pytest.mark.parametrize(
    "number", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in range(len(CASES))]
)
def test_iterations_equal_the_oracle(exit_config, number):
    (config, parts, optimizer_config), base = settings(exit_config, CASES[number]), settings(exit_config, CASES[0])[0]
    rng, key = np.random.default_rng(number), jax.random.key(number)
    policy = oracle.Policy(
        rng.normal(size=(V, V)).astype(np.float32), rng.normal(size=(FEATURES, V)).astype(np.float32)
    )
    optimizer = make_optimizer(optimizer_config)
    c = optimizer_config
    adam = oracle.AdamW(*(c.learning_rate, c.warmup_steps, c.decay_steps, c.b1, c.b2, c.weight_decay, c.max_grad_norm))
    plain = oracle.Oracle(config, policy, adam, MAX_TOKENS)
    params = {"W": jnp.asarray(policy.W, jnp.float32), "U": jnp.asarray(policy.U, jnp.float32)}
    state = init_state(config, params, optimizer.init(params), key, W)
    tasks = jax.tree.map(jnp.asarray, pack(BASE_TASKS, (M,)))
    step_of = jax.jit(
        functools.partial(learn, config, logprobs, optimizer, num_microbatches=parts, max_tokens=MAX_TOKENS)
    )
    same = functools.partial(jax.tree.map, functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-5))

    def draw(step, in_flight):
        """Select and expand a batch; with a lag the one before is still in flight."""
        needed = dataclasses.replace(state, params=None, reference=None, opt_state=None)
        instances = compiled_select(base, config.divergence_prob, tasks, needed, in_flight)
        modes = [MODES[mode] for mode in instances.mode]
        check_prompts(instances, modes)
        given, batch = expand(rng, plain.policy, key, step, instances, modes)
        given = given[config.diversity_embedding]
        plain.may_draw(given)
        return given, instances, *batch

    batch, met, marks = draw(0, ()), set(), set()
    for step in range(NUM_ITERATIONS):
        given, *arrays = batch
        following = draw(step + 1, (arrays[0],)) if config.rollout_lag else None
        expected = plain.learn(given)
        state, metrics = step_of(state, *arrays)
        batch = following or draw(step + 1, ())

        assert contents(state.buffer) == {(s.held, float(s.score), s.num_draws) for s in plain.entries()}
        same(state.params, {"W": plain.policy.W, "U": plain.policy.U})
        if config.kl_coef:
            same(state.reference, {"W": plain.reference.W, "U": plain.reference.U})
        else:
            assert state.reference is None
        if config.baseline_decay:
            same(state.baseline, np.array([plain.baseline[mode] for mode in MODES]))
        else:
            assert state.baseline is None
        met |= {(h.task, h.turn, h.context, h.request, h.solution) for h in (instance.held for instance in given)}
        marks |= {tuple(mark) for mark in metrics["instances"].tolist()}
        assert len(marks) == len(met), "what is the same instance"
        expected |= plain.buffer_metrics()
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-3, atol=2e-5, err_msg=name)
    # every epoch of base tasks has each of them once; starts are all that held a solution
    drawn = plain.base_drawn
    assert int(state.cursor) == len(drawn) - sum(not instance.from_buffer for instance in batch[0])
    for epoch in range(0, len(drawn), M):
        assert len(set(drawn[epoch : epoch + M])) == len(drawn[epoch : epoch + M])
    lot = np.asarray(state.starts.lot)
    assert sorted(np.asarray(state.starts.history.id)[lot >= 0].tolist()) == sorted(plain.starts)
    assert int(state.step) == NUM_ITERATIONS


def test_every_two_values_meet_in_some_case():
    assert len(CASES) < 45
    assert all({case[name] for case in CASES[:ONCE]} == set(values) for name, values in FACTORS.items())
    for (a, of_a), (b, of_b) in itertools.combinations(FACTORS.items(), 2):
        assert {(case[a], case[b]) for case in CASES} == set(itertools.product(of_a, of_b))
