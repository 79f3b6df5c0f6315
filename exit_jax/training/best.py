"""The best policy of a run: ``<workdir>/best``, a workdir of its own that holds the run as it stood when a figure was highest.

So whatever takes a workdir takes it: --mode evaluate, export and serve, ``exit_jax.run.improve``, or a copy that is trained on.
"""

import contextlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from exit_jax.config.schema import Config
from exit_jax.parallel import hosts
from exit_jax.workdir import remote
from exit_jax.workdir.checkpoint import Checkpoints
from exit_jax.workdir.metrics import read_jsonl

FOLDER = "best"
# what says which experiment a folder holds; the second is not always there
COPIED = ("config.json", "inputs.json", "tasks.json")


def keep_if_best(config: Config, workdir: pathlib.Path, step: int, carry: Any, figures: Mapping[str, float]) -> None:
    """Save ``carry``, the run at ``step``, if ``figures`` has the highest ``run.keep_best`` yet; the first of equal ones stays.

    Returns once it is on disk, before ``step`` is in train.jsonl or a checkpoint, so that no row tells of a best policy that is
    not there. The rows before ``step`` alone say what is to be surpassed: after a kill a run decides as it did before.
    """
    name = config.run.keep_best
    if name not in figures or not hosts.agree(hosts.is_lead() and _surpasses(workdir, name, step, figures[name])):
        return
    folder = workdir / FOLDER
    if hosts.is_lead():
        folder.mkdir(exist_ok=True)
        for file in (workdir / copied for copied in COPIED):
            if file.exists():
                partial = folder / f"{file.name}.tmp"
                partial.write_bytes(file.read_bytes())
                os.replace(partial, folder / file.name)
        saved = [int(found) for found in remote.children(folder / "checkpoints") if found.isdigit()]
        for later in filter(step.__lt__, saved):  # of before a kill, after which this figure or its values are others
            (remote.place(folder / "checkpoints") / str(later)).rmtree()
    hosts.agree(0)  # the others list the folder once it is done
    with contextlib.closing(Checkpoints(folder / "checkpoints", keep=1)) as checkpoints:
        checkpoints.save(step, carry)


def _surpasses(workdir: pathlib.Path, name: str, step: int, value: float) -> bool:
    rows = read_jsonl(workdir / "train.jsonl", "step")
    return all(row[name] < value for row in rows if row["step"] < step and name in row)
