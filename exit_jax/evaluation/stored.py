"""The file of all responses of an evaluation: what an interrupted one goes on from, and a repeated one grades again."""

import hashlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax import domains
from exit_jax.config.schema import Config, EvalConfig
from exit_jax.evaluation.outcome import count_too_long
from exit_jax.parallel import hosts
from exit_jax.types import Params
from exit_jax.workdir import identity

# fields of eval that change no chain: which splits and scaffolds there are, and what is kept of them
OPERATIONAL = ("splits", "restart_every", "greedy", "scaffolds", "beam_width", "num_chains_saved")


def fingerprint(params: Params) -> str:
    """Return a hash of all bits of parameters; the same however they are sharded."""

    def fold(leaf):
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint16 if leaf.dtype.itemsize == 2 else jnp.uint32)
        bits = bits.astype(jnp.uint32)
        return jnp.stack([bits.sum(), (bits * (bits >> 7 | 1)).sum()])

    sums = jax.jit(lambda tree: jnp.stack([fold(leaf) for leaf in jax.tree.leaves(tree)]))(params)
    return hashlib.sha256(np.asarray(sums).tobytes()).hexdigest()[:16]


def open_stored(
    config: Config, params: Params, workdir: pathlib.Path, split: str, name: str, **recipe: Any
) -> "Stored":
    """Open ``answers/<name>.jsonl``, emptied if it is another policy's or made by other settings.

    The number of tasks that are too long tells it apart from files of versions that left such tasks out.
    """
    if too_long := count_too_long(domains.make(config.domain_name, config.domain), split):
        recipe["num_too_long"] = too_long
    settings = identity.without_defaults(EvalConfig, identity.to_dict(config)["eval"])
    settings = {k: v for k, v in settings.items() if k not in OPERATIONAL}
    domain = {name: value for name, value in identity.scientific(config).items() if name.startswith("domain.")}
    header = {"split": split, "policy": fingerprint(params), "recipe": identity.digest(settings | domain | recipe)}
    return Stored(workdir / "answers" / f"{name}.jsonl", header)


class Stored:
    """A JSONL of responses: a header, then the rows of one step of one batch after the other."""

    def __init__(self, path: pathlib.Path, header: dict):
        self.path, self._offsets = path, []
        if hosts.is_lead():
            path.parent.mkdir(parents=True, exist_ok=True)
            end = self._index(header)
            with path.open("r+b" if end else "wb") as file:  # drop half a step, or another policy's responses
                file.truncate(end)
                if not end:
                    file.write(json.dumps(header).encode() + b"\n")
        elif path.exists():
            self._index(header)
        self._count = -hosts.agree(-len(self._offsets))  # steps that every process can read
        self._file = path.open("ab") if hosts.is_lead() else None

    def _index(self, header: dict) -> int:
        """Find where complete steps begin, each marked by the number of its rows; return where the last one ends."""
        if not self.path.exists():
            return 0
        end = 0
        with self.path.open("rb") as file:
            if not _is(file.readline(), header):
                return 0
            end = file.tell()
            while line := file.readline():
                offset, count = file.tell(), _count(line)
                lines = [file.readline() for _ in range(count)]
                if not count or not lines[-1].endswith(b"\n"):
                    break
                self._offsets.append(offset)
                end = file.tell()
        return end

    def get(self, number: int) -> list[dict] | None:
        """Return the rows of the number-th step; None if it is yet to be sampled."""
        if number >= self._count:
            return None
        with self.path.open("rb") as file:
            file.seek(self._offsets[number])
            rows = []
            while (line := file.readline()) and not _count(line):
                rows.append(json.loads(line))
        return rows

    def put(self, rows: list[dict]) -> None:
        """Append the rows of a step."""
        if self._file:
            lines = [json.dumps({"rows": len(rows)}), *map(json.dumps, rows)]
            self._file.write("".join(f"{line}\n" for line in lines).encode())
            self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()


def _is(line: bytes, header: dict) -> bool:
    return line == json.dumps(header).encode() + b"\n"


def _count(line: bytes) -> int:
    """Return the number of rows that a step's first line announces; 0 for any other line."""
    if not line.startswith(b'{"rows": ') or not line.endswith(b"}\n"):
        return 0
    return int(line[9:-2])
