"""The pytrees that one ExIt iteration passes around.

Dimension letters, used as suffixes of array names everywhere in exit_jax:

    B  prompts an iteration        M  base tasks of a split
    G  rollouts a prompt           N  slots of the task buffer
    P  prompt tokens               W  tokens of a packed history
    T  completion tokens           U  histories that one rollout yields
    V  vocabulary                  E  embedding of a response
    L  layers   D  model   H  heads   K  key/value heads

Words are the paper's (ExIt §2.1): a *turn* is one response within an episode, a *step* k is a self-iteration
on one turn's response. ``step`` names the response that is held: -1 none yet, 0 the first response.
"""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Params = Any  # a nested dict of arrays
Metrics = dict[str, Array]

PIECES = ("context", "request", "solution", "feedback")
MODES = ("base", "improve", "diverge")
BASE, IMPROVE, DIVERGE = range(3)
CRITIQUE = 3  # asks for what is wrong with a response; no mode of training's instances, but of protocols and scaffolds
ALL_MODES = (*MODES, "critique")
NO_ID = -1
GENERATED = 1 << 30  # tasks with this number and above are in no split's table

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True)
def pytree(cls: type[_T]) -> type[_T]:
    """Make ``cls`` a frozen dataclass that JAX sees as a pytree of its fields."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


def younger() -> Any:
    """Return a field that the first checkpoints did not have: None by default, and while it is None they do not name it."""
    return dataclasses.field(default=None, metadata={"younger": True})


@pytree
class History:
    """Partial histories (ExIt §2.1) as ragged token pieces, packed end to end in one row each.

    Leading dimensions are free: ``[N]`` in the buffer, ``[M]`` in the table of base tasks, ``[B, G, U]`` for children.
    """

    tokens: Array  # int32 [..., W]: the pieces in the order of PIECES, then zeros
    lengths: Array  # int32 [..., 4]: tokens of each piece
    id: Array  # int32 [...]: number of its insertion, NO_ID outside the buffer
    task: Array  # int32 [...]: number of the base task it stems from
    turn: Array  # int32 [...]: turn whose response is held or due, from 0
    step: Array  # int32 [...]: self-iteration step of the response that is held, -1 if none
    quality: Array  # float32 [...]: quality in [0, 1] of what is held
    born: Array  # int32 [...]: training iteration that made it
    parent: Array  # int32 [...]: id of the history it was improved from, NO_ID for base tasks


def make_history(tokens: Any, lengths: Any, task: Any, turn: Any = 0, step: Any = -1, quality: Any = 0.0) -> History:
    """Return histories outside the buffer, of NumPy's arrays where ``lengths`` is one of these, else of JAX's.

    Args:
      tokens: int32 [..., W].
      lengths: int32 [..., 4].
      task, turn, step, quality: [...], or one for all.
    """
    is_numpy = isinstance(lengths, np.ndarray)
    full: Any = np.full if is_numpy else jnp.full

    def each(value: Any, dtype: Any = np.int32) -> Any:
        return full(lengths.shape[:-1], value, dtype)

    return History(
        tokens=tokens,
        lengths=lengths,
        id=each(NO_ID),
        task=each(task),
        turn=each(turn),
        step=each(step),
        quality=each(quality, np.float32),
        born=each(0),
        parent=each(NO_ID),
    )


@pytree
class Instances:
    """The self-improvement task instances that one iteration trains on."""

    history: History  # [B]
    mode: Array  # int32 [B]: BASE, IMPROVE or DIVERGE
    from_buffer: Array  # bool [B]
    fresh: Array  # bool [B]: never trained on before
    prompt: Array  # int32 [B, P], padded on the right
    prompt_length: Array  # int32 [B]
    # [B]: the tasks as they are without what they were started with, for the buffer; None where they are ``history``
    origin: Any = younger()
    # (int32 [B, P], int32 [B]): the prompt that is learnt from, with its length; None where it is ``prompt``
    learnt_prompt: Any = younger()


@pytree
class Rollouts:
    """Responses exactly as they were sampled; gradients are taken on nothing else."""

    tokens: Array  # int32 [B, G, T]
    mask: Array  # bool [B, G, T], True for tokens that the policy sampled
    logp: Array  # float32 [B, G, T], nats a token under the policy at the sampling temperature, 0 where masked
    # float32 [B, G, T], under what was sampled from: as logp, but for tokens that top-k and such cut off
    sampled_logp: Array
    finished: Array  # bool [B, G], False where the response ran out of room
    hidden: Array  # float32 [B, G, D]: mean of the policy's final states that the tokens were predicted from
    # bool [B, G, T]: sampled tokens of responses with a valid ending, whatever became of their episode; None where all
    # tokens of a row are one response, or stand and fall together, by ``finished``
    ended: Any = None


@pytree
class Grades:
    """What a domain says of rollouts."""

    quality: Array  # float32 [B, G] in [0, 1]: quality of the history that results
    valid: Array  # bool [B, G], False for a response that could not be used; it is paid 0
    embedding: Array  # float32 [B, G, E]: of the response, for the diversity bonus
    children: History  # [B, G, U]: pieces, task, turn, step and quality are set
    insertable: Array  # bool [B, G, U]: may enter the buffer
    # float32 [B, G] by name: what else of the grading is worth knowing, as metrics of their means
    notes: dict[str, Array]
    lost: Any = None  # bool [B]: the history could not be brought about again, and leaves the buffer; None for no one


@pytree
class TaskBuffer:
    """The bootstrapped task space B (ExIt §4.1): top N partial histories by learnability."""

    history: History  # [N], id NO_ID in an empty slot
    score: Array  # float32 [N]: learnability S, -inf in an empty slot
    num_draws: Array  # int32 [N]: how often the entry was trained on
    next_id: Array  # int32 []: ids count insertions, so a smaller id is an older entry
    scored: Any = younger()  # int32 [N]: iteration at which the score was written; None where no draw asks
    best: Any = younger()  # float32 [N]: highest quality of its children, -inf before any; None where no draw asks


@pytree
class Starts:
    """A reservoir sample of the histories with a solution that training started from."""

    history: History  # [S]
    # float32 [S]: priority in the reservoir, drawn in [0, 1), the highest stay; -1 for a slot that holds nothing. Checkpoints
    # know it by this name
    lot: Array


@pytree
class Pool:
    """Groups that were admitted and wait to be learnt from (algorithm/pool.py, and algorithm/rounds.py)."""

    groups: Any  # Groups [2B], or all that a round samples
    count: Array  # int32 []: how many of them there are
    updates: Array  # int32 []: batches, or rounds, that were learnt from


@pytree
class Replay:
    """The policy's own good responses, in a ring (algorithm/replay.py)."""

    prompt: Array  # int32 [R, P]
    prompt_length: Array  # int32 [R]
    tokens: Array  # int32 [R, T]
    mask: Array  # bool [R, T]
    logp: Array  # float32 [R, T], nats, when they were sampled
    reward: Array  # float32 [R]
    born: Array  # int32 [R]: iteration that sampled it, -1 for an empty place
    head: Array  # int32 []: place of the next one
    means: Array  # float32 [W]: mean rewards of the newest groups, NaN before there are so many
    num_means: Array  # int32 []: groups so far


