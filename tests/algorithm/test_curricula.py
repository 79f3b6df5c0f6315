"""Curricula: draws by unit, and every method against its authors' rule, written down independently in plain Python."""

import collections
import dataclasses
import functools
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from exit_jax.algorithm import curricula
from exit_jax.algorithm.curricula import CURRICULA, cycle, plr
from exit_jax.algorithm.curricula.core import Told, make_units
from exit_jax.algorithm.grpo import advantages
from exit_jax.algorithm.learnability import SCORES, Group
from exit_jax.algorithm.method_settings import CurriculumConfig
from exit_jax.algorithm.selection import draw_base

B, G, X = 6, 4, 5
LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4])  # of 12 tasks
UNITS = make_units(LABELS, column="level")
RECORDED = UNITS._replace(recorded=np.random.default_rng(0).uniform(size=(3, X)))
ROOT = jax.random.key(0)


def config_of(method, **fields):
    return CurriculumConfig(method=method, **fields)


def recording(num_batches=40, seed=0, graded=True):
    """Return batches (unit int [B], rewards float32 [B, G]); unit X tells nothing, and unit 4 comes late."""
    rng = np.random.default_rng(seed)
    for step in range(num_batches):
        unit = rng.integers(0, X if step > 10 else X - 1, B)
        unit[rng.uniform(size=B) < 0.2] = X
        # eighths, so that sums are exact whatever their order
        reward = rng.integers(0, 9, (B, G)) / 8 if graded else rng.integers(0, 2, (B, G))
        yield unit, np.float32(reward)


@functools.partial(jax.jit, static_argnums=0)
def observe(config, state, unit, reward, step):
    group = Group(reward, reward, advantages(reward, "group", 0.0))
    told = Told(unit, group, step, jax.random.fold_in(ROOT, step))
    return CURRICULA[config.method].observe(config, UNITS, state, told)


@functools.partial(jax.jit, static_argnums=0)
def weights(config, state, step):
    weight = CURRICULA[config.method].weights(config, RECORDED, state, step)
    return weight / weight.sum()


def follow(config, batches, rule):
    """Hold the weights of a method to those of a rule: an object of observe(unit, reward, step) and weights(step)."""
    state = CURRICULA[config.method].create(config, RECORDED)
    for step, (unit, reward) in enumerate(batches):
        expected = np.asarray(rule.weights(step), float)
        np.testing.assert_allclose(
            weights(config, state, step), expected / expected.sum(), rtol=2e-5, atol=1e-7, err_msg=f"step {step}"
        )
        state = observe(config, state, unit, reward, step)
        rule.observe(unit, reward, step)


def standardised(reward):
    spread = reward.std()
    return (reward - reward.mean()) / spread if reward.max() > reward.min() else np.zeros(len(reward))


def softmax(values):
    return np.exp(np.asarray(values) - max(values))


class Sec:
    """BanditPriority of SEC's code: TD(0) on the mean |A| of the arm, an arm without a draw is told 0."""

    def __init__(self, rate, temperature, forget):
        self.q, self.rate, self.temperature, self.forget = [0.0] * X, rate, temperature, forget

    def observe(self, unit, reward, step):
        for arm in range(X):
            told = [abs(a) for u, r in zip(unit, reward, strict=True) if u == arm for a in standardised(r)]
            if told or self.forget:
                self.q[arm] += self.rate * ((np.mean(told) if told else 0.0) - self.q[arm])

    def weights(self, step):
        return softmax([q / self.temperature for q in self.q])


class Dump:
    """DUMP's: a deque a source, and an upper confidence bound."""

    def __init__(self, window, temperature):
        self.recent = [collections.deque(maxlen=window) for _ in range(X)]
        self.count, self.temperature = [0] * X, temperature

    def observe(self, unit, reward, step):
        for u, r in zip(unit, reward, strict=True):
            if u < X:
                self.recent[u].extend(abs(standardised(r)))
                self.count[u] += len(r)

    def weights(self, step):
        bound = [
            (np.mean(recent) if recent else 0.0) + math.sqrt(2 * math.log(sum(self.count) + 1) / (n + 1))
            for recent, n in zip(self.recent, self.count, strict=True)
        ]
        return softmax([b / self.temperature for b in bound])


