"""Tables, plots and a page of chains of finished runs, from the files in their workdirs alone.

Runs are grouped by ``config.variant``: lines are means over a group's runs, bands and "±" their sample standard
deviation (n - 1), but bands over k, which are standard errors. All that is shown comes from what training or evaluation
wrote.
"""

import pathlib
import warnings
from collections.abc import Callable, Sequence

import matplotlib

from exit_jax.errors import ConfigError
from exit_jax.report import browser, comparison, during, instances, lineage, plots, scores, training
from exit_jax.report.plots import STYLE, Plot
from exit_jax.report.runs import Groups, group, load
from exit_jax.report.tables import markdown

PLOTS: dict[str, Callable[[Groups], Plot]] = {
    "accuracy_by_k": plots.accuracy_by_k,
    "net_corrections": plots.net_corrections,
    "training_curves": training.training_curves,
    "curriculum": training.curriculum,
    "buffer": training.buffer,
    "distances": instances.distances,
    "instance_map": instances.instance_map,
    "lineage": lineage.lineage,
}
# plots of evaluations during training, which few runs make; where there are none, nothing is missing
DURING_PLOTS: dict[str, Callable[[Groups], Plot]] = {"accuracy_by_iteration": during.accuracy_by_iteration}
# plots of evaluations whose quality is a score, likewise
SCORE_PLOTS: dict[str, Callable[[Groups], Plot]] = {
    "score_by_k": scores.score_by_k,
    "score_by_task": scores.score_by_task,
    "net_gains": scores.net_gains,
}


def report(workdir: pathlib.Path, runs: Sequence[pathlib.Path]) -> pathlib.Path:
    """Write ``report/report.md``, its plots and ``chains.html`` below ``workdir``: of the runs, else of ``workdir``.

    Of files of rows (``config.study.rows``) it is ``report/comparison.md`` and its plots.

    Raises:
      ConfigError: if no folder holds metrics or an evaluation, or no file a comparison; or there are files and folders.
    """
    paths = [pathlib.Path(path) for path in runs or [workdir]]
    if files := [path for path in paths if path.is_file()]:
        if len(files) < len(paths):
            raise ConfigError(
                f"--runs names files ({', '.join(map(str, files))}) and folders; files are rows of studies, whose methods are "
                "compared on a page of their own: give one kind or the other"
            )
        return comparison.write(pathlib.Path(workdir) / "report", files)
    loaded = [load(path) for path in paths]
    if not any(run.rows or run.evaluation for run in loaded):
        raise ConfigError(
            f"nothing to report on in {', '.join(map(str, paths))}: neither train.jsonl nor evaluation.json; "
            "run --mode train there first, or name the folders of finished runs with --runs"
        )
    groups = group(loaded)
    folder = pathlib.Path(workdir) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    captions = {}
    for name, draw in (SCORE_PLOTS | DURING_PLOTS | PLOTS).items():
        (folder / f"{name}.png").unlink(missing_ok=True)  # an earlier report's
        with matplotlib.rc_context(STYLE):
            if plot := draw(groups):
                figure, captions[name] = plot
                with warnings.catch_warnings():  # a model may write in any script; the font shows a box
                    warnings.filterwarnings("ignore", "Glyph .* missing from font")
                    figure.savefig(folder / f"{name}.png")
    (folder / "chains.html").unlink(missing_ok=True)
    chains, note = browser.page(groups) or ("", "")
    if chains:
        (folder / "chains.html").write_text(chains, encoding="utf-8")
    (folder / "report.md").write_text(markdown(groups, captions, PLOTS, note), encoding="utf-8")
    return folder / "report.md"
