"""The tasks of an environment and how each of them begins: asked once, kept in a file, and held to it at every start.

The file is named by a digest of all that its content depends on (environment, its code and arguments, rows), and is one of the
run's inputs. It holds, besides, an episode with fixed responses: two of it are played side by side before the file is made, and
every start compares with it, so that an environment that is not deterministic, or another one by now, is found at load.
"""

import collections
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from exit_jax.domains import lookup
from exit_jax.domains.domain import DomainError
from exit_jax.domains.multi_turn import protocol
from exit_jax.domains.multi_turn.episode import Task
from exit_jax.domains.multi_turn.settings import MultiTurnConfig
from exit_jax.domains.multi_turn.world import World, why_failed
from exit_jax.domains.task import left_out, rows
from exit_jax.domains.task.rows import Row
from exit_jax.domains.text.settings import SPAN
from exit_jax.errors import GradingError

log = logging.getLogger(__name__)
RULES = 1  # version of the rules by which openings are made and kept
SPLITS = ("train", "validation", "test")
OWN = "rows"  # name of the environment's own tasks as a source
MAX_SEED = 1 << 31  # seeds of tasks are below; NumPy's limit is 2^32
NUM_TRIED = 3  # rows with which the environment is tried until one can be begun
PROGRESS_SECS = 20.0


@dataclasses.dataclass(frozen=True)
class Opened:
    """The tasks of an environment, and where they are played."""

    splits: Mapping[str, tuple[Task, ...]]
    files: Mapping[str, pathlib.Path]  # what was read
    world: World


def load(config: MultiTurnConfig) -> Opened:
    """Return the tasks of a config, each with its opening.

    Raises:
      UserError: listing what is wrong with the environment or its tasks.
    """
    code = protocol.source(config.environment)
    sums = hashlib.sha256(code.read_bytes()).hexdigest() if code and code.is_file() else ""
    name = lookup.identity(config.environment)  # of a file, the folder counts for nothing
    identity = protocol.digest([RULES, name, sums, sorted(config.environment_args)])
    world = World(config, identity)
    try:
        found, files, report = _rows(config, world)
        plan = {"rules": RULES, "environment": name, "arguments": sorted(config.environment_args), "code": sums}
        plan |= {"texts": list(config.check_texts), "turns": config.max_turns}
        plan["tasks"] = protocol.digest({split: [_row(config, row) for row in own] for split, own in found.items()})
        path = _folder(config) / f"openings-{protocol.digest(plan)[:16]}.jsonl"
        kept = _read(path, plan, found) if path.exists() else None
        tried = [_row(config, row) for row in next(iter(found.values()))[:NUM_TRIED]]
        played, concurrent = _check(config, world, tried, kept and (path, kept[0]))
        if not concurrent:
            world.go_alone()
        if kept is None:
            kept = played, _open(config, world, found, partial := path.with_suffix(".partial"))
            _write(path, plan, *kept)
            partial.unlink(missing_ok=True)
    except BaseException:
        world.close()
        raise
    splits = _tasks(config, found, kept[1], report)
    files |= {"the openings of the tasks": path} | ({f"the environment {name}": code} if sums and code else {})
    return Opened(splits, files, world)


def _folder(config: MultiTurnConfig) -> pathlib.Path:
    return pathlib.Path(config.data_dir).expanduser().absolute()


# Rows


def _rows(
    config: MultiTurnConfig, world: World
) -> tuple[Mapping[str, Sequence[Row]], dict[str, pathlib.Path], list[dict[str, str]]]:
    """Return the rows of each split, the files that they are in, and what was left out of them."""
    if config.tasks:
        table = rows.load(config)
        if table.left_out:
            log.warning("%s", table.account().splitlines()[-1])
        return table.splits, dict(table.files), table.left_out
    found: dict[str, list[Row]] = {}
    seen: dict[str, str] = {}
    beyond: list[dict[str, str]] = []
    for split in reversed([split for split in SPLITS if split in config.splits]):  # what is tested on comes first
        count = getattr(config, f"num_{split}")
        first = (len(SPLITS) * config.split_seed + SPLITS.index(split)) * SPAN % MAX_SEED
        given = world.ask_one({"rows": split, "count": count, "first": first}, 1)["rows"]
        found[split] = []
        for number, row in enumerate(given):
            text, place = json.dumps(row, sort_keys=True), f"{OWN}:{split}:{number + 1}"
            if text in seen:
                beyond.append(left_out.entry(place, f"the same as {seen[text]}", text))
                continue
            seen[text] = place
            found[split].append(Row(text, (), row, OWN, place, False))
        if not found[split]:
            raise DomainError(
                f"domain.environment = {config.environment!r}: its rows give {len(given)} tasks for {split}, none that another "
                f"split does not have, of {count} that are asked for; let rows give other ones from first = {first} on, or "
                "name domain.tasks"
            )
        if len(found[split]) < count:
            log.warning(
                "the environment has %d tasks for %s, of %d that are asked for", len(found[split]), split, count
            )
    return {split: found[split] for split in SPLITS if split in found}, {}, beyond


def _row(config: MultiTurnConfig, row: Row) -> dict[str, Any]:
    """Return the columns of a row as they were, its prompt included."""
    if not config.prompt_column:
        return dict(row.columns)
    messages = [*row.messages, ("user", row.prompt)]
    chat = [{"role": role, "content": content} for role, content in messages]
    return {**row.columns, config.prompt_column: chat if row.conversational else row.prompt}


# What the environment says of them