class Sitp:
    """SITP's TasksHolder: results are held back until there are n of them."""

    def __init__(self, window, temperature, cap):
        self.change, self.success, self.held = [2.0] * X, [0.0] * X, [[] for _ in range(X)]
        self.window, self.temperature, self.cap = window, temperature, cap

    def observe(self, unit, reward, step):
        for u, r in zip(unit, reward, strict=True):
            for result in r if u < X else ():
                self.held[u].append(result)
                if len(self.held[u]) == self.window:
                    mean = np.mean(self.held[u])
                    self.change[u], self.success[u] = mean - self.success[u], mean
                    self.held[u].clear()

    def weights(self, step):
        return softmax(
            [
                -0.5 if s > self.cap else abs(m) / self.temperature
                for m, s in zip(self.change, self.success, strict=True)
            ]
        )


class Tscl:
    def __init__(self, rate, temperature):
        self.slope, self.last, self.rate, self.temperature = [0.0] * X, [0.0] * X, rate, temperature

    def observe(self, unit, reward, step):
        for arm in set(unit.tolist()) - {X}:
            mean = reward[unit == arm].mean()
            self.slope[arm] += self.rate * (mean - self.last[arm] - self.slope[arm])
            self.last[arm] = mean

    def weights(self, step):
        return softmax([abs(s) / self.temperature for s in self.slope])


SHARE = np.bincount(LABELS) / len(LABELS)


def floored(values, floor):
    values = np.asarray(values, float)
    own = values / values.sum() if values.sum() > 0 else SHARE
    return (1 - floor) * own + floor * SHARE


class Alp:
    def __init__(self, rate, floor):
        self.progress, self.last, self.rate, self.floor = [0.0] * X, {}, rate, floor

    def observe(self, unit, reward, step):
        for arm in set(unit.tolist()) - {X}:
            mean = reward[unit == arm].mean()
            if arm in self.last:
                self.progress[arm] += self.rate * (abs(mean - self.last[arm]) - self.progress[arm])
            self.last[arm] = mean

    def weights(self, step):
        return floored(self.progress, self.floor)


class Eva:
    """eva's: max - mean of the newest rewards, optimistic where a prompt was never tried."""

    def __init__(self, floor):
        self.value, self.floor = {}, floor

    def observe(self, unit, reward, step):
        for arm in set(unit.tolist()) - {X}:
            self.value[arm] = np.mean([r.max() - r.mean() for u, r in zip(unit, reward, strict=True) if u == arm])

    def weights(self, step):
        highest = max(self.value.values(), default=0.0)
        return floored([self.value.get(arm, highest) for arm in range(X)], self.floor)


class Plr:
    """LevelSampler of level-replay: ranks by a sort, staleness counted up for all and cleared for those drawn."""

    def __init__(self, config, score):
        self.config, self.score_of = config, score
        self.score, self.stale, self.seen = np.zeros(X), np.zeros(X), np.zeros(X, bool)

    def observe(self, unit, reward, step):
        told = set(unit.tolist()) - {X}
        for arm in told:
            self.score[arm] = self.score_of(arm, reward[unit == arm])
        self.stale += 1
        self.stale[list(told)] = 0
        self.seen[list(told)] = True

    def weights(self, step):
        c, seen = self.config, self.seen
        stale = np.where(seen, self.stale + 1, 0.0)  # the draw that is due is one iteration after the last
        rank = np.zeros(X)
        for place, arm in enumerate(sorted(np.flatnonzero(seen), key=lambda arm: (-self.score[arm], arm))):
            rank[arm] = (place + 1) ** (-1 / c.rank_exponent)
        fresh = np.where(seen, 0.0, SHARE)
        if not seen.any():
            return fresh
        mixed = (1 - c.staleness) * rank / rank.sum() + c.staleness * stale / stale.sum()
        return mixed if seen.all() else c.replay_prob * mixed + (1 - c.replay_prob) * fresh / fresh.sum()


