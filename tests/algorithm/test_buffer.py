"""The task buffer against Algorithm 1 read literally, one item at a time, and what ``expand`` puts into it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exit_jax.algorithm import buffer as buffers
from exit_jax.algorithm.equality import fingerprint
from exit_jax.algorithm.iteration import expand
from exit_jax.types import NO_ID, Grades, Instances, Rollouts


@dataclasses.dataclass
class Entry:
    id: int
    key: tuple  # ("base", task) or ("id", id)
    score: np.float32
    num_draws: int
    data: tuple


class SequentialBuffer:
    """Algorithm 1's buffer: takes a free slot, else a minimum's that the score reaches; the oldest of tied minima."""

    def __init__(self, size):
        self.slots, self.num_inserted = [None] * size, 0

    def find(self, key):
        return next((entry for entry in self.slots if entry and entry.key == key), None)

    def rescore(self, key, score):
        if entry := self.find(key):  # one that has left is dropped
            entry.score, entry.num_draws = score, entry.num_draws + 1

    def insert(self, score, data, task=None, num_draws=0):
        id, self.num_inserted = self.num_inserted, self.num_inserted + 1
        key = ("id", id) if task is None else ("base", task)
        if None in self.slots:
            slot = self.slots.index(None)
        else:
            slot = min(range(len(self.slots)), key=lambda i: (self.slots[i].score, self.slots[i].id))
            if score < self.slots[slot].score:
                return id
        self.slots[slot] = Entry(id, key, score, num_draws, data)
        return id

    def contents(self):
        return {(entry.id, float(entry.score), entry.num_draws, entry.data) for entry in self.slots if entry}


def contents(buffer, data):
    """Return slot -> (id, score, num_draws, data of the history) of the slots that hold an entry."""
    history, score, num_draws = jax.tree.map(np.asarray, (buffer.history, buffer.score, buffer.num_draws))
    return {
        int(n): (int(history.id[n]), float(score[n]), int(num_draws[n]), data(row(history, n)))
        for n in np.flatnonzero(history.id != NO_ID)
    }


def row(tree, *index):
    """Return one row of every array of a pytree, copied: a donated buffer's memory is used again."""
    return jax.tree.map(lambda x: np.array(x[index]), tree)


def assert_none_moved(before, after):
    """Check that an entry held before and after is in the same slot."""
    slot_before, slot_after = ({entry[0]: slot for slot, entry in held.items()} for held in (before, after))
    assert all(slot_after.get(id, slot) == slot for id, slot in slot_before.items())


@jax.jit
def rescore(buffer, history, score_B):
    return buffers.rescore(buffer, *buffers.locate(buffer, history), score_B)


@jax.jit
def insert(buffer, history, score_C, valid_C):
    buffer, id_C = buffers.assign_ids(buffer, valid_C)
    return buffers.insert(buffer, dataclasses.replace(history, id=id_C), score_C, jnp.zeros_like(id_C))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("size", "count"), [(1, 4), (4, 11), (7, 7), (16, 3)])
