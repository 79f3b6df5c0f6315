"""Which node each search goes on from: against the methods in plain Python, on trees that it grew itself."""

import dataclasses
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_sudoku

from exit_jax.config.parse import validate
from exit_jax.evaluation.scaffolds import SCAFFOLDS, aide, archive, evolution, map_elites, tree_search
from exit_jax.evaluation.scaffolds.scaffold import chooser

CHAINS, RESPONSES = 16, 40


@dataclasses.dataclass(eq=False)
class Node:
    """A node of a search in plain Python; ``parent`` is None for the base task."""

    number: int
    parent: "Node | None" = None
    score: float = -math.inf
    good: bool = False
    tokens: int = 0
    children: "list[Node]" = dataclasses.field(default_factory=list)
    visits: int = 0
    total: float = 0.0

    @property
    def failing(self):
        return self.parent is not None and not self.good

    @property
    def path(self):
        """The node and all that it goes back to, the base task last."""
        return [self, *(self.parent.path if self.parent else [])]

    @property
    def debug_depth(self):
        """AIDE's: how many failing nodes one after the other lead to it."""
        return self.parent.debug_depth + 1 if self.parent is not None and self.parent.failing else 0


@pytest.fixture(scope="module")
def settings():
    return validate(tiny_sudoku.get_config(), jax.device_count()).eval


@pytest.fixture(scope="module")
def grown(settings, make_history):
    """Return a function from a scaffold to the parents [K + 1, R] that it chose and its archives before each response.

    Outcomes are drawn: scores of a coarse grid, so that many tie and some are 0, and some responses that are invalid.
    """
    add = jax.jit(archive.add)
    tasks = make_history(CHAINS, step=-1, quality=0.7)  # a number that must not count
    rng = np.random.default_rng(0)
    score = rng.integers(0, 6, (RESPONSES, CHAINS)).astype(np.float32) / 8
    score[:, :4] = rng.random((RESPONSES, 4), np.float32)
    score[:, 4:6] *= rng.random((RESPONSES, 2)) < 0.2  # chains that fail most of the time
    valid = rng.random((RESPONSES, CHAINS)) < 0.8
    tokens = rng.integers(3, 60, (RESPONSES, CHAINS))

    def grow(row, num_responses=RESPONSES):
        choose = jax.jit(chooser(settings, row))
        now, nodes, archives = archive.start(tasks, num_responses), [], []
        for k in range(num_responses):
            archives.append(jax.device_get(now))
            nodes.append(np.asarray(choose(now, jax.random.key(5), k)))
            child = make_history(CHAINS, step=k, quality=score[k], id=k)
            now = add(now, nodes[-1], child, valid[k], tokens[k], k)
        return np.stack(nodes), [*archives, jax.device_get(now)]

    return grow


def of_chain(held, r) -> archive.Archive:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[r]), held)


def nodes_of(held, r) -> list[Node]:
    """Return the nodes of a chain's archive as Python's, read from who started from whom."""
    nodes = [Node(0)]
    for n in range(1, held.parent.shape[1]):
        if held.parent[r, n] >= 0:
            parent, score = nodes[held.parent[r, n]], float(held.score[r, n])
            node = Node(n, parent, score, bool(held.valid[r, n]) and score > 0, int(held.tokens[r, n]))
            parent.children.append(node)
            nodes.append(node)
    return nodes


def test_an_archive_knows_its_tree(grown):
    """Depth, children, sums below and AIDE's depth of debugging, of trees whose parents are drawn at random."""
    uniform = dataclasses.replace(
        SCAFFOLDS["aide"], choose=lambda settings, held, key, k: jax.random.randint(key, (), 0, k + 1)
    )
    parents, archives = grown(uniform, 14)
    held = archives[9]  # responses 0 to 8; the others are yet to come
    pad = lambda values, fill: [*values, *[fill] * 5]
    for r in range(CHAINS):
        nodes, one = nodes_of(held, r), of_chain(held, r)
        assert len(nodes) == 10
        np.testing.assert_array_equal(one.responses, pad([False] + [True] * 9, False))
        np.testing.assert_array_equal(one.parent, pad([-1, *parents[:9, r]], -1))
        np.testing.assert_array_equal(one.children, pad([len(n.children) for n in nodes], 0))
        np.testing.assert_array_equal(one.depth[:10], [len(n.path) - 1 for n in nodes])
        np.testing.assert_array_equal(one.failing, pad([n.failing for n in nodes], False))
        np.testing.assert_array_equal(one.debug_depth[1:10], [n.debug_depth for n in nodes[1:]])
        values = np.arange(15.0)
        below = [sum(m.number for m in nodes if n in m.path) for n in nodes]
        np.testing.assert_array_equal(one.sum_below(values), pad(below, 0))
    assert (archives[9].score[:, 0] == -np.inf).all(), "a base task without a solution has no score"