def plr_rule(config, score):
    return Plr(config, lambda arm, rewards: np.mean([score(r) for r in rewards]))


def maxmc_rule(config):
    best = collections.defaultdict(float)

    def score(arm, rewards):
        best[arm] = max(best[arm], rewards.max())
        return best[arm] - rewards.mean()

    return Plr(config, score)


@pytest.mark.parametrize("forget", [True, False])
def test_sec_is_its_authors_bandit(forget):
    config = config_of("sec", rate=0.5, temperature=0.4, forget_undrawn=forget)
    follow(config, recording(), Sec(0.5, 0.4, forget))


@pytest.mark.parametrize("window", [300, 10, 3])  # not full, full, and overwritten within a batch
def test_dump_is_its_authors_window(window):
    follow(config_of("dump", temperature=0.1, window=window), recording(), Dump(window, 0.1))


@pytest.mark.parametrize(("temperature", "cap"), [(1.0, 0.9), (0.2, 0.5)])
def test_sitp_is_its_authors_holder(temperature, cap):
    config = config_of("sitp", window=7, temperature=temperature, cap=cap)
    follow(config, recording(graded=False), Sitp(7, temperature, cap))


def test_tscl_is_its_rule():
    follow(config_of("tscl", temperature=0.2), recording(), Tscl(0.1, 0.2))


def test_alp_is_its_rule():
    follow(config_of("alp", rate=0.3), recording(), Alp(0.3, 0.2))


def test_eva_is_its_rule():
    follow(config_of("proportional", score="gap", rate=1.0, floor=0.1), recording(), Eva(0.1))


@pytest.mark.parametrize("staleness", [0.1, 1.0])
@pytest.mark.parametrize("score", ["deviation", "pvl", "maxmc"])  # those without rounding, which would rank ties
def test_plr_is_its_authors_sampler(score, staleness):
    fields = {"staleness": staleness, "rank_exponent": 0.5}
    if score == "maxmc":
        config = config_of("plr_maxmc", **fields)
        return follow(config, recording(), maxmc_rule(config))
    of_group = {
        "deviation": lambda r: np.abs(r - r.mean()).mean(),
        "pvl": lambda r: np.maximum(r - r.mean(), 0).mean(),
    }
    config = config_of("plr", score=score, **fields)
    return follow(config, recording(), plr_rule(config, of_group[score]))


def test_staleness_alone_ends_in_a_round_robin():
    # Drawn greedily by P_stale, each unit comes once in X draws
    config, state = config_of("plr", staleness=1.0, replay_prob=0.0), CURRICULA["plr"].create(None, UNITS)
    drawn = []
    for step in range(4 * X):
        drawn.append(int(np.argmax(weights(config, state, step))))
        state = observe(config, state, np.full(B, drawn[-1]), np.zeros((B, G), np.float32), step)
    np.testing.assert_array_equal(np.sort(np.reshape(drawn, (4, X)), axis=1), np.tile(np.arange(X), (4, 1)))


def test_equal_scores_rank_by_place():
    np.testing.assert_allclose(plr.rank_weights(jnp.zeros(3), jnp.array([True, False, True]), 0.5), [1, 0, 1 / 4])