def test_insertion_equals_the_sequential_buffer(make_history, size, count, seed):
    rng = np.random.default_rng(seed)
    draw_scores = lambda n: rng.choice(np.float32([0.0, 0.1, 0.2]), n)
    tokens_of = lambda history: tuple(history.tokens.tolist())
    buffer, sequential, seen = buffers.create(size, 2), SequentialBuffer(size), [("base", 0)]
    for _ in range(8):
        key_B = [seen[i] for i in rng.integers(len(seen), size=5)]
        score_of = dict(zip(key_B, draw_scores(5)))  # equal keys carry equal scores
        is_base_B = np.array([kind == "base" for kind, _ in key_B])
        number_B = np.array([number for _, number in key_B])
        history = make_history(
            5, width=2, id=np.where(is_base_B, NO_ID, number_B), task=number_B, step=np.where(is_base_B, -1, 0)
        )
        buffer = rescore(buffer, history, np.array([score_of[key] for key in key_B]))
        for key in key_B:
            sequential.rescore(key, score_of[key])
        before = contents(buffer, tokens_of)
        assert set(before.values()) == sequential.contents()

        tokens_CW, score_C, valid_C = rng.integers(9, size=(count, 2)), draw_scores(count), rng.random(count) < 0.8
        task_C = rng.permutation(count)  # those below 3 are base tasks, unless the buffer holds them
        step_C = [-1 if task < 3 and not sequential.find(("base", task)) else 0 for task in task_C]
        history = make_history(count, width=2, tokens=tokens_CW, task=task_C, step=step_C)
        buffer, inserted_C = insert(buffer, history, score_C, valid_C)
        id_C = [
            sequential.insert(score_C[c], tuple(tokens_CW[c].tolist()), int(task_C[c]) if step_C[c] < 0 else None)
            if valid_C[c]
            else None
            for c in range(count)
        ]
        after = contents(buffer, tokens_of)
        assert set(after.values()) == sequential.contents()
        assert_none_moved(before, after)
        assert inserted_C.tolist() == [id in {entry[0] for entry in after.values()} for id in id_C]
        seen += [("base", int(task_C[c])) if step_C[c] < 0 else ("id", id_C[c]) for c in range(count) if valid_C[c]]


def test_the_oldest_of_tied_minima_leaves_and_a_tie_is_enough_to_enter(make_history):
    # Slots (id, S) = (0, .1) (1, .2) (2, .1). A newcomer of .1 reaches the minimum: 0 leaves, not 2, and it is not
    # turned away as by ">". One of .05 is. One of .2 then replaces 2, the oldest .1 left, not the newcomer 3.
    buffer = buffers.create(3, 4)
    for score_C in ([0.1, 0.2, 0.1], [0.1], [0.05], [0.2]):
        count = len(score_C)
        buffer, _ = insert(buffer, make_history(count, step=0), jnp.array(score_C), jnp.ones(count, bool))
    assert buffer.history.id.tolist() == [3, 1, 5]
    np.testing.assert_array_equal(buffer.score, np.float32([0.1, 0.2, 0.2]))


def test_a_base_task_is_found_by_task_and_a_history_by_the_id_it_was_drawn_with(make_history):
    held = make_history(3, id=[4, 5, NO_ID], task=[7, 7, -1], step=[-1, 0, -1])
    buffer = dataclasses.replace(buffers.create(3, 4), history=held)
    # A base task from the table, the same drawn from the buffer under an id since replaced, one that is not held; a
    # history that is held, one that has left; one of turn 1 without an answer, which is no base task.
    drawn = make_history(
        6, id=[NO_ID, 2, NO_ID, 5, 3, 9], task=[7, 7, -1, 7, 7, 7], step=[-1, -1, -1, 0, 0, -1], turn=[0] * 5 + [1]
    )
    slot_B, found_B = buffers.locate(buffer, drawn)
    assert found_B.tolist() == [True, True, False, True, False, False]
    assert slot_B[found_B].tolist() == [0, 0, 1]


# What ``expand`` reads of a batch. A row's tokens here are its request, task + 1, and its answer, if it has one.


def batch(history, children, finished=None, insertable=None, quality=None):
    """Return instances [B], rollouts [B, G] and grades [B, G, U] with what ``expand`` may look at, else None."""
    shape = children.task.shape
    finished = np.ones(shape[:2], bool) if finished is None else np.asarray(finished)
    insertable = np.ones(shape, bool) if insertable is None else np.asarray(insertable)
    quality = np.zeros(shape[:2], np.float32) if quality is None else np.float32(quality)
    return (
        Instances(history=history, mode=None, from_buffer=None, fresh=None, prompt=None, prompt_length=None),
        Rollouts(tokens=None, mask=None, logp=None, sampled_logp=None, finished=finished, hidden=None),
        Grades(quality=quality, valid=None, embedding=None, children=children, insertable=insertable, notes={}),
    )


