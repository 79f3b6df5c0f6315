"""A small local page that follows a run while it goes on: it reads the workdir's files alone, and changes nothing there.

It is served to this machine only (127.0.0.1), for reading. The page is ``watch.html`` beside this module; every few seconds it
asks for what ``look`` returns, and for the page of chains of what is there so far.
"""

import functools
import http.server
import importlib.resources
import json
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from exit_jax.errors import ConfigError
from exit_jax.report import browser, runs
from exit_jax.report.during import KEY
from exit_jax.types import MODES
from exit_jax.workdir import remote
from exit_jax.workdir.metrics import read_jsonl

MAX_POINTS = 400  # of a curve
RECENT = 20  # iterations whose median time says how long the rest takes
NUM_FAULTS = 8
# panel -> line -> metric of train.jsonl, or of warm_start.jsonl while there are none
PANELS: dict[str, dict[str, str]] = {
    "reward": {"": "reward"},
    "quality": {mode: f"quality/{mode}" for mode in MODES},
    "tokens a second": {"": "time/tokens_per_sec"},
    "seconds an iteration": {"": "time/secs_per_step"},
    "groups all paid alike (share)": {"": "zero_variance_groups"},
    "response length (tokens)": {"": "response_length"},
    "entropy (nats a token)": {"": "entropy"},
    "gradient norm": {"": "grad_norm"},
    "buffer: score S": {name: f"buffer/score_{name}" for name in ("max", "median", "min")},
    "buffer: slots filled (share)": {"": "buffer/fill"},
    "depth (responses)": {"trained on": "start_depth", "in the buffer": "buffer/depth"},
    "unusable responses (share)": {"invalid": "invalid", "unfinished": "unfinished"},
    "warm start: loss": {"": "warm_start/loss"},
}


def look(workdir: pathlib.Path) -> dict[str, Any]:
    """Return what the page shows of a workdir: how far it is, its curves, faults, and newest rollouts."""
    recorded = runs.load_object(workdir / "config.json")
    title, file = "train", workdir / "train.jsonl"
    warm = sorted(workdir.glob("warm_start/*/warm_start.jsonl"), key=lambda path: path.stat().st_mtime)
    if not file.exists() and warm:
        title, file = "warm_start", warm[-1]
    changed = file.stat().st_mtime if file.exists() else None
    rows = _read_rows(file, changed)
    total = planned(recorded, title)
    recent = [row for row in rows[-RECENT:] if row.get("time/secs_per_step")]
    secs = [row["time/secs_per_step"] for row in recent]
    usual = float(np.median(secs)) if secs else None  # one that compiles says nothing of the rest
    evaluating = sum(row.get("time/eval_secs") or 0.0 for row in recent) / max(len(recent), 1)
    step = rows[-1]["step"] if rows else 0
    age = None if changed is None else max(time.time() - changed, 0.0)
    config = recorded.get("config", {})
    return {
        "title": f"{config.get('name', workdir.name)}, {config.get('variant', '?')}, seed {config.get('seed', '?')}",
        "folder": f"{workdir.parent.name}/{workdir.name}",
        "phase": title.replace("_", " "),
        "step": step,
        "total": total,
        "secs_per_step": usual,
        "tokens_per_sec": rows[-1].get("time/tokens_per_sec") if rows else None,
        "left_secs": max(total - step, 0) * (usual + evaluating) if usual and total else None,
        "age_secs": age,
        "done": (workdir / "evaluation.json").exists() and step >= total > 0,
        "faults": faults(rows, age, max(secs, default=0.0) + evaluating * RECENT, step >= total),
        "panels": panels(rows),
        "rollouts": newest_rollouts(workdir),
        "has_chains": (workdir / "chains.jsonl").exists() or any((workdir / "rollouts").glob("*.parquet")),
    }


@functools.lru_cache(maxsize=2)
def _read_rows(file: pathlib.Path, changed: float | None) -> list[dict]:
    """Return the rows of a file; read anew where it has changed."""
    return [row for row in read_jsonl(file, "step") if runs.is_row(row)] if changed else []


def planned(recorded: dict, title: str) -> int:
    """Return the last step that is asked for: as the newest command said, of which ``config.json`` lists the changes."""
    config = recorded.get("config", {})
    if title == "warm_start":
        return int(config.get("warm_start", {}).get("num_steps", 0))
    later = [change["run.num_iterations"] for change in recorded.get("later", []) if "run.num_iterations" in change]
    return int([config.get("run", {}).get("num_iterations", 0), *later][-1])