def test_sfl_keeps_the_most_learnable():
    config = config_of("sfl", score="reward", top=2, every=4)
    state, newest = CURRICULA["sfl"].create(config, UNITS), np.full(X, -1.0)
    for step, (unit, reward) in enumerate(recording(24)):
        state = observe(config, state, unit, reward, step)
        for arm in set(unit.tolist()) - {X}:
            newest[arm] = np.mean([r.var() for u, r in zip(unit, reward, strict=True) if u == arm])
        if (step + 1) % 4:
            continue
        chosen = np.flatnonzero(state.chosen)
        assert len(chosen) == 2
        assert np.sort(newest[chosen])[0] >= np.sort(newest)[-2] - 1e-6
        half = 0.5 * np.where(state.chosen, SHARE, 0) / SHARE[chosen].sum() + 0.5 * SHARE
        np.testing.assert_allclose(weights(config, state, step), half, rtol=1e-5)


def test_thompson_draws_what_is_nearest_to_the_target():
    config = config_of("thompson", discount=0.8)
    state, a, b = CURRICULA["thompson"].create(config, UNITS), np.ones(X), np.ones(X)
    for step, (unit, reward) in enumerate(recording()):
        state = observe(config, state, unit, reward, step)
        a, b = 1 + 0.8 * (a - 1), 1 + 0.8 * (b - 1)
        for u, r in zip(unit, reward, strict=True):
            if u < X:
                a[u], b[u] = a[u] + r.sum(), b[u] + len(r) - r.sum()
    np.testing.assert_allclose(state.successes, a, rtol=1e-5)
    np.testing.assert_allclose(state.failures, b, rtol=1e-5)
    count = 4000
    unit = CURRICULA["thompson"].choose(config, UNITS, state, jax.random.key(1), count)
    theta = np.random.default_rng(0).beta(a, b, (200_000, X))
    expected = count * np.bincount(np.abs(theta - 0.5).argmin(1), minlength=X) / 200_000
    seen = np.bincount(unit, minlength=X)
    assert ((seen - expected) ** 2 / np.maximum(expected, 1)).sum() < stats.chi2.ppf(0.9999, X - 1)