def run_expand(config, buffer, parts, score_B, step=1, seed=0):
    """Run ``expand`` compiled, with the buffer donated."""
    return compiled_expand(config, buffer, *parts, jnp.float32(score_B), jnp.int32(step), jax.random.key(seed))


compiled_expand = jax.jit(expand, static_argnums=0, donate_argnums=1)


def children_of(make_history, history, answer_BGU):
    """Return children [B, G, U]: answers at the parent's turn, then first answers at the turns after it."""
    answer_BGU = np.asarray(answer_BGU)
    shape = answer_BGU.shape
    lift = lambda x: np.asarray(x)[:, None, None]
    first = np.arange(shape[2]) == 0
    return make_history(
        *shape,
        tokens=np.stack([np.broadcast_to(lift(history.task) + 1, shape), answer_BGU, *2 * [np.zeros(shape)]], -1),
        lengths=[0, 1, 1, 0],
        task=lift(history.task),
        turn=lift(history.turn) + np.arange(shape[2]),
        step=np.where(first, lift(history.step) + 1, 0),
        quality=0.5,
    )


def base_tasks(make_history, *task_B):
    """Return base tasks [B], whose only token is their request."""
    tokens_BW = [[task + 1, 0, 0, 0] for task in task_B]
    return make_history(len(task_B), task=task_B, tokens=tokens_BW, lengths=[0, 1, 0, 0])


def expand_sequentially(sequential, row_B, score_B, children_B, step):
    """Rescore the instances by their mean S, then insert the base tasks among them and their children, one by one."""
    key_B = [("base", int(row.task)) if row.step < 0 and row.turn == 0 else ("id", int(row.id)) for row in row_B]
    mean = {key: np.mean([s for k, s in zip(key_B, score_B) if k == key], dtype=np.float32) for key in key_B}
    for key in key_B:
        sequential.rescore(key, mean[key])
    held = {key: sequential.find(key) for key in key_B}
    id_of = {key: entry.id if entry else key[1] for key, entry in held.items()}
    for key, row in dict(zip(key_B, row_B)).items():  # each key once, in the order of the batch
        if key[0] == "base" and not held[key]:
            base = dataclasses.replace(row, born=step)
            id_of[key] = sequential.insert(mean[key], data_of(base), key[1], num_draws=key_B.count(key))
    for key, children in zip(key_B, children_B):
        for child in children:
            child = dataclasses.replace(child, born=step, parent=id_of[key])
            sequential.insert(mean[key], data_of(child))
    return [key_B.index(key) == b for b, key in enumerate(key_B)]


def data_of(history):
    """Return what a history holds but for its id and quality, in plain numbers."""
    return (*history.tokens.tolist(), *(int(getattr(history, x)) for x in ("task", "turn", "step", "born", "parent")))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [5, 12])
def test_expand_equals_the_sequential_buffer(exit_config, make_history, size, seed):
    rng = np.random.default_rng(seed)
    table = base_tasks(make_history, 0, 1, 2)
    pool = [row(table, m) for m in range(3)]  # also keeps the entries that have left the buffer since
    buffer, sequential = buffers.create(size, 4), SequentialBuffer(size)
    for step in range(1, 9):
        row_B = [pool[i] for i in rng.integers(len(pool), size=4)]
        score_B = rng.choice(np.float32([0.0, 0.125, 0.25]), 4)
        history = jax.tree.map(lambda *rows: np.stack(rows), *row_B)
        children = children_of(make_history, history, rng.integers(1, 3, size=(4, 2, 2)))
        finished_BG, insertable_BGU = rng.random((4, 2)) < 0.8, rng.random((4, 2, 2)) < 0.8
        before = contents(buffer, data_of)
        parts = batch(history, children, finished_BG, insertable_BGU)
        buffer, first_B, counts = run_expand(exit_config(), buffer, parts, score_B, step)
        after = contents(buffer, data_of)

        usable_BGU = insertable_BGU & finished_BG[..., None]
        changed_BGU = (np.asarray(children.tokens) != history.tokens[:, None, None]).any(-1)
        children_B = [[row(children, b, g, u) for g, u in np.argwhere((usable_BGU & changed_BGU)[b])] for b in range(4)]
        assert first_B.tolist() == expand_sequentially(sequential, row_B, score_B, children_B, step)
        assert set(after.values()) == sequential.contents()
        assert_none_moved(before, after)
        new_ids = {entry[0] for entry in after.values()} - {entry[0] for entry in before.values()}
        assert counts["buffer/inserted"] == len(new_ids)
        assert counts["children_unchanged"] == (usable_BGU & ~changed_BGU).sum()
        assert counts["children_unusable"] == (~usable_BGU).sum()
        pool += [row(buffer.history, n) for n in after]