def faults(rows: Sequence[dict], age: float | None, longest: float, is_over: bool) -> list[str]:
    """Return a sentence for each thing that looks wrong; ``longest`` are seconds that an iteration may take."""
    found = []
    if age is not None and longest and not is_over and age > 60 + 10 * longest:
        found.append(
            f"no new row for {age:.0f} s, where one came at least every {longest:.3g} s: has the process ended?"
        )
    if len(rows) >= 5 and all(row.get("zero_variance_groups") == 1.0 for row in rows[-5:]):
        found.append("the responses of each group were all paid alike in the last 5 iterations: nothing is learnt")
    if len(rows) >= 5 and all(row.get("unfinished") == 1.0 for row in rows[-5:]):
        found.append("no response ended within its room in the last 5 iterations")
    kinds = {"grading_faults": "grading failed as a whole", "prompt_truncated": "prompts were longer than their room"}
    for name, meaning in kinds.items():
        steps = [row["step"] for row in rows if row.get(name)]
        if steps:
            some = ", ".join(map(str, steps[: -NUM_FAULTS - 1 : -1])) + (", ..." if len(steps) > NUM_FAULTS else "")
            found.append(f"{meaning} in {len(steps)} of the iterations: {some}")
    return found


def panels(rows: Sequence[dict]) -> list[dict]:
    """Return the panels that have something to show: title, and lines of a name with its [step, value] points."""
    evaluated = sorted({key for row in rows for key in row if KEY.fullmatch(key)}, key=_place)
    kinds: dict[str, dict[str, str]] = {}
    for key in evaluated:
        split, figure, k = KEY.fullmatch(key).groups()  # pyright: ignore[reportOptionalMemberAccess]
        kinds.setdefault(f"{split}: {figure} by k", {})[f"k = {k}"] = key
    found = []
    for title, keys in (kinds | PANELS).items():
        lines = [{"name": name, "points": points(rows, key)} for name, key in keys.items()]
        if lines := [line for line in lines if line["points"]]:
            found.append({"title": title, "lines": lines})
    return found


def _place(key: str) -> tuple[str, str, int]:
    split, figure, k = KEY.fullmatch(key).groups()  # pyright: ignore[reportOptionalMemberAccess]
    return split, figure, int(k)


def points(rows: Sequence[dict], key: str) -> list[list[float]]:
    """Return [step, value] of a metric; of more than MAX_POINTS the means of neighbours, so that no peak of one is the line."""
    known = [[row["step"], row[key]] for row in rows if row.get(key) is not None]
    if len(known) <= MAX_POINTS:
        return known
    return [np.mean(some, 0).tolist() for some in np.array_split(np.array(known, float), MAX_POINTS)]


def newest_rollouts(workdir: pathlib.Path) -> list[dict]:
    """Return the rollouts of the newest iteration that can be read; none where none are kept."""
    for file in sorted((workdir / "rollouts").glob("*.parquet"), reverse=True)[:2]:
        if rows := _read_rollouts(file):
            return rows
    return []


@functools.lru_cache(maxsize=2)
def _read_rollouts(file: pathlib.Path) -> list[dict]:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except (OSError, ValueError):
        return []
    return [
        {name: browser.clip(value) if isinstance(value, str) else value for name, value in row.items()} for row in rows
    ]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers of the page; nothing but GET, and only to who asks for this machine by name: no other site can read along."""

    workdir: pathlib.Path

    def do_GET(self) -> None:
        """Answer with the page, with what it shows, or with the page of chains."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in ("127.0.0.1", "localhost"):
            self._send(403, "text/plain", "only this machine is answered")
        elif self.path == "/":
            self._send(
                200, "text/html", (importlib.resources.files("exit_jax.report") / "watch.html").read_text("utf-8")
            )
        elif self.path == "/look":
            self._send(200, "application/json", json.dumps(look(self.workdir)))
        elif self.path == "/chains":
            made = browser.page(runs.group([runs.load(self.workdir)]))
            self._send(200, "text/html", made[0] if made else "No chains yet.")
        else:
            self._send(404, "text/plain", "there is no such page")

    def _send(self, status: int, kind: str, content: str) -> None:
        body = content.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of requests."""


def make_server(workdir: pathlib.Path, port: int) -> http.server.ThreadingHTTPServer:
    """Return a server of the page on 127.0.0.1, of which ``serve_forever`` is to be called; port 0 is any that is free.

    Raises:
      ConfigError: if there is no workdir, or the port is taken.
    """
    if not workdir.is_dir():
        raise ConfigError(f"{workdir} is no folder; begin the run, or name the right --workdir")
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (Handler,), {"workdir": workdir}))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--port {port} cannot be had ({error}); name another, or 0 for any that is free") from error


def watch(workdir: str | os.PathLike, port: int) -> None:
    """Serve the page until interrupted; of a workdir at a URL, what is there is fetched every ``remote.EVERY`` seconds."""
    folder = remote.fetch(workdir)
    with make_server(folder, port) as server, remote.followed(folder):
        print(
            f"watching {workdir} on http://127.0.0.1:{server.server_address[1]} (Ctrl-C ends it, not the run)",
            flush=True,
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
