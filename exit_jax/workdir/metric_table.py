"""Every metric of a run for people: its unit, its meaning and the function that makes it, which docs/metrics.md lists.

A name that the mode, the domain or its grading completes has the rest in angle brackets: "task/<level>".
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from exit_jax.workdir.markdown import table

INTRODUCTION = """# Metrics

Every figure of train.jsonl, warm_start.jsonl and evaluation.json, from the table in `exit_jax/workdir/metric_table.py`. Tests
hold that table to what runs write and to what the report draws, and this page to the table
(`python -m exit_jax.workdir.metric_table > docs/metrics.md` writes it). *Made by* names module and function below `exit_jax`.
Angle brackets stand for a name that the mode, the domain or its grading gives. A mean over nothing is null.
"""


class Metric(NamedTuple):
    """One metric, or all of a kind."""

    name: str
    unit: str  # "" for a plain number
    meaning: str
    maker: str  # module and function, below exit_jax
    only: str = ""  # what has to be so for it to be written; "" for nothing


def _made_by(maker: str, *rows: tuple[str, ...]) -> tuple[Metric, ...]:
    """Return the metrics of one function from their names, units and meanings and, of some, where they are written."""
    return tuple(Metric(name, unit, meaning, maker, *only) for name, unit, meaning, *only in rows)


ON_HOST, EPISODES = "the domain is graded on the host", "tasks have several turns"
DISTILS = "`algorithm.self_distillation` > 0"
DURING = "`run.eval_every` divides the iteration"
IMPORTANCE = "`algorithm.importance` is not none"
PROTOCOL = "`algorithm.protocol` is not single"
FURTHER = "`algorithm.replay.size` is not 0, or `algorithm.protocol` not single"
WAITS, REGROUP = "`algorithm.refill`, or `algorithm.rounds.iterations` is not 0", "`algorithm.regroup` is not 0"
RATES = (
    *_made_by(
        "training.loop._rates",
        (
            "time/steps_per_sec",
            "1/s",
            "iterations or optimiser steps a second, of the program call (`run.steps_per_call`) that made the row",
        ),
        ("time/secs_per_step", "s", "its inverse"),
    ),
)
TRAIN = (
    *_made_by(
        "workdir.metrics.MetricsWriter.write", ("step", "iterations", "training iterations done, this one included")
    ),
    *_made_by(
        "algorithm.measures.batch_metrics",
        ("reward", "0 to 1", "mean reward of the responses"),
        ("quality", "0 to 1", "mean quality of the responses, whatever is paid for it"),
        ("quality/<mode>", "0 to 1", "the same, of instances of one mode: base, improve or diverge"),
        ("exact", "share", "responses of quality 1"),
        (
            "invalid",
            "share",
            "responses that could not be used, and are paid 0: unreadable (sudoku), not graded (text, math), hit by a fault "
            "of the sandbox (ML engineering), lost (episodes)",
        ),
        ("unfinished", "share", "responses that the token limit cut off; of episodes, those without a valid end"),
        ("response_length", "tokens", "mean number of tokens sampled for a response; of episodes, for all of them"),
        ("learnability", "0 to 1/4", "mean learnability S: the variance of outcomes within a group (ExIt §4.1)"),
        ("learnability/<mode>", "0 to 1/4", "the same, of instances of one mode"),
        ("zero_variance_groups", "share", "groups whose responses were all paid alike, from which nothing is learnt"),
        ("from_buffer", "share", "instances drawn from the buffer; the others are base tasks"),
        ("share/<mode>", "share", "instances of one mode"),
        ("start_depth", "responses", "mean ordinal of the response to be made: 1 for the first to a task"),
        ("start_turn", "turns", "mean turn of the instances, from 1"),
        ("sampled_from_iteration", "iterations", "mean iteration that made the histories drawn from the buffer"),
        ("sampled_age", "iterations", "mean number of iterations since then"),
        ("prompt_truncated", "prompts", "prompts of the batch that were longer than the room for them"),
        ("grade/<note>", "", "mean over responses of what else the domain's grading says", "there is more"),
    ),
    *_made_by(
        "algorithm.grpo.loss",
        ("loss", "", "the objective of GRPO, negated, with its KL and entropy terms (ExIt App. A)"),
        ("entropy", "nats a token", "mean entropy of the policy at the sampled tokens, at the sampling temperature"),
        ("clip_fraction", "share", "tokens whose ratio was clipped, which add no gradient"),
        ("approx_kl_old", "nats a token", "KL from the policy that sampled to the one being updated, estimator k3"),
        (
            "kl_reference",
            "nats a token",
            "KL to the reference policy, by `algorithm.kl_estimator`",
            "`algorithm.kl_coef` > 0",
        ),
        ("clip_cov_fraction", "share", "tokens that Clip-Cov left out", "`algorithm.clip_cov_share` > 0"),
    ),
    *_made_by(
        "algorithm.distillation.metrics",
        ("teacher/informed", "share", "responses with feedback that the teacher has read", DISTILS),
        (
            "teacher/advantage",
            "nats a token",
            "mean absolute difference of the teacher's log-probs and those that their tokens were sampled with",
            DISTILS,
        ),
    ),
    *_made_by(
        "algorithm.baseline.metrics",
        (
            "baseline/<mode>",
            "0 to 1",
            "the running baseline of the reward, of one mode",
            "`algorithm.baseline_decay` > 0",
        ),
    ),
    *_made_by(
        "algorithm.grpo.update",
        ("grad_norm", "", "global norm of the gradient, before it is clipped"),
        ("params_moved", "share", "entries of the parameters that an optimiser step changed"),
    ),
    *_made_by(
        "algorithm.grpo.sampler_gap",
        (
            "gap/mean",
            "nats a token",
            "mean absolute difference of learner's and sampler's log-probs under equal parameters",
        ),
        ("gap/max", "nats a token", "the largest"),
        ("gap/ratio_max", "", "the largest ratio of probabilities that follows from it; 1 where both agree"),
        ("gap/clipped", "share", "tokens that would be clipped for it alone"),
    ),
    *_made_by(
        "algorithm.importance.weights",
        ("importance/weight", "", "mean weight of tokens after its bounds", IMPORTANCE),
        ("importance/bounded", "share", "tokens whose weight was cut, or masked", IMPORTANCE),
    ),
    *_made_by(
        "algorithm.iteration.learn",
        ("diversity_max", "", "the largest diversity factor d of the batch (ExIt eq. 6)"),
        ("distinct_entries", "instances", "base tasks and buffer entries trained on so far, each counted once"),
    ),
    *_made_by(
        "workdir.metrics.MetricsWriter.write",
        (
            "distinct_instances",
            "instances",
            "instances trained on so far that differ in content; the curriculum's size",
        ),
    ),
    *_made_by(
        "algorithm.iteration.make_children",
        ("children_unusable", "histories", "children left out as invalid or unfinished"),
        ("children_unchanged", "histories", "children left out since their answer is their parent's"),
        (
            "children_repeated",
            "histories",
            "children left out as there already",
            '`algorithm.children` = "distinct" or `algorithm.self_iteration` = False',
        ),
    ),
    *_made_by(
        "algorithm.iteration.expand",
        ("buffer/inserted", "entries", "histories that entered the buffer"),
        ("buffer/rescored", "entries", "entries whose S was measured again, since they were drawn"),
        ("buffer/lost", "entries", "entries that were removed, since their episode cannot be had again"),
    ),
    *_made_by(
        "algorithm.measures.buffer_metrics",
        ("buffer/fill", "share", "slots that hold an entry"),
        ("buffer/score_min", "0 to 1/4", "smallest S of the entries"),
        ("buffer/score_median", "0 to 1/4", "median S of the entries"),
        ("buffer/score_max", "0 to 1/4", "largest S of the entries"),
        ("buffer/age", "iterations", "mean age of the entries"),
        ("buffer/depth", "responses", "mean number of responses that led to an entry; 0 for a base task"),
        ("buffer/never_drawn", "share", "entries that have not been drawn"),
    ),
    *_made_by(
        "step.device.DeviceSteps.learn",
        ("learning_rate", "", "the optimiser's, mean over the epochs of the newest update"),
        ("finite_logits", "share", "sampled tokens whose logits were finite; training stops below 1"),
    ),
    *_made_by(
        "algorithm.pool.admit",
        ("admitted", "share", "groups of the batch that may be learnt from", "`algorithm.admission` is not all"),
    ),
    *_made_by(
        "algorithm.pool.improve",
        ("pool/waiting", "groups", "groups that wait for an update", WAITS),
        ("pool/updates", "updates", "batches, or rounds, learnt from so far", WAITS),
    ),
    *_made_by(
        "algorithm.regroup.exchange",
        ("regroup/replaced", "share", "groups of the batch in whose places kept ones were learnt from", REGROUP),
        ("regroup/kept", "groups", "groups that are kept", REGROUP),
    ),
    *_made_by(
        "algorithm.iteration.learn",
        (
            "start_level",
            "share",
            "mean over all tasks of how much of its gold solution each starts with",
            "`algorithm.starts.variant` is set",
        ),
    ),
    *_made_by(
        "algorithm.grpo.update",
        ("<rows>/loss", "", "loss of what is learnt from beside the batch: replay, second, critique", FURTHER),
        ("<rows>/clip_fraction", "share", "tokens of these whose gradient the clip takes", FURTHER),
        ("<rows>/approx_kl_old", "nats", "how far the policy is from the one that sampled them, a token", FURTHER),
    ),
    *_made_by(
        "algorithm.attempts.pay",
        ("second/made", "share", "first attempts that left something for a second to go on from", PROTOCOL),
        ("second/quality", "0 to 1", "mean quality after second attempts", PROTOCOL),
        ("second/better", "share", "second attempts that raised the quality", PROTOCOL),
        ("second/worse", "share", "second attempts that lowered it", PROTOCOL),
    ),
    *_made_by(
        "algorithm.curricula.observe",
        (
            "curriculum/<unit>",
            "share",
            "share of the base draws that a curriculum gives to a level of a difficulty, or a category",
            "`algorithm.curriculum.method` is set, and its units are not single tasks",
        ),
    ),
    *_made_by(
        "step.device.mean_difficulty",
        ("task/<level>", "", "mean of a difficulty that the domain gives its tasks", "the domain tells difficulties"),
    ),
    *_made_by(
        "step.hosted.HostedSteps.grade",
        (
            "grading_faults",
            "0 or 1",
            "whether grading failed as a whole on a host; its responses count as wrong",
            ON_HOST,
        ),
        ("time/grading_secs", "s", "time that grading took", ON_HOST),
        ("time/device_wait_secs", "s", "time for which the devices waited for grading or environments", ON_HOST),
        ("turns", "responses", "mean number of responses of an episode", EPISODES),
        ("end/<reason>", "share", "episodes that ended for this reason", EPISODES),
    ),
    *RATES,
    *_made_by(
        "training.loop._rates",
        ("time/tokens_per_sec", "tokens/s", "sampled tokens a second, all that an iteration does included"),
        ("time/device_wait_share", "share", "`time/device_wait_secs` over the time of an iteration", ON_HOST),
    ),
    *_made_by(
        "evaluation.during.make",
        (
            "eval/<split>/accuracy@<k>",
            "share",
            "tasks of a sample that are right after k self-improvement steps",
            DURING,
        ),
        ("eval/<split>/quality@<k>", "0 to 1", "mean quality of the same", DURING),
        ("time/eval_secs", "s", "time that this evaluation took, beside that of the iteration", DURING),
    ),
)
WARM_START = (
    *_made_by("workdir.metrics.MetricsWriter.write", ("step", "steps", "optimiser steps done, this one included")),
    *_made_by(
        "step.warm_start.make_warm_step",
        ("warm_start/loss", "nats a token", "mean cross-entropy of the demonstrations' tokens"),
        ("warm_start/learning_rate", "", "the optimiser's"),
        ("warm_start/params_moved", "share", "entries of the parameters that the step changed"),
    ),
    *RATES,
)
EVALUATION = (
    *_made_by(
        "evaluation.evaluate.summarise",
        ("k", "", "the self-improvement steps that are reported; lists run over them"),
        ("num_tasks", "tasks", "size of the split"),
        ("num_too_long", "tasks", "those that do not fit into a prompt; all their figures are 0"),
        ("samples_per_task", "", "chains of each task"),
    ),
    *_made_by(
        "evaluation.evaluate.describe",
        ("about", "", "what the scaffold does, in a sentence"),
        ("looks_at_grader", "yes or no", "whether grades of earlier responses decide what later ones start from"),
        ("source", "", "paper or code that the scaffold is from"),
        ("label", "", "how near to it: faithful, adapted or in kind, and in what"),
    ),
    *_made_by(
        "evaluation.scaffolds.reports.report_chain",
        ("accuracy", "share", "chains that are right at k: the last iterate, or what the scaffold holds"),
        ("quality", "0 to 1", "mean quality at k: of the last iterate, or of what the scaffold holds"),
        ("best_quality", "0 to 1", "mean of the best quality up to k, which an oracle would pick"),
        ("delta", "share", "gain in accuracy since k = 0 (Δ_k)"),
        ("best_so_far", "share", "chains that were right at some step up to k: what an oracle could pick"),
        (
            "stopped",
            "share",
            "right where stopped at the first iterate that the policy's own sign calls done; no oracle",
        ),
        ("invalid", "share", "k-th responses that could not be used; of episodes, those without a valid end"),
        ("by_difficulty", "", "accuracy and number of tasks by each difficulty that the domain tells, and level of it"),
        (
            "by_category",
            "",
            "accuracy, quality and number of tasks of each category that the domain tells, as their source",
        ),
        ("by_task", "0 to 1", "mean quality of each task that the domain names"),
        ("figures", "", "means of what episodes came to, as the share of requests that were fulfilled"),
    ),
    *_made_by(
        "evaluation.scaffolds.reports.report_restarts",
        ("every", "responses", "after how many a chain starts over", "chains start over"),
    ),
    *_made_by(
        "evaluation.scaffolds.reports.report_best_of_n",
        (
            "num_responses",
            "responses",
            "independent responses to a task, of all its samples",
            "responses are independent",
        ),
        ("pass_at_k", "share", "unbiased estimate that k + 1 of them hold a right one", "responses are independent"),
    ),
    *_made_by(
        "evaluation.figures.majority",
        (
            "majority",
            "share",
            "the vote of the answers up to k is right",
            "responses are independent and the domain has answers",
        ),
    ),
    *_made_by("evaluation.figures.with_error", ("<figure>_se", "of the figure", "standard error over tasks")),
    *_made_by(
        "evaluation.figures.qualities",
        ("<quality>_delta", "0 to 1", "gain in one of these since k = 0"),
    ),
    *_made_by(
        "evaluation.figures.gains",
        ("improved", "share", "steps up to k that raised the quality of what they started from"),
        ("worsened", "share", "steps up to k that lowered it"),
        ("net_gains", "share", "their difference"),
    ),
    *_made_by(
        "evaluation.figures.corrections",
        ("net_corrections", "tasks", "corrected minus broken (ExIt §5)"),
        (
            "net_corrections_sum",
            "samples",
            "the same over all samples, as the paper counts: samples_per_task x num_tasks x delta",
        ),
        (
            "corrected",
            "tasks",
            "wrong → right changes between neighbouring iterates up to k, mean over a task's samples",
        ),
        ("broken", "tasks", "right → wrong changes likewise"),
    ),
    *_made_by(
        "evaluation.figures.unchanged",
        ("unchanged_right", "share", "responses up to k to a right answer that left it as it was"),
        ("unchanged_wrong", "share", "responses up to k to a wrong answer that left it as it was"),
    ),
    *_made_by(
        "evaluation.figures.spent",
        ("tokens", "tokens", "mean number of tokens that a chain has sampled up to k"),
        ("notes", "", "means over the k-th responses of what else the domain's grading says"),
    ),
)
TABLES = {
    "train.jsonl: a row for each training iteration": TRAIN,
    "warm_start.jsonl: a row for each step of the supervised warm start": WARM_START,
    "evaluation.json: figures of each split, and of each scaffold": EVALUATION,
}


def find(metrics: Iterable[Metric], name: str) -> Metric | None:
    """Return the metric of this name, or the kind that it belongs to; None where the table has none."""
    exact = {metric.name: metric for metric in metrics}
    if name in exact:
        return exact[name]
    return next((metric for metric in exact.values() if re.fullmatch(_pattern(metric.name), name)), None)


def _pattern(name: str) -> str:
    """Return the regular expression of a name: "task/<level>" is task/.+ ."""
    return ".+".join(re.escape(part) for part in re.split("<.+?>", name))


def markdown() -> str:
    """Return docs/metrics.md."""
    parts = [INTRODUCTION]
    for title, metrics in TABLES.items():
        rows = [
            (f"`{m.name}`", m.unit, m.meaning + (f"; only where {m.only}" if m.only else ""), f"`{m.maker}`")
            for m in metrics
        ]
        parts.append(f"## {title}\n\n" + table(("metric", "unit", "meaning", "made by"), rows, numbers=False))
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
