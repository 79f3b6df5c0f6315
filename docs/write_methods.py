"""Writes docs/methods.md from the tables of methods and of scaffolds: python docs/write_methods.py > docs/methods.md."""

from ml_collections import ConfigDict

from exit_jax.config.methods import METHODS, fields_of
from exit_jax.config.methods.method import MECHANISMS
from exit_jax.config.shipped import load
from exit_jax.evaluation.scaffolds import SCAFFOLDS
from exit_jax.workdir.markdown import table

INTRODUCTION = """# The field's methods

Other curricula, starts, objectives and scaffolds beside ExIt's, by a word each, on the same policy, the same tasks and the
same number of rollouts. A training method is a variant: its word after a hyphen behind one of ExIt's five (`grpo`,
`curriculum`, `improve`, `diverge`, `exit`), and several of them may be crossed.

    python -m exit_jax.main --config sudoku:variant=grpo-sec,setting=control
    python -m exit_jax.main --config sudoku:variant=exit-refill-nft
    python -m exit_jax.main --mode study --config sudoku --config.study.variants="('grpo','grpo-refill','exit','exit-refill')"

*Faithful* is what its authors' paper or code says, *adapted* says how it differs, *in kind* what it has in common and no
more: under such a label a result here says nothing of the paper. Numbers are the authors' where they give any. With
`rollout_lag` whatever learns from groups is as many batches late. `python docs/write_methods.py > docs/methods.md` writes
this page from `exit_jax/config/methods` and `exit_jax/evaluation/scaffolds`, and a test keeps it true.

## Comparing them

    python -m exit_jax.main --mode study --config sudoku:setting=control --config.study.seeds="(30,31,32,33,34)" \\
        --config.study.variants="('grpo','grpo-sec','grpo-sec-permuted','exit','exit-sec')" --config.study.rows=rows.jsonl
    python -m exit_jax.main --mode report --config sudoku --runs rows.jsonl --workdir runs/comparison

The second writes `comparison.md` and its figures, of the rows of one or more studies: differences to the same variant without
the method, paired by seed, with intervals and p-values under Holm's correction; interquartile means and probabilities of
improvement with bootstrapped intervals, as [rliable](https://arxiv.org/abs/2108.13264) has them; what a method adds within ExIt
less what it adds without; over several studies all of it together. A difference that the interval neither shows nor excludes
is *not seen*; it is *equal* only if the interval lies within ±.05. A study warns of variants that sample unequally many
responses, and the page says so.
"""

ABOUT = {
    "curriculum": (
        "Curricula",
        "Which base tasks are drawn (`exit_jax/algorithm/curricula`, a module each). What is chosen among is "
        "the first difficulty that the domain tells, or single tasks; `algorithm.curriculum.unit` names "
        "another one. Draws from ExIt's buffer go past it. Each is also a variant with `permuted` behind it, "
        "as `grpo-sec-permuted`: the same curriculum over units that say nothing of their tasks, which must "
        'come out as no curriculum does. `algorithm.curriculum.method = "replay"` repeats the weights of a '
        "finished run (AGAIN, arXiv 2004.03168, in kind).",
    ),
    "buffer": (
        "ExIt's buffer",
        "Other scores of its entries, and other draws (`exit_jax/algorithm/buffer_draws.py:DRAWS`).",
    ),
    "starts": (
        "Starts",
        "Base tasks that begin with some of their gold solution, where the domain has one "
        "(`exit_jax/algorithm/gold.py`), by a level that a rule moves "
        "(`exit_jax/algorithm/start_levels.py:LEVELS`). The task itself enters ExIt's buffer as it is in the "
        "table.",
    ),
    "admission": (
        "Admission",
        "Which groups are learnt from (`exit_jax/algorithm/admission.py`). All that is sampled counts as a "
        "cost and enters the buffer.",
    ),
    "schedule": (
        "Schedules",
        "Coefficients by the iteration (`exit_jax/algorithm/schedules.py`); `algorithm.schedules` takes any "
        "of your own.",
    ),
    "replay": (
        "Replay",
        "Responses that are learnt from again (`exit_jax/algorithm/replay.py`), groups in the places of others "
        "(`exit_jax/algorithm/regroup.py`), and rounds that are sampled before they are learnt from "
        '(`exit_jax/algorithm/rounds.py`). A round\'s groups are held on each device, and `rounds.restart = "base"` keeps the '
        "parameters before RL, one more copy of those that are trained; the optimiser's warm-up begins anew with each round. "
        "`--mode compile` counts both.",
    ),
    "protocol": (
        "Protocols",
        "Two attempts a rollout (`exit_jax/algorithm/protocol.py`), for tasks of one turn; the prompts of a batch are "
        "halved, so that it samples as many responses. `critique` has the policy say what is wrong between them, in domains of "
        "text (`domain.critique`), and takes a third of the prompts; it needs a policy that can: with tiny ones only its "
        "mechanics were tried.",
    ),
    "objective": (
        "Objectives",
        "What is maximised, and what rewards are held against (`exit_jax/algorithm/objectives.py`).",
    ),
}

