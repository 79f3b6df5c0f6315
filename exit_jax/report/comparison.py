"""Methods compared over the rows of one or more studies: a page with paired intervals, aggregates and a figure.

A variant is one of ExIt §5 and words after hyphens (config/variants.py): ``grpo-sec`` is the method ``sec`` without ExIt,
held against ``grpo``, and ``exit-sec`` the same within ExIt, against ``exit``. Differences are paired by seed. The score of
a run is its accuracy at the last k, or the mean quality where no run has an answer that is right.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from exit_jax.config.methods import METHODS
from exit_jax.errors import ConfigError
from exit_jax.report import statistics
from exit_jax.report.plots import COLOURS, GREY, MARKERS, STYLE, WIDTH, new_figure
from exit_jax.report.statistics import Interval, Paired
from exit_jax.workdir import evaluation, rows
from exit_jax.workdir.markdown import table
from exit_jax.workdir.rows import BASE

SMALLEST_EFFECT = (
    0.05  # of interest, in units of the score: what ten seeds can see (docs/methods.md); declared beforehand
)

NAME = "comparison"
PLAIN = "grpo"  # the family without ExIt
ABOUT = f"""*Minus* is the mean difference to the same variant without the method, paired by seed, ± half its 95% interval
(Student's t); *p* is adjusted by Holm over the methods of a table. *Better* and *worse*: p < .05. *Equal*: the interval lies
within ± {SMALLEST_EFFECT}, the smallest effect of interest; else a difference is *not seen*. *IQM*: the mean of the middle half
of seeds, *wins*: how likely a seed is above one without the method, both with 95% intervals by a stratified bootstrap of
{statistics.NUM_RESAMPLES:,} draws."""


@dataclasses.dataclass(frozen=True)
class Study:
    """The scores of one study's runs on one split."""

    name: str
    about: str  # tasks, k, measure
    scores: Mapping[str, Mapping[int, float]]  # variant -> seed -> score
    responses: Mapping[str, float]  # variant -> sampled in a run's training, where rows say so

    def families(self) -> list[str]:
        """Return the variants that methods are held against: those without a word, which others begin with."""
        plain = [name for name in self.scores if "-" not in name]
        return [name for name in plain if any(other.startswith(f"{name}-") for other in self.scores)]

    def methods(self, family: str) -> list[str]:
        """Return the words behind a family's hyphen, in the order of the rows."""
        return [name.partition("-")[2] for name in self.scores if name.startswith(f"{family}-")]

    def values(self, variant: str) -> np.ndarray:
        """Return the scores of a variant [seeds]."""
        return np.array(list(self.scores[variant].values()))

    def difference(self, variant: str, other: str) -> np.ndarray:
        """Return the differences of two variants on the seeds that both have [seeds]."""
        pairs = [(self.scores[variant][seed], self.scores[other].get(seed)) for seed in self.scores[variant]]
        return np.array([score - base for score, base in pairs if base is not None], float)


def write(folder: pathlib.Path, files: Sequence[pathlib.Path]) -> pathlib.Path:
    """Write ``comparison.md`` and its figures below ``folder``, of files of rows, a study each; return the page.

    Raises:
      ConfigError: if a file holds no rows, or two runs of one variant and seed; or there is nothing to compare.
    """
    studies = [study for file in files for study in read(file)]
    if not any(study.families() for study in studies):
        names = ", ".join(map(str, files))
        raise ConfigError(
            f"nothing to compare in {names}: no variant is another one with a word after a hyphen, as grpo-sec"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        draw_differences(studies).savefig(folder / f"{NAME}.png")
        draw_profiles(studies).savefig(folder / f"{NAME}_profiles.png")
    page = folder / f"{NAME}.md"
    page.write_text("\n".join(markdown(studies)), encoding="utf-8")
    return page


def read(file: pathlib.Path) -> Iterator[Study]:
    """Yield a study for each split of a file of rows."""
    found = list(rows.read_all(file))
    if not found:
        raise ConfigError(f"{file} holds no rows of a study; --mode study --config.study.rows={file} writes them")
    splits = list(dict.fromkeys(split for row in found for split in row["evaluation"]["splits"]))
    for split in splits:
        of_split = [row for row in found if split in row["evaluation"]["splits"]]
        figures = [row["evaluation"]["splits"][split] for row in of_split]
        some_right = any(any(evaluation.chain_of(entry)["accuracy"]) for entry in figures)
        measure = "accuracy" if some_right else "quality"
        scores: dict[str, dict[int, float]] = {}
        for row, entry in zip(of_split, figures):
            by_seed = scores.setdefault(row["variant"], {})
            if row["seed"] in by_seed:
                raise ConfigError(
                    f"{file} holds two runs of {row['variant']}, seed {row['seed']}, which differ in settings or evaluation; "
                    "keep the rows of one study in a file"
                )
            by_seed[row["seed"]] = float(evaluation.chain_of(entry)[measure][-1])
        responses = {
            row["variant"]: row["training"]["responses"]
            for row in of_split
            if row["variant"] != BASE and "training" in row
        }
        name = file.stem if len(splits) == 1 else f"{file.stem}, {split}"
        about = f"{measure} on {figures[0]['num_tasks']} tasks of {split} at k = {figures[0]['k'][-1]}"
        yield Study(name, about, scores, responses)


def label_of(words: str) -> str:
    """Return how true to its source a method is, or each of several; of an ablation or a control nothing."""
    found = [METHODS[word].label.partition(":")[0] for word in words.split("-") if word in METHODS]
    return ", ".join(found) if "permuted" not in words else "control"


def markdown(studies: Sequence[Study]) -> Iterator[str]:
    """Yield the lines of the page."""
    yield from ("# Comparison", "", ABOUT, "", f"![Differences by method]({NAME}.png)", "")
    yield from (f"![Share of seeds above a score]({NAME}_profiles.png)", "")
    for study in studies:
        yield from (f"## {study.name}: {study.about}", "")
        if len(set(study.responses.values())) > 1:
            counts = ", ".join(f"{variant} {count:,.0f}" for variant, count in study.responses.items())
            yield from (f"**Not at equal responses sampled in training**: {counts}.", "")
        elif study.responses:
            yield from (f"{next(iter(study.responses.values())):,.0f} responses sampled in each training.", "")
        if BASE in study.scores:
            values = study.values(BASE)
            yield from (f"Policy before RL: {values.mean():.3f}, {len(values)} seeds.", "")
        for family in study.families():
            yield from (family_table(study, family), "")
        for within in study.families():
            if lines := interactions(study, PLAIN, within):
                yield from (f"What a method adds within {within}, less what it adds to {PLAIN}:", "", lines, "")
    for family in shared_families(studies):
        yield from (f"## {len(studies)} studies together: {family}", "", together(studies, family), "")


def family_table(study: Study, family: str) -> str:
    """Return the table of a family's methods in one study."""
    methods = study.methods(family)
    effects = [statistics.paired(study.difference(f"{family}-{method}", family)) for method in methods]
    adjusted = statistics.holm([effect.p for effect in effects])
    header = [family, "label", "seeds", "mean", "IQM", "minus", "p", "reading", "wins"]
    values = study.values(family)
    lines = [[f"*{family}* alone", "", str(len(values)), f"{values.mean():.3f}", _interval([values]), "", "", "", ""]]
    for method, effect, p in zip(methods, effects, adjusted):
        own = study.values(f"{family}-{method}")
        wins = statistics.probability_of_improvement([own], [values])
        seeds = str(effect.num_seeds)
        minus, reading = _difference(effect), reading_of(effect, p)
        lines.append(
            [method, label_of(method), seeds, f"{own.mean():.3f}", _interval([own]), minus, _p(p), reading, _span(wins)]
        )
    return table(header, lines)


def interactions(study: Study, plain: str, within: str) -> str:
    """Return the table of what methods add within one family less what they add to another; "" if they share none."""
    lines = []
    for method in study.methods(plain):
        if within == plain or method not in study.methods(within):
            continue
        runs = [study.scores[name] for name in (f"{within}-{method}", within, f"{plain}-{method}", plain)]
        seeds = sorted(set.intersection(*map(set, runs)))
        effect = [a[seed] - b[seed] - c[seed] + d[seed] for seed in seeds for a, b, c, d in [runs]]
        lines.append([method, str(len(seeds)), _difference(statistics.paired(np.array(effect)))])
    return table(["method", "seeds", "interaction"], lines) if lines else ""


def shared_families(studies: Sequence[Study]) -> list[str]:
    """Return the families of which all of several studies have methods."""
    if len(studies) < 2:
        return []
    return [family for family in studies[0].families() if all(family in study.families() for study in studies)]


def together(studies: Sequence[Study], family: str) -> str:
    """Return the table of the methods that all studies have, over studies and seeds."""
    shared = [m for m in studies[0].methods(family) if all(m in study.methods(family) for study in studies)]
    plain = [study.values(family) for study in studies]
    lines = [[f"*{family}* alone", "", _interval(plain), ""]]
    for method in shared:
        own = [study.values(f"{family}-{method}") for study in studies]
        wins = statistics.probability_of_improvement(own, plain)
        lines.append([method, label_of(method), _interval(own), _span(wins)])
    return table(["method", "label", "IQM", "wins"], lines)


def reading_of(effect: Paired, p: float) -> str:
    """Return what an effect comes to, in a word; ``p`` is the adjusted one."""
    if np.isfinite(p) and p < 0.05:
        return "better" if effect.mean > 0 else "worse"
    if max(abs(effect.low), abs(effect.high)) <= SMALLEST_EFFECT:
        return "equal"
    return "not seen" if effect.num_seeds > 1 else "too few seeds"


def draw_differences(studies: Sequence[Study]) -> Figure:
    """Draw each method's difference with its interval, a panel a study, a colour a family."""
    panels = [study for study in studies if study.families()]
    num_rows = max(len({m for f in study.families() for m in study.methods(f)}) for study in panels)
    num_families = max(len(study.families()) for study in panels)
    fig, axes = new_figure(len(panels), min(len(panels), 3), WIDTH, 0.9 + (0.1 + 0.06 * num_families) * num_rows)
    for ax, study in zip(axes, panels):
        families = study.families()
        methods = list(dict.fromkeys(method for family in families for method in study.methods(family)))
        ax.axvspan(-SMALLEST_EFFECT, SMALLEST_EFFECT, color=GREY, alpha=0.15, linewidth=0)
        ax.axvline(0, color=GREY, linewidth=0.7)
        for i, family in enumerate(families):
            own = study.methods(family)
            effects = [statistics.paired(study.difference(f"{family}-{method}", family)) for method in own]
            y = [methods.index(method) + 0.7 * ((i + 0.5) / len(families) - 0.5) for method in own]
            error = np.nan_to_num([effect.half_width for effect in effects])
            look: dict = {
                "color": COLOURS[1 + i],
                "marker": MARKERS[i],
                "linestyle": "",
                "markersize": 3.5,
                "elinewidth": 1,
            }
            ax.errorbar([effect.mean for effect in effects], y, xerr=error, label=f"minus {family}", **look)
        ax.set_yticks(range(len(methods)), methods)
        ax.set_ylim(len(methods) - 0.5, -0.5)
        ax.set(title=study.name)
        ax.grid(axis="y", visible=False)
        ax.legend(loc="best", fontsize=6.5)
    fig.supxlabel(
        "difference in score, 95% interval over seeds; shaded: below the smallest effect of interest", fontsize=8
    )
    return fig


def draw_profiles(studies: Sequence[Study]) -> Figure:
    """Draw the share of runs above each score, a panel a family, over the studies that have it."""
    families = list(dict.fromkeys(family for study in studies for family in study.families()))
    fig, axes = new_figure(len(families), min(len(families), 2), WIDTH, 3.0, sharey=True)
    thresholds = np.linspace(0, 1, 201)
    for ax, family in zip(axes, families):
        having = [study for study in studies if family in study.families()]
        shared = [m for m in having[0].methods(family) if all(m in study.methods(family) for study in having)]
        for i, method in enumerate(["", *shared]):
            name = f"{family}-{method}" if method else family
            look: dict = {"color": COLOURS[i % len(COLOURS)], "linestyle": ("-", "--", ":")[i // len(COLOURS) % 3]}
            shares = statistics.performance_profile([study.values(name) for study in having], thresholds)
            ax.plot(thresholds, shares, label=method or f"{family} alone", linewidth=1.0, **look)
        ax.set(title=family, xlabel="score", ylabel="share of seeds above it")
        ax.legend(fontsize=6, ncols=2)
    return fig


def _interval(scores: statistics.Scores) -> str:
    return _span(statistics.interquartile_mean(scores))


def _span(found: Interval) -> str:
    return f"{found.value:.3f}" + ("" if np.isnan(found.low) else f" [{found.low:.3f}, {found.high:.3f}]")


def _difference(effect: Paired) -> str:
    if not effect.num_seeds:
        return "–"
    return f"{effect.mean:+.3f}" + ("" if np.isnan(effect.half_width) else f" ± {effect.half_width:.3f}")


def _p(p: float) -> str:
    return "" if np.isnan(p) else "< .001" if p < 0.001 else f"{p:.3f}"