def test_an_order_goes_from_easy_to_hard_or_back():
    turn = lambda units, reverse, step: int(
        np.argmax(CURRICULA["order"].weights(config_of("order", over=10, reverse=reverse), units, None, step))
    )
    assert [turn(UNITS, False, step) for step in range(12)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    assert [turn(UNITS, True, step) for step in (0, 5, 9)] == [4, 2, 0]
    clues = make_units(LABELS, easy_first=False)  # more is easier
    assert [turn(clues, False, step) for step in (0, 5, 9)] == [4, 2, 0]


def test_stages_open_when_mastered_or_in_time():
    config = config_of("stages", rate=1.0, target=0.5, every=3)
    state, opened = CURRICULA["stages"].create(config, UNITS), []
    # the newest unit's reward: .25 until time is over, then .5 at once, then nothing of it, then .75
    for step, (unit, reward) in enumerate([(0, 0.25), (0, 0.25), (0, 0.25), (1, 0.5), (0, 1.0), (2, 0.75)]):
        state = observe(config, state, np.full(B, unit), np.full((B, G), reward, np.float32), step)
        opened.append(np.flatnonzero(weights(config, state, step)).tolist())
    assert opened == [[0], [0], [0, 1], [0, 1, 2], [0, 1, 2], [0, 1, 2, 3]]
    np.testing.assert_allclose(weights(config, state, 6), [3 / 10, 2 / 10, 4 / 10, 1 / 10, 0], rtol=1e-6)


def test_a_cycle_admits_a_quarter_a_half_all_and_back():
    units = make_units(np.arange(16))
    config = config_of("cycle", rate=1.0)
    state, shares = CURRICULA["cycle"].create(config, units), []
    assert np.flatnonzero(state.admitted).tolist() == [0, 1, 2, 3]  # the easiest
    step = jax.jit(
        lambda state, key: CURRICULA["cycle"].observe(
            config, units, state, Told(jnp.arange(4), Group(*[jnp.ones((4, G))] * 3), jnp.int32(0), key)
        )
    )
    for number in range(18):  # of 4 draws each: epochs of 4, 8, 16, 8 draws, twice
        shares.append(int(state.admitted.sum()))
        state = step(state, jax.random.key(number))
    assert shares == 2 * [4, 8, 8, 16, 16, 16, 16, 8, 8]


def test_a_set_is_sampled_without_replacement_by_weight():
    weight, number, runs = np.array([1.0, 2.0, 3.0, 4.0]), 2, 6000
    sample = jax.jit(jax.vmap(lambda key: cycle.without_replacement(jnp.asarray(weight), key, jnp.int32(number))))
    held = np.asarray(sample(jax.random.split(jax.random.key(0), runs)))
    assert (held.sum(1) == number).all()
    chance = collections.Counter()
    for first in range(4):
        for second in set(range(4)) - {first}:
            chance[frozenset((first, second))] += weight[first] / 10 * weight[second] / (10 - weight[first])
    observed = collections.Counter(frozenset(np.flatnonzero(row).tolist()) for row in held)
    assert sum((observed[s] - runs * p) ** 2 / (runs * p) for s, p in chance.items()) < stats.chi2.ppf(0.9999, 5)


def test_a_replay_has_the_recorded_weights():
    config = config_of("replay", replay="a run", floor=0.0)
    state = CURRICULA["replay"].create(config, RECORDED)
    for step in range(5):
        row = RECORDED.recorded[min(step, 2)]
        np.testing.assert_allclose(weights(config, state, step), row / row.sum(), rtol=1e-6)


def everything(method):
    """Return settings under which a method can be made."""
    return config_of(method, over=10 if method == "order" else 0, replay="a run" if method == "replay" else "")


@pytest.mark.parametrize("method", CURRICULA)
def test_one_unit_draws_what_no_curriculum_draws(method):
    num_tasks, count, config = 7, 5, everything(method)
    units = make_units(np.zeros(num_tasks))._replace(recorded=np.ones((2, 1)))
    state = curricula.create(config, units)
    draw = jax.jit(lambda state, step: curricula.draw(config, units, state, ROOT, step, count))
    for batch in range(6):
        task, fresh = draw(state, jnp.int32(batch))
        np.testing.assert_array_equal(task, draw_base(ROOT, jnp.int32(batch * count), count, num_tasks))
        np.testing.assert_array_equal(fresh, batch * count + np.arange(count) < num_tasks)
        state = dataclasses.replace(state, drawn=state.drawn + count)


@pytest.mark.parametrize("method", CURRICULA)
def test_observing_counts_the_draws_and_not_the_buffers(method):
    config, group = everything(method), Group(*[jnp.zeros((4, G))] * 3)
    task, from_buffer = jnp.array([3, 9, 3, 10]) + 100, jnp.array([False, False, True, False])
    instances = types.SimpleNamespace(history=types.SimpleNamespace(task=task), from_buffer=from_buffer)
    units = RECORDED._replace(first_task=100)
    state = curricula.create(config, units)
    state, shares = curricula.observe(config, units, state, instances, group, None, ROOT, jnp.int32(0))
    np.testing.assert_array_equal(state.drawn, [0, 1, 0, 1, 1])
    assert list(shares) == [f"curriculum/level={level}" for level in range(X)]
    np.testing.assert_allclose(sum(shares.values()), 1.0, rtol=1e-6)


def test_the_lost_tell_nothing():
    config = config_of("sec", rate=1.0)
    group = Group(*[jnp.array([[0.0, 1.0], [0.0, 1.0]])] * 3)
    instances = types.SimpleNamespace(
        history=types.SimpleNamespace(task=jnp.array([0, 9])), from_buffer=jnp.zeros(2, bool)
    )
    state = curricula.create(config, UNITS)
    state, _ = curricula.observe(config, UNITS, state, instances, group, jnp.array([False, True]), ROOT, jnp.int32(0))
    np.testing.assert_allclose(state.method, [0.5, 0, 0, 0, 0])


def test_units_are_drawn_by_their_weights_and_tasks_in_epochs():
    config, count = config_of("replay", replay="a run", floor=0.0), 4000
    units = UNITS._replace(recorded=np.array([[0.1, 0.0, 0.4, 0.2, 0.3]]))
    task, fresh = curricula.draw(config, units, curricula.create(config, units), ROOT, jnp.int32(0), count)
    unit = LABELS[task]
    seen, expected = np.bincount(unit, minlength=X), count * units.recorded[0]
    assert seen[1] == 0
    assert ((seen - expected)[expected > 0] ** 2 / expected[expected > 0]).sum() < stats.chi2.ppf(0.9999, 3)
    for label in (0, 2, 4):
        own, size = np.asarray(task)[unit == label], (label == LABELS).sum()
        whole = own[: len(own) // size * size].reshape(-1, size)
        np.testing.assert_array_equal(np.sort(whole, 1), np.tile(np.flatnonzero(label == LABELS), (len(whole), 1)))
        assert len(np.unique(whole, axis=0)) > 1  # shuffled anew
        assert np.flatnonzero(np.asarray(fresh)[unit == label]).tolist() == list(range(size))


def test_permuted_units_have_the_same_sizes_and_other_tasks():
    permuted = make_units(LABELS, permuted=True)
    np.testing.assert_array_equal(permuted.size, UNITS.size)
    assert (permuted.of_task != UNITS.of_task).any()
    for unit in range(X):
        own = permuted.members[unit][permuted.members[unit] >= 0]
        np.testing.assert_array_equal(own, np.flatnonzero(permuted.of_task == unit))


@pytest.mark.parametrize("wins", range(9))
def test_scores_of_successes_and_failures(wins):
    # S = p(1 - p); |A| 2√S standardised and 2S plain; the positive half of it S; max - mean 1 - p, or 0 without a success
    reward, p = jnp.float32([[1.0] * wins + [0.0] * (8 - wins)]), wins / 8
    score = lambda name, norm: float(SCORES[name](Group(reward, reward, advantages(reward, norm, 0.0)))[0])
    np.testing.assert_allclose(score("reward", "none"), p * (1 - p), atol=1e-7)
    np.testing.assert_allclose(score("advantage", "group"), 2 * math.sqrt(p * (1 - p)), atol=1e-6)
    np.testing.assert_allclose(score("advantage", "none"), 2 * p * (1 - p), atol=1e-6)
    np.testing.assert_allclose(score("deviation", "group"), 2 * p * (1 - p), atol=1e-6)
    np.testing.assert_allclose(score("pvl", "group"), p * (1 - p), atol=1e-6)
    np.testing.assert_allclose(score("gap", "group"), 1 - p if wins else 0.0, atol=1e-6)


def test_scores_of_graded_rewards_differ():
    reward = jnp.float32([[0.2] * 7 + [1.0]])
    values = [SCORES[name](Group(reward, reward, reward))[0] for name in ("reward", "deviation", "gap")]
    np.testing.assert_allclose(values, [0.07, 0.175, 0.7], rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "sec", "window": 3}, r"window = 3 is not read by the method 'sec', which reads .*forget_undrawn"),
        ({"method": "order"}, "over = 0: say how many iterations"),
        ({"method": "replay"}, 'replay = "": name the workdir'),
    ],
)
def test_faults_of_a_curriculum(fields, message):
    (fault,) = CurriculumConfig(**fields).faults()
    assert re.search(message, fault)
    assert not CurriculumConfig().faults()


@pytest.mark.parametrize("method", sorted(set(CURRICULA) - {"uniform"}))
def test_what_a_method_reads_are_settings(method):
    assert set(CURRICULA[method].READS) <= {field.name for field in dataclasses.fields(CurriculumConfig)}