def test_a_task_drawn_twice_takes_the_mean_score_and_one_slot(exit_config, make_history):
    # S = .1 and .3 of the same task: both estimate one variance, so it and all four children get .2, not .3 or .1.
    history = base_tasks(make_history, 3, 3)
    children = children_of(make_history, history, [[[1], [2]], [[3], [4]]])
    buffer, first_B, _ = run_expand(exit_config(), buffers.create(9, 4), batch(history, children), [0.1, 0.3])
    assert first_B.tolist() == [True, False]
    assert buffers.filled(buffer).tolist() == [True] * 5 + [False] * 4
    np.testing.assert_allclose(buffer.score[:5], 0.2, rtol=1e-6)
    assert buffer.num_draws[:5].tolist() == [2, 0, 0, 0, 0]
    assert buffer.history.parent[:5].tolist() == [NO_ID, 0, 0, 0, 0]
    assert buffer.history.step[:5].tolist() == [-1, 0, 0, 0, 0]

    # Drawn again, once from the table and once from the buffer, it is rescored where it is.
    again = jax.tree.map(lambda table, held: jnp.stack([table[0], held[0]]), history, buffer.history)
    children = children_of(make_history, again, [[[5], [6]], [[7], [8]]])
    donated = buffer
    buffer, _, counts = run_expand(exit_config(), buffer, batch(again, children), [0.0, 0.1])
    assert donated.score.is_deleted()
    assert int(counts["buffer/rescored"]) == 1
    assert [int(x[0]) for x in (buffer.history.id, buffer.num_draws, buffer.history.step)] == [0, 4, -1]
    np.testing.assert_allclose(buffer.score[0], 0.05, rtol=1e-6)
    assert int(buffers.is_base_task(buffer.history)[buffers.filled(buffer)].sum()) == 1


def test_children_of_a_history_that_has_left_still_name_it(exit_config, make_history):
    gone = make_history(1, id=41, step=0, tokens=[1, 9, 0, 0], lengths=[0, 1, 1, 0])
    parts = batch(gone, children_of(make_history, gone, [[[1], [2]]]))
    buffer, _, counts = run_expand(exit_config(), buffers.create(4, 4), parts, [0.1])
    assert int(counts["buffer/rescored"]) == 0
    assert buffer.history.parent.tolist() == [41, 41, NO_ID, NO_ID]


def test_a_history_that_is_lost_leaves_the_buffer(exit_config, make_history):
    """Its slot is free again, with no score written to it, and its rollouts yield nothing; the others stay."""
    first = make_history(2, step=0, tokens=[1, 9, 0, 0], lengths=[0, 1, 1, 0])
    parts = batch(first, children_of(make_history, first, [[[1], [2]], [[3], [4]]]))
    buffer, _, _ = run_expand(exit_config(), buffers.create(6, 4), parts, [0.1, 0.2])
    held = jax.tree.map(lambda leaf: leaf[:2], buffer.history)
    children = children_of(make_history, held, [[[5], [6]], [[7], [8]]])
    instances, rollouts, grades = batch(held, children, insertable=np.array([[[False]] * 2, [[True]] * 2]))
    grades = dataclasses.replace(grades, lost=np.array([True, False]))
    kept = np.asarray(buffer.history.id).tolist()[1:4]
    buffer, _, counts = run_expand(exit_config(), buffer, (instances, rollouts, grades), [0.0, 0.15])
    assert int(counts["buffer/lost"]) == 1
    assert int(counts["buffer/rescored"]) == 1
    ids = buffer.history.id.tolist()
    assert set(kept) <= set(ids)
    assert int(held.id[0]) not in ids
    assert int(buffers.filled(buffer).sum()) == 3 + 2