@pytree
class KeptGroups:
    """Groups whose rewards differ, which take the places of groups whose rewards do not (algorithm/regroup.py)."""

    groups: Any  # Groups [K]
    score: Array  # float32 [K]: what they are kept and drawn by, 0 for an empty place


@pytree
class StartLevel:
    """How much of its gold solution each base task starts with."""

    level: Array  # float32 [M], in [0, 1]
    first: Array  # int32 []: number of the first task


@pytree
class State:
    """All state of a run; restoring it resumes the run exactly."""

    params: Params
    reference: Params  # None without a KL term
    opt_state: Any
    buffer: TaskBuffer
    key: Array  # root PRNG key, constant over the run
    step: Array  # int32 []: training iterations done
    cursor: Array  # int32 []: base tasks drawn, the position in the shuffled epochs
    num_distinct: Array  # int32 []: distinct instances trained on
    starts: Starts
    curriculum: Any = younger()  # CurriculumState; None where base tasks come in shuffled epochs
    pool: Any = younger()  # Pool; None where every batch is learnt from at once
    replay: Any = younger()  # Replay; None without one
    regroup: Any = younger()  # KeptGroups; None where no group takes another's place
    initial: Any = younger()  # Params that every round learns from anew; None where it goes on from the last ones
    start_level: Any = younger()  # StartLevel; None where no task starts with some of its gold solution
    baseline: Any = younger()  # float32 [number of modes]: running baseline of the reward; None without baseline_decay
