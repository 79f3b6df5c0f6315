"""The wording of the ML-engineering prompt (ExIt §4, App. B), as str.format texts over the pieces of a history.

    context   the goal line of improve mode, GOALS["improve"] or GOALS["debug"]: chosen when a script has run
    request   task description and previews of the data files (``request``)
    solution  the current solution.py, which ends with a newline
    feedback  how the last run failed (``failed``) or what is wrong with its submission, RAN if nothing is

A config file may take these texts or its own. The goal line is improve, debug (if the last run failed) or diverge; a base
task's is improve, of an empty main.
"""

ROLE = (
    "You are an engineer of machine learning who takes part in a competition with a single Python script, solution.py."
)

# what a base task shows in the place of a solution
EMPTY_SOLUTION = """def main():
    # the data files are in the folder os.environ["DATA_DIR"], which can only be read
    # the predictions go to submission.csv, in the working directory
    pass


if __name__ == "__main__":
    main()
"""

CURRENT = """# Current solution.py
```python
{solution}```"""

LAST_RUN = """# Its last run
{feedback}"""

GOALS = {
    "improve": "Improve solution.py so that its score gets better.",
    "debug": "The last run failed. Debug solution.py so that it runs and writes a valid submission.",
    "diverge": "Leave this approach. Write a radically different solution.py, with other features and another kind of model, "
    "that reaches a good score.",
}

RULES = """# Rules
- Answer with all of solution.py in one ```python block. It is run as it stands, with no arguments.
- The environment variable DATA_DIR names the folder of the data files, which can only be read.
- Write the predictions to submission.csv in the working directory, in the format of the sample submission.
- A run may take {time_limit} and has no network. numpy, pandas, scipy and scikit-learn are there; nothing can be installed.
- Worker processes (multiprocessing, joblib, torch's DataLoader) and asyncio work; servers, and memory shared without a file, \
as by mmap.mmap(-1, n), do not."""

RAN = "It ran, and its submission.csv is valid."
NO_CODE = "The response held no complete ```python block, so nothing was run."


def build(mode: str, time_limit: str = "5 minutes") -> str:
    """Return the user's message for a mode: "base", "improve" or "diverge"; its pieces are left open.

    That of "base" is the improve step on EMPTY_SOLUTION, which had no run; only {request} is open there.

    Raises:
      ValueError: for an unknown mode.
    """
    goals = {"base": GOALS["improve"], "improve": "{context}", "diverge": GOALS["diverge"]}
    if mode not in goals:
        raise ValueError(f"mode = {mode!r} is not one of {tuple(goals)}")
    started = mode == "base"
    current = (CURRENT.replace("{solution}", EMPTY_SOLUTION),) if started else (CURRENT, LAST_RUN)
    rules = RULES.replace("{time_limit}", time_limit)
    return "\n\n".join((ROLE, *current, f"# Goal\n{goals[mode]}", "# Task\n{request}", rules))


def request(description: str, previews: str) -> str:
    """Return the request piece."""
    return f"{description.strip()}\n\n# Data files\n{previews.strip()}"


def failed(reason: str, trace: str = "") -> str:
    """Return the feedback piece for a run that failed, such as "It stopped with exit status 1", and the end of its trace."""
    return f"{reason}. The end of its error trace:\n```\n{trace}\n```" if trace else f"{reason}."


BASE, IMPROVE, DIVERGE = map(build, ("base", "improve", "diverge"))