def inserted_answers(buffer):
    """Return the answers of the entries that hold one."""
    return sorted(buffer.history.tokens[buffers.filled(buffer) & (buffer.history.step >= 0)][:, 1].tolist())


@pytest.mark.parametrize(
    ("children", "answers"), [("all", [1, 3, 4]), ("improved", [3]), ("best", [3]), ("one", [[1], [3], [4]])]
)
def test_which_rollouts_become_children(exit_config, make_history, children, answers):
    # Answer 2 has the highest quality but is unfinished, so 3 is the best, and the only one above what was held.
    history = make_history(1, task=[0], tokens=[1, 0, 0, 0], lengths=[0, 1, 0, 0], quality=0.5)
    parts = batch(
        history,
        children_of(make_history, history, [[[1], [2], [3], [4]]]),
        finished=[[True, False, True, True]],
        quality=[[0.1, 0.9, 0.6, 0.5]],
    )
    config = exit_config(children=children)
    found = [inserted_answers(run_expand(config, buffers.create(8, 4), parts, [0.1], seed=s)[0]) for s in range(20)]
    if children == "one":
        assert {tuple(answer) for answer in found} == {tuple(answer) for answer in answers}
    else:
        assert found == [answers] * 20


def test_every_turn_of_the_chosen_rollout_is_inserted(exit_config, make_history):
    history = make_history(1, id=5, turn=1, step=0, tokens=[1, 9, 0, 0], lengths=[0, 1, 1, 0])
    children = children_of(make_history, history, [[[1, 2, 3], [4, 5, 6]]])
    parts = batch(history, children, quality=[[0.1, 0.2]], insertable=[[[True] * 3, [True, True, False]]])
    buffer, _, _ = run_expand(exit_config(children="best"), buffers.create(8, 4), parts, [0.1])
    assert inserted_answers(buffer) == [4, 5]
    assert buffer.history.turn[:2].tolist() == [1, 2]
    assert buffer.history.step[:2].tolist() == [1, 0]  # the turn iterated on goes a step deeper, the next starts anew


@pytest.mark.parametrize(("max_depth", "num_children"), [(0, 2), (2, 0), (3, 2)])
def test_max_depth_counts_the_responses_held(exit_config, make_history, max_depth, num_children):
    history = make_history(
        1, id=5, step=1, tokens=[1, 9, 0, 0], lengths=[0, 1, 1, 0]
    )  # step 1 holds the second response
    parts = batch(history, children_of(make_history, history, [[[1], [2]]]))
    buffer, _, _ = run_expand(exit_config(max_depth=max_depth), buffers.create(4, 4), parts, [0.1])
    assert buffers.filled(buffer).sum() == num_children


def test_unchanged_and_unfinished_answers_stay_out_and_are_counted(exit_config, make_history):
    history = make_history(1, id=5, step=0, tokens=[1, 9, 7, 0], lengths=[0, 1, 1, 1])  # the feedback 7 is no answer
    answer_BGU = [[[9], [8], [9], [6]]]
    parts = batch(history, children_of(make_history, history, answer_BGU), finished=[[True, True, False, False]])
    buffer, _, counts = run_expand(exit_config(), buffers.create(8, 4), parts, [0.1])
    assert inserted_answers(buffer) == [8]
    assert (int(counts["children_unchanged"]), int(counts["children_unusable"])) == (1, 2)