def test_choices_of_chains_and_steps_have_keys_of_their_own(settings, make_history):
    """Nor are they the keys of responses, which fold in their ordinals."""
    seen = []
    told = dataclasses.replace(
        SCAFFOLDS["aide"], choose=lambda settings, held, key, k: jax.random.bits(key, (), jnp.uint32) >> 1
    )
    choose, held = chooser(settings, told), archive.start(make_history(3, step=-1), 4)
    for k in range(4):
        seen += np.asarray(choose(held, jax.random.key(0), k)).tolist()
    assert len(set(seen)) == 12
    step_keys = [jax.random.split(jax.random.fold_in(jax.random.key(0), k), 3) for k in range(4)]
    others = [int(jax.random.bits(key, (), jnp.uint32) >> 1) for keys in step_keys for key in keys]
    assert not set(seen) & set(others)


def test_beam_search_responds_to_the_best_of_the_last_layer_in_turn(grown, settings):
    parents, archives = grown(SCAFFOLDS["beam"])
    width, layer_size = settings.beam_width, 2 * settings.beam_width
    for r in range(CHAINS):
        nodes = nodes_of(archives[-1], r)
        for k in range(RESPONSES):
            layer = (
                nodes[1:][(k // layer_size - 1) * layer_size : k // layer_size * layer_size] if k >= layer_size else []
            )
            best = sorted(layer, key=lambda n: -n.score)[:width] or [nodes[0]] * width
            assert parents[k, r] == best[k % layer_size % width].number


def test_uct_is_the_textbooks(grown):
    parents, archives = grown(SCAFFOLDS["uct"])
    for r in range(CHAINS):
        nodes = nodes_of(archives[-1], r)
        for node in nodes:
            node.children = []
        for k, node in enumerate(nodes[1:]):
            at = nodes[0]
            while len(at.children) == 5:
                at = max(
                    at.children, key=lambda c: c.total / c.visits + math.sqrt(2 * math.log(c.parent.visits) / c.visits)
                )
            assert parents[k, r] == at.number, (r, k)
            at.children.append(node)
            for above in node.path:
                above.visits, above.total = above.visits + 1, above.total + node.score
    assert (np.diff(np.sort(parents, axis=0), axis=0) > 0).sum() > 5 * CHAINS, "many nodes were expanded"


def airas_search(nodes, num_children, max_debug_depth):
    """Yield what AIRA's MCTS starts each response from, as its solver goes: expand a leaf, debug, back up, go down again."""
    low, high = math.inf, -math.inf
    fresh = iter(nodes[1:])
    for node in nodes:
        node.children = []

    def value(node):
        if not node.visits:
            return -1e8
        q = node.total / node.visits
        q = 0.5 if high == low else (q - low) / (high - low)
        return q + 0.25 * math.sqrt(math.log(node.parent.visits) / node.visits)

    while True:
        leaf = nodes[0]
        while leaf.children:
            leaf = max(leaf.children, key=value)
        for _ in range(num_children):
            yield leaf.number
            tried = next(fresh)
            leaf.children.append(tried)
            while tried.failing and tried.debug_depth < max_debug_depth:
                yield tried.number
                fixed = next(fresh)
                tried.children.append(fixed)
                tried = fixed
            if tried.good:
                low, high = min(low, tried.score), max(high, tried.score)
                for above in tried.path:
                    above.visits, above.total = above.visits + 1, above.total + tried.score


@pytest.mark.parametrize("depth", [20, 1])
def test_airas_tree_search_is_its_solvers(grown, depth, monkeypatch):
    monkeypatch.setattr(tree_search, "AIRA_DEBUG_DEPTH", depth)
    parents, archives = grown(SCAFFOLDS["mcts_aira"])
    for r in range(CHAINS):
        search = airas_search(nodes_of(archives[-1], r), 5, depth)
        assert [next(search) for _ in range(RESPONSES)] == parents[:, r].tolist(), r
    failing = np.take_along_axis(archives[-1].valid & (archives[-1].score > 0), parents.T, axis=1).T
    assert (~failing & (parents > 0)).any(), "some were debugged"


def drawer(row, settings, count=300):
    """Return a function from an archive and a chain to how often a scaffold goes on from each node, over keys."""
    keys = jax.random.split(jax.random.key(1), count)
    choose = jax.jit(lambda one, k: jax.vmap(lambda key: row.choose(settings, one, key, k))(keys))

    def draws(held, r):
        k = int((held.parent[r] >= 0).sum())
        return np.bincount(choose(of_chain(held, r), jnp.int32(k)), minlength=held.parent.shape[1]) / count

    return draws


def near(share, expected, count=300):
    """Hold shares to probabilities: 5 standard errors of the binomial, and nothing where the probability is 0."""
    expected = np.array(expected)
    np.testing.assert_array_equal(share[expected == 0], 0)
    assert (np.abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / count) + 1e-6).all(), (share, expected)


@pytest.mark.parametrize(("name", "probability", "depth"), [("aide", 0.5, 3), ("aira_greedy", 1.0, 20)])
def test_aide_drafts_then_debugs_or_improves(name, probability, depth, grown, settings):
    _, archives = grown(SCAFFOLDS[name], 24)
    kinds, draws = set(), drawer(SCAFFOLDS[name], settings)
    for k in (0, 4, 5, 9, 23):
        for r in range(0, CHAINS, 3) if k < 9 else range(CHAINS):
            nodes = nodes_of(archives[k], r)
            expected = np.zeros(25)
            debuggable = [n for n in nodes if n.failing and not n.children and n.debug_depth <= depth]
            good = [n for n in nodes if n.good]
            otherwise = max(good, key=lambda n: n.score).number if good else 0
            if len(nodes[0].children) < 5:
                expected[0], kind = 1, "draft"
            else:
                expected[otherwise] += 1 - probability * bool(debuggable)
                expected[[n.number for n in debuggable]] += probability / max(len(debuggable), 1)
                kind = f"{'debug' if debuggable else ''} {'improve' if good else 'draft again'}"
            near(draws(archives[k], r), expected)
            kinds.add(kind)
    assert {"draft", "debug improve", " improve"} <= kinds, kinds


def shinkas_weights(nodes):
    """Return the odds of WeightedSamplingStrategy by the number of the node."""
    good = sorted((n for n in nodes if n.good), key=lambda n: -n.score)[: evolution.ARCHIVE_SIZE]
    middle = statistics.median(n.score for n in good)
    spread = max(statistics.median(abs(n.score - middle) for n in good), 1e-6)
    sigmoid = lambda x: 1 / (1 + math.exp(-x)) if x > -700 else 0.0
    return {n.number: sigmoid(10 * (n.score - middle) / spread) / (1 + len(n.children)) for n in good}


@pytest.mark.parametrize("size", [40, 5])
def test_shinkas_parents_by_score_and_children(size, grown, settings, monkeypatch):
    monkeypatch.setattr(evolution, "ARCHIVE_SIZE", size)
    row = SCAFFOLDS["shinka"]
    parents, archives = grown(row, 24)
    assert (parents[0] == 0).all()
    assert (parents[1:] > 0).all(), "the first response is the first program: the base task has no other"
    medians, draws = 0, drawer(row, settings)
    for k in (2, 6, 15, 23):
        for r in range(CHAINS):
            one, nodes = of_chain(archives[k], r), nodes_of(archives[k], r)
            if not any(n.good for n in nodes):
                continue
            odds = shinkas_weights(nodes)
            weight = np.zeros(25)
            weight[list(odds)] = list(odds.values())
            np.testing.assert_allclose(np.exp(evolution.log_weights(one)), weight, rtol=1e-4, atol=1e-7)
            middle = statistics.median(nodes[n].score for n in odds)
            for n in odds:
                if nodes[n].score == middle:
                    medians += 1
                    assert weight[n] * (1 + len(nodes[n].children)) == 0.5, "σ(0)"
            if r < 4:
                shares = jax.nn.softmax(evolution.log_weights(one))
                assert shares.sum() == pytest.approx(1)
                np.testing.assert_allclose(shares, weight / weight.sum(), rtol=1e-4, atol=1e-7)
                near(draws(archives[k], r), weight / weight.sum())
    assert medians > 20


def test_a_power_law_of_ranks(grown, settings, monkeypatch):
    row = SCAFFOLDS["shinka_power_law"]
    _, archives = grown(row, 24)
    for size in (40, 4):
        monkeypatch.setattr(evolution, "ARCHIVE_SIZE", size)
        draws = drawer(row, settings)
        for r in (0, 1, 6, 7):
            ranked = sorted((n for n in nodes_of(archives[23], r) if n.good), key=lambda n: -n.score)[:size]
            odds = np.zeros(25)
            odds[[n.number for n in ranked]] = [1 / rank for rank in range(1, len(ranked) + 1)]
            near(draws(archives[23], r), odds / odds.sum())


@pytest.mark.parametrize("name", ["shinka", "shinka_power_law"])
def test_while_all_fail_any_of_them_is_mended(name, settings, make_history):
    held = archive.start(make_history(1, step=-1), 5)
    for k in range(4):
        child = make_history(1, step=k, quality=0.5 * (k == 3))
        held = archive.add(held, np.array([k]), child, np.array([k < 3]), np.ones(1, int), k)
    near(drawer(SCAFFOLDS[name], settings)(held, 0), [0, 0.25, 0.25, 0.25, 0.25, 0])


def test_map_elites_prefers_the_best_of_each_cell(grown, settings):
    row = SCAFFOLDS["map_elites"]
    parents, archives = grown(row, 24)
    assert (parents[0] == 0).all()
    assert (parents[1:] > 0).all()
    beaten, draws = 0, drawer(row, settings)
    for r in range(8):
        nodes = nodes_of(archives[23], r)[1:]
        cells = {}
        for node in nodes:
            cell = []
            for feature in (lambda n: n.tokens, lambda n: len(n.path) - 1):
                values = [feature(n) for n in nodes]
                cell.append(min(10 * (feature(node) - min(values)) // (max(values) - min(values)), 9))
            if tuple(cell) not in cells or node.score > cells[tuple(cell)].score:
                cells[tuple(cell)] = node
        expected = np.zeros(25)
        expected[[n.number for n in nodes]] += 0.3 / len(nodes)
        expected[[n.number for n in cells.values()]] += 0.7 / len(cells)
        near(draws(archives[23], r), expected)
        elites = np.flatnonzero(map_elites.elites(of_chain(archives[23], r)))
        assert elites.tolist() == sorted(n.number for n in cells.values())
        beaten += len(nodes) - len(cells)
    assert beaten > 8


def test_rows_say_where_they_are_from_and_how_near():
    for row in SCAFFOLDS.values():
        assert row.label.split(":")[0] in ("faithful", "adapted", "in kind") or row.name == "restarts"
        assert bool(row.source) == bool(row.label)
        assert row.label in ("", "faithful") or row.label.partition(": ")[2], "how"
    looking = {row.name for row in SCAFFOLDS.values() if row.looks_at_grader}
    assert set(SCAFFOLDS) - looking == {"chain", "restarts", "best_of_n", "self_refine"}


@pytest.mark.parametrize("name", SCAFFOLDS)
def test_what_does_not_look_at_the_grader_chooses_without_it(name, grown, settings):
    """Other scores and verdicts in the same trees change some choice exactly where the row says that it looks at them."""
    row = SCAFFOLDS[name]
    nodes, archives = grown(row, 14)
    choose = jax.jit(chooser(settings, row))
    moved = False
    for k in range(14):
        held = archives[k]
        flipped = dataclasses.replace(held, score=np.where(held.score > -np.inf, 0.9 - held.score, held.score))
        moved |= (np.asarray(choose(flipped, jax.random.key(5), k)) != nodes[k]).any()
    assert moved == row.looks_at_grader


def test_constants_are_the_authors():
    assert (aide.NUM_DRAFTS, aide.AIDE_DEBUG_PROB, aide.AIDE_DEBUG_DEPTH) == (5, 0.5, 3)
    assert (aide.AIRA_DEBUG_PROB, aide.AIRA_DEBUG_DEPTH) == (1.0, 20)
    assert (tree_search.AIRA_CHILDREN, tree_search.AIRA_C, tree_search.AIRA_DEBUG_DEPTH) == (5, 0.25, 20)