SCAFFOLD_TEXT = """## Scaffolds

How an evaluation spends its responses (`exit_jax/evaluation/scaffolds`): `--config.eval.scaffolds="('beam','uct')"`. One
that *looks* lets grades decide while it searches: fair where a score is known at that time, as in ML engineering, and an
oracle elsewhere.
"""

ABSENT = (
    (
        "Reflexion's memory, AutoMathCritique's critic",
        "several reflections in a prompt, or a second policy that criticises; one critique of the newest response is here as "
        "`critique`, and in evaluation as `self_refine`",
    ),
    (
        "ADCL, EGSR",
        "re-estimates of difficulty, and guided responses as off-policy rows: not built; known from summaries alone",
    ),
    (
        "ALP-GMM over continuous parameters, CLUTR, PAIRED",
        "the tasks here have at most one whole number to choose; `alp` is the discrete form",
    ),
    (
        "LbT",
        "needs related tasks with known answers in the prompt, and more responses than its rivals get",
    ),
    (
        "WebEvolver",
        "a learnt world model, where the tiny world simulates itself exactly",
    ),
    (
        "Socratic-Zero, ALAS, Game On, DataEnvGym, PromptCoT 2.0, EnvGen, LMA3, CLPO, WebRL's task writer",
        "a large model writes tasks, environments or rewards; no small form would be that system",
    ),
    (
        "CoMAS, SPC, SPIRAL's games",
        "several roles, or two players; SPIRAL's baseline is here as `rae`",
    ),
    (
        "TT-SI",
        "trains on examples written at test time, by a model that can write them",
    ),
    (
        "TraceRL's value model, WebRL's critic",
        "a value head, for one system each; the band is here",
    ),
    (
        "T1",
        "its parts are settings: `group_size`, `entropy_coef`, `reference_every` and `reference_mix`",
    ),
)


def escaped(text: str) -> str:
    """Return text for a table's cell."""
    return text.replace("|", "\\|")


def settings_text(word: str, config: ConfigDict) -> str:
    """Return what a method sets, short of the common prefix and of long texts."""
    shown = {name.removeprefix("algorithm."): repr(value) for name, value in fields_of(word, config).items()}
    return ", ".join(f"`{name} = {text if len(text) < 60 else '...'}`" for name, text in shown.items())


def page() -> str:
    """Return the page."""
    turns, text = load("tools_tiny"), load("arithmetic_cpu")  # for what goes by turns, or by domains of text
    parts = [INTRODUCTION]
    for mechanism in MECHANISMS:
        words = [word for word, method in METHODS.items() if method.mechanism == mechanism]
        if not words:
            continue
        title, about = ABOUT[mechanism]
        rows = [
            [
                f"`{word}`",
                METHODS[word].name,
                METHODS[word].source,
                escaped(METHODS[word].label),
                settings_text(word, text if word == "critique" else turns),
            ]
            for word in words
        ]
        parts += [f"## {title}\n\n{about}\n", table(["word", "method", "from", "label", "sets"], rows, numbers=False)]
    rows = [
        [f"`{row.name}`", row.about, row.source, row.label, "yes" if row.looks_at_grader else "no"]
        for row in SCAFFOLDS.values()
    ]
    parts += [SCAFFOLD_TEXT, table(["word", "what it does", "from", "label", "looks"], rows, numbers=False)]
    parts += ["## What has no row, and why\n", table(["system", "why"], ABSENT, numbers=False)]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


if __name__ == "__main__":
    print(page(), end="")