def test_the_curriculum_alone_keeps_turn_prefixes_without_their_answer(exit_config, make_history):
    history = base_tasks(make_history, 0)
    children = make_history(
        *(1, 1, 2),  # a rollout of two turns
        tokens=[[1, 2, 3, 0], [1, 2, 3, 4]],
        lengths=[[0, 1, 1, 1], [1, 1, 1, 1]],
        turn=[0, 1],
        step=0,
        quality=0.5,
    )
    buffer, _, _ = run_expand(
        exit_config(self_iteration=False), buffers.create(4, 4), batch(history, children), [0.1], step=6
    )
    held = buffer.history
    assert held.turn.tolist()[:2] == [0, 1]
    assert held.id.tolist() == [0, 1, NO_ID, NO_ID]
    assert [held.step.tolist()[1], held.parent.tolist()[1], held.born.tolist()[1]] == [-1, 0, 6]
    assert held.lengths[1].tolist() == [1, 1, 0, 0]
    assert held.tokens[1].tolist() == [1, 2, 0, 0]
    assert held.quality[1] == 0
    assert buffers.is_base_task(held).tolist()[:2] == [True, False]


def prefixes(make_history, turn_BGU, context_BGU, answer_BGU=5, task=0):
    """Return children [B, G, U] with a context and a request, of one token each, and an answer."""
    turn_BGU, context_BGU = np.broadcast_arrays(np.asarray(turn_BGU), np.asarray(context_BGU))
    shape = context_BGU.shape
    answer_BGU, task_BGU = np.broadcast_to(answer_BGU, shape), np.broadcast_to(task, shape)
    tokens = np.stack([context_BGU, np.full(shape, 7), answer_BGU, np.zeros(shape)], -1)
    return make_history(*shape, tokens=tokens, lengths=[1, 1, 1, 0], turn=turn_BGU, step=0, task=task_BGU)


def held_prefixes(buffer):
    """Return what the entries of a buffer hold: (task, turn, context) of each."""
    history = jax.tree.map(np.asarray, buffer.history)
    rows = zip(history.task, history.turn, history.tokens[:, 0])
    return [tuple(int(x) for x in row) for row, full in zip(rows, history.id != NO_ID) if full]


def test_a_turn_prefix_does_not_insert_itself(exit_config, make_history):
    # One entry, G = 8, drawn twice: all 16 rollouts begin at it, whatever they answer. Sixteen copies, if it is compared
    # with the answers that are dropped.
    config = exit_config(self_iteration=False)
    prefix = make_history(1, turn=1, tokens=[[3, 7, 0, 0]], lengths=[1, 1, 0, 0])
    buffer, _ = insert(buffers.create(20, 4), prefix, jnp.array([0.1]), jnp.ones(1, bool))
    for step in (1, 2):
        entry = jax.tree.map(lambda leaf: leaf[:1], buffer.history)
        children = prefixes(make_history, 1, np.full((1, 8, 1), 3), answer_BGU=np.arange(8)[None, :, None] + 4)
        buffer, _, counts = run_expand(config, buffer, batch(entry, children), [0.2], step)
        assert held_prefixes(buffer) == [(0, 1, 3)]
        assert (int(counts["buffer/inserted"]), int(counts["children_unchanged"])) == (0, 8)
    assert buffer.num_draws[0] == 2
    # an empty response leads to the next turn with the same context, which is another task all the same
    children = prefixes(make_history, [[[1]] + [[2]] * 7], np.full((1, 8, 1), 3))
    buffer, _, counts = run_expand(config, buffer, batch(entry, children), [0.2], 3)
    assert held_prefixes(buffer) == [(0, 1, 3), (0, 2, 3)]
    assert (int(counts["children_unchanged"]), int(counts["children_repeated"])) == (1, 6)


