"""The page of chains: one static HTML file in which a person steps through the iterates of every problem.

The page is ``chains.html`` beside this module, with the chains in it as JSON; nothing is served or loaded.
"""

import collections
import importlib.resources
import json
import pathlib
from collections.abc import Iterator

from exit_jax.report.runs import Groups, Run, all_runs

MAX_BYTES = 32_000_000  # chains in the page: a browser opens so much within a few seconds
MAX_TEXT = 20_000  # characters of a text: a response that ran away says nothing new after them


def shown(run: Run) -> Iterator[dict]:
    """Yield the chains of a run: those of its evaluation, then kept training rollouts as chains of what was held and said."""
    yield from run.chains
    for file in sorted((run.path / "rollouts").glob("*.parquet"), reverse=True):
        yield from rollouts_of(file)


def rollouts_of(file: pathlib.Path) -> Iterator[dict]:
    """Yield the rollouts of an iteration, each a chain of one or two responses; nothing of a file that cannot be read."""
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
        for row in rows:
            paid = f"reward {row['reward']:.3g}, advantage {row['advantage']:+.3g}, depth {row['depth']}"
            begun = [(row["held_quality"], row["held"], "held", "")] if row["held"] else []
            quality, texts, modes, feedback = zip(
                *begun, (row["quality"], row["response"], row["mode"], row["feedback"])
            )
            yield {
                "split": f"training, iteration {row['iteration']}",
                "task": row["task"],
                "sample": row["group"] * 1000 + row["rollout"],
                "name": paid + (f", from entry {row['id']} of iteration {row['born']}" if row["id"] >= 0 else ""),
                "request": row["prompt"],
                "quality": list(quality),
                "responses": list(texts),
                "modes": list(modes),
                "feedback": list(feedback) if any(feedback) else [],
            }
    except (OSError, ValueError, KeyError, TypeError):  # pyarrow's faults are among them
        return


def page(groups: Groups, max_bytes: int = MAX_BYTES) -> tuple[str, str] | None:
    """Return the page and a note on what it holds; None without chains."""
    kept, total = choose(all_runs(groups), max_bytes)
    if not kept:
        return None
    note = f"All {total:,} saved chains."
    if len(kept) < total:
        note = f"{len(kept):,} of {total:,} saved chains, to keep the page below {max_bytes / 1e6:.3g} MB: of each run "
        note += "and split in turn, those with a corrected or broken answer first. The others are in chains.jsonl."
    note += " Evaluation saves chains that change first, so counts are no rates."
    texts: dict[str, int] = {}  # what chains share is held once
    runs = [
        {"name": name, "chains": entries(run, {i for r, i in kept if r == place}, texts)}
        for place, (name, run) in enumerate(zip(names(groups), all_runs(groups)))
    ]
    titles = dict.fromkeys(str(run.config.get("name", run.path.name)) for run in all_runs(groups))
    content = {"title": ", ".join(titles), "note": note, "runs": [run for run in runs if run["chains"]]}
    template = (importlib.resources.files("exit_jax.report") / "chains.html").read_text(encoding="utf-8")
    before, _, after = template.partition("{data}")
    return before + as_json(content | {"texts": list(texts)}) + after, note


def choose(runs: list[Run], max_bytes: int) -> tuple[set[tuple[int, int]], int]:
    """Return which chains fit, as (run, row), and the number of all; changed ones first, runs and splits in turn."""
    ranked, turns = [], collections.Counter()
    for place, run in enumerate(runs):
        for row, chain in enumerate(shown(run)):
            constant = len({quality >= 1 for quality in chain["quality"]}) == 1 and not score_moves(chain)
            turns[kind := (place, chain["split"], constant)] += 1
            parts = {clip(text) for text in [*chain["responses"], *aligned(chain, "feedback")]}
            size = sum(len(as_json(text)) for text in parts)
            ranked.append((constant, turns[kind], place, row, size + len(as_json(clip(chain.get("request")))) + 500))
    kept = set()
    for *_, place, row, size in sorted(ranked):
        if size <= max_bytes:
            kept.add((place, row))
            max_bytes -= size
    return kept, len(ranked)


def entries(run: Run, kept: set[int], texts: dict[str, int]) -> list[dict]:
    """Return the kept chains of a run by problem, with places in ``texts`` for long texts; old files lack some fields."""
    found, splits, samples = [], {}, collections.Counter()
    for row, chain in enumerate(shown(run)):
        problem = splits.setdefault(chain["split"], len(splits)), chain["task"]
        sample = chain.get("sample", samples[problem])
        samples[problem] += 1
        if row not in kept:
            continue
        count = len(chain["responses"])
        entry = {
            "split": chain["split"],
            "task": chain["task"],
            "sample": sample,
            "request": texts.setdefault(clip(chain.get("request")), len(texts)),
            "gold": clip(chain.get("gold")),
            "name": clip(chain.get("name")),
            "quality": chain["quality"],
            "modes": aligned(chain, "modes") or ["base"] + ["improve"] * (count - 1),
            "answers": [clip(answer) for answer in aligned(chain, "answers")],
            "feedback": [texts.setdefault(clip(text), len(texts)) for text in aligned(chain, "feedback")],
            "from": origins(chain),
            "responses": [texts.setdefault(clip(text), len(texts)) for text in chain["responses"]],
        }
        found.append((*problem, sample, row, entry))
    return [entry for *_, entry in sorted(found, key=lambda item: item[:-1])]


def score_moves(chain: dict) -> bool:
    """Does the score of a chain move without being only right or wrong?"""
    return len(set(chain["quality"])) > 1 and any(0 < quality < 1 for quality in chain["quality"])


def origins(chain: dict) -> list[int]:
    """Return which response each response started from, -1 for the base task: the one before, but for searches."""
    plain = list(range(-1, len(chain["responses"]) - 1))
    given = aligned(chain, "from")
    known = all(isinstance(at, int) and at < k for k, at in enumerate(given))
    return given if given and known else plain


def aligned(chain: dict, name: str) -> list:
    """Return a field with a value for each response; nothing where it is missing or of another length."""
    values = chain.get(name)
    return values if isinstance(values, list) and len(values) == len(chain["responses"]) else []


def names(groups: Groups) -> list[str]:
    """Name each run by variant and seed and, where that is not enough, by its folder."""
    plain = [f"{label}, seed {run.config.get('seed', '?')}" for label, runs in groups.items() for run in runs]
    folders = [run.folder.strip("`") for run in all_runs(groups)]
    return [name if plain.count(name) == 1 else f"{name}, {folder}" for name, folder in zip(plain, folders)]


def clip(text) -> str:
    """Return a text, nothing for None, without what is beyond MAX_TEXT."""
    text = "" if text is None else str(text)
    more = len(text) - MAX_TEXT
    return text if more <= 0 else f"{text[:MAX_TEXT]}\n[… {more:,} characters more, in chains.jsonl]"


def as_json(value) -> str:
    """Return JSON that is safe inside a script element: ASCII, so without U+2028, and without "<"."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