def _check(
    config: MultiTurnConfig, world: World, tried: Sequence[Any], kept: tuple[pathlib.Path, list] | None
) -> tuple[list[Any], bool]:
    """Return what an episode with fixed responses comes to, and whether several instances may be alive at a time.

    Raises:
      DomainError: it is not what the protocol asks for, or differs from time to time.
    """
    c, where = config, f"domain.environment = {config.environment!r}"
    num_calls = 6 * len(c.check_texts) * (c.max_turns + 1)
    messages = [{"check": row, "texts": c.check_texts, "max_turns": c.max_turns} for row in tried]
    message, reply = _first(world, messages, num_calls)
    if reply["differs"]:
        raise DomainError(
            f"{where} is not deterministic: {reply['differs']}; the same row and responses must lead to the same observations "
            "and rewards, whatever other instances do, since a history is brought about again by its responses: seed all that "
            "is random from the row, and keep nothing outside of the instance"
        )
    if kept and (kept[1] != reply["played"]):
        pairs = zip([*kept[1], None], [*reply["played"], None])
        was, now = next(pair for pair in pairs if pair[0] != pair[1])
        raise DomainError(
            f"{where} plays otherwise than when {kept[0]} was made: {str(was)[:200]} is {str(now)[:200]} now; if it was "
            "changed, delete that file and begin another run, else it is not deterministic"
        )
    if not kept and (raised := reply["played"][-1].get("raised")):
        log.warning(
            "%s raises %s on a response as of domain.check_texts; such responses end their episode", where, raised
        )
    world.reference = message, num_calls, reply["played"]
    return reply["played"], reply["concurrent"]


def _first(
    world: World, messages: Sequence[Mapping[str, Any]], num_calls: int
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return the first of some jobs at load that does not fail, and its reply; a row may be one that cannot be begun.

    Raises:
      DomainError: all of them fail; with what is wrong with the first.
    """
    faults = []
    for message in messages:
        try:
            return message, world.ask_one(message, num_calls)
        except DomainError as error:
            faults.append(error)
    raise faults[0]


def _open(
    config: MultiTurnConfig, world: World, found: Mapping[str, Sequence[Row]], partial: pathlib.Path
) -> list[dict[str, Any]]:
    """Return for each task, in order, its opening, or why it has none; ``partial`` keeps what is known if this is cut off."""
    todo = [row for own in found.values() for row in own]
    made = _read_partial(partial)
    places = [place for place in range(len(todo)) if place not in made]
    log.info("asking %s for the openings of %d tasks", config.environment, len(places))
    told = time.monotonic()
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("a") as file:
            for index, reply in world.ask([({"open": _row(config, todo[place])}, 1, "") for place in places]):
                why = why_failed(reply)
                made[places[index]] = {"left_out": why} if why else {"opening": reply["opening"]}
                file.write(json.dumps([places[index], made[places[index]]]) + "\n")
                if time.monotonic() - told > PROGRESS_SECS:
                    told = time.monotonic()
                    file.flush()
                    log.info("%d of %d openings", len(made), len(todo))
    except GradingError as error:
        raise DomainError(str(error)) from error
    return [made[place] for place in range(len(todo))]


def _read_partial(path: pathlib.Path) -> dict[int, dict[str, Any]]:
    """Return the openings by place that were made before this was cut off; its last line may be half of one."""
    made = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            place, one = json.loads(line)
        except ValueError:
            continue
        made[place] = one
    if made:
        log.info("%d openings are there already", len(made))
    return made


def _tasks(
    config: MultiTurnConfig, found: Mapping[str, Sequence[Row]], made: Sequence[Mapping[str, Any]], beyond: list[dict]
) -> dict[str, tuple[Task, ...]]:
    """Return the tasks by split; rows without an opening are left out, and listed with the others in ``beyond``.

    Raises:
      DomainError: a split has none left.
    """
    given, reasons = iter(made), collections.Counter[str]()
    splits: dict[str, tuple[Task, ...]] = {}
    for split, own in found.items():
        tasks = []
        for row, one in zip(own, given):
            if why := one.get("left_out"):
                reasons[why] += 1
                beyond.append(left_out.entry(row.place, f"its reset failed: {why}", row.prompt))
            else:
                opening = tuple((role, content) for role, content in one["opening"])
                tasks.append(Task(_row(config, row), opening, row.source, row.place))
        if not tasks:
            raise DomainError(
                f"domain.environment = {config.environment!r}: none of the {len(own)} tasks of {split} can be begun "
                f"({reasons.most_common(1)[0][0]}); mend it, or the tasks"
            )
        splits[split] = tuple(tasks)
    left_out.write_left_out(_folder(config), beyond)
    if reasons:
        why, count = reasons.most_common(1)[0]
        where = _folder(config) / left_out.FILE
        log.warning(
            "%d tasks are left out, since reset failed (%d times: %s); listed in %s", reasons.total(), count, why, where
        )
    return splits


# The file


def _read(path: pathlib.Path, plan: Mapping[str, Any], found: Mapping[str, Sequence[Row]]) -> tuple[list, list]:
    """Return what a file holds: an episode with fixed responses, and the openings.

    Raises:
      DomainError: it is damaged.
    """
    try:
        first, *made = map(json.loads, path.read_text().splitlines())
        if first["plan"] == plan and len(made) == sum(map(len, found.values())):
            return first["played"], made
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DomainError(f"{path} is damaged; delete it, and it is made again")


def _write(path: pathlib.Path, plan: Mapping[str, Any], played: list, made: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".partial", delete=False) as file:
        try:
            file.writelines(json.dumps(line) + "\n" for line in [{"plan": plan, "played": played}, *made])
            os.chmod(file.name, 0o644)  # that of a temporary file is for its owner alone
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