def test_a_turn_prefix_is_in_the_buffer_once(exit_config, make_history):
    # Contexts 3 4 | 3 9 after turns 1 and 2, from two draws of task 0; 3 4 from task 1, whose prefixes are others.
    context_BGU = [[[3, 4], [3, 9]], [[3, 4], [3, 4]], [[3, 4], [3, 4]]]
    children = prefixes(make_history, [1, 2], context_BGU, task=[[[0]], [[0]], [[1]]])
    parts = batch(base_tasks(make_history, 0, 0, 1), children)
    config = exit_config(self_iteration=False)
    buffer, _, counts = run_expand(config, buffers.create(20, 4), parts, [0.1, 0.1, 0.2])
    once = [(0, 1, 3), (0, 2, 4), (0, 2, 9), (1, 1, 3), (1, 2, 4)]
    assert sorted(x for x in held_prefixes(buffer) if x[1]) == once
    assert int(counts["children_repeated"]) == 12 - 5
    # the same batch again adds nothing: its prefixes are held; what has left may come back
    buffer = buffers.drop(buffer, jnp.argmax(buffer.history.tokens[:, 0] == 9)[None], jnp.array([True]))
    buffer, _, counts = run_expand(config, buffer, parts, [0.1, 0.1, 0.2], 2)
    assert sorted(x for x in held_prefixes(buffer) if x[1]) == once
    assert (int(counts["buffer/inserted"]), int(counts["children_repeated"])) == (1, 11)


@pytest.mark.parametrize(("children", "answers"), [("all", [1, 1, 2]), ("distinct", [1, 2])])
def test_equal_answers_of_a_group_are_as_many_children_unless_they_are_to_be_distinct(
    exit_config, make_history, children, answers
):
    history = base_tasks(make_history, 0)
    parts = batch(history, children_of(make_history, history, [[[1], [2], [1]]]))
    buffer, _, _ = run_expand(exit_config(children=children), buffers.create(8, 4), parts, [0.1])
    assert inserted_answers(buffer) == answers


@pytest.mark.parametrize("seed", range(3))
def test_equal_histories_have_equal_fingerprints_and_others_have_others(make_history, seed):
    """Against Python tuples of what is held; what lies beyond a row's end, and its feedback, are no part of it."""
    rng = np.random.default_rng(seed)
    count, width = 300, 7
    fields = {"task": rng.integers(2, size=count), "turn": rng.integers(2, size=count)}
    lengths, tokens = rng.integers(3, size=(count, 4)), rng.integers(3, size=(count, width))
    tokens[::2] += 2**17  # as of large vocabularies
    history = make_history(count, width=width, tokens=tokens, lengths=lengths, **fields)
    marks = [tuple(mark) for mark in np.asarray(jax.jit(fingerprint)(history)).tolist()]
    held = [
        (int(task), int(turn), tuple(ends), tuple(row[: ends[-1]].tolist()))
        for task, turn, ends, row in zip(*fields.values(), np.cumsum(lengths[:, :3], 1).tolist(), tokens)
    ]
    assert len(set(held)) < count, "a test of no equal ones"
    assert len(set(zip(marks, held))) == len(set(marks)) == len(set(held))


def test_what_draws_ask_for_is_kept_with_the_entries(exit_config, make_history):
    # Two entries are drawn at iteration 5 and come to qualities of at most .5 and .75; their children are born then
    buffer = buffers.create(4, 4, scored=True, best=True)
    history = make_history(2, id=[0, 1], step=0, born=[2, 3], task=[0, 1])
    blank = jnp.full(2, -jnp.inf)
    buffer, _ = buffers.insert(buffer, history, jnp.array([0.1, 0.2]), jnp.zeros(2, jnp.int32), blank)
    np.testing.assert_array_equal(buffer.scored, [2, 3, 0, 0])
    buffer = buffers.rescore(buffer, jnp.array([0, 1]), jnp.ones(2, bool), jnp.zeros(2), 5, jnp.array([0.5, 0.75]))
    buffer = buffers.rescore(
        buffer, jnp.array([0, 1]), jnp.array([True, False]), jnp.zeros(2), 9, jnp.array([0.25, 1.0])
    )
    np.testing.assert_array_equal(buffer.scored[:2], [9, 5])
    np.testing.assert_array_equal(buffer.best, np.float32([0.5, 0.75, -np.inf, -np.inf]))
