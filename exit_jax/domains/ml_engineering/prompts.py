"""The wording of the ML-engineering prompt (ExIt §4, App. B), as str.format texts over the pieces of a history.

    request   task description and previews of the data files (``request``)
    solution  the current solution.py
    feedback  the score line of submissions.py, or how the last run failed (``failed``)

A config file may take these texts or its own. The paper's goal line is improve, debug (if the last run crashed) or diverge.
IMPROVE names the first two in one line, since only the feedback piece tells which of them holds; a domain that can tell them
apart before prompts are spliced takes IMPROVE_ONLY and DEBUG in its place.
"""

ROLE = (
    "You are an engineer of machine learning who takes part in a competition with a single Python script, solution.py."
)

# what a base task shows in the place of a solution
EMPTY_SOLUTION = """def main():
    pass


if __name__ == "__main__":
    main()"""

CURRENT = """# Current solution.py
```python
{solution}
```"""

LAST_RUN = """# Its last run
{feedback}"""

GOALS = {
    "start": "Write a solution.py that reaches a good score.",
    "improve": "Improve solution.py so that its score gets better.",
    "debug": "The last run failed. Debug solution.py so that it runs and writes a valid submission.",
    "improve_or_debug": "If the last run failed, debug solution.py; otherwise improve it so that its score gets better.",
    "diverge": "Leave this approach. Write a radically different solution.py, with other features and another kind of model, "
    "that reaches a good score.",
}

RULES = """# Rules
- Answer with all of solution.py in one ```python block. It is run as it stands, with no arguments.
- The environment variable DATA_DIR names the folder of the data files, which can only be read.
- Write the predictions to submission.csv in the working directory, in the format of the sample submission.
- A run may take {time_limit} and has no network."""

NO_CODE = "The response held no complete ```python block, so nothing was run."


def build(goal: str, time_limit: str = "5 minutes") -> str:
    """Return the user's message for a goal of GOALS; {request}, {solution} and {feedback} are left open.

    The message of "start" shows EMPTY_SOLUTION, which had no run; only {request} is open there.

    Raises:
      ValueError: for an unknown goal.
    """
    if goal not in GOALS:
        raise ValueError(f"goal = {goal!r} is not one of {tuple(GOALS)}")
    started = goal == "start"
    current = (CURRENT.replace("{solution}", EMPTY_SOLUTION),) if started else (CURRENT, LAST_RUN)
    rules = RULES.replace("{time_limit}", time_limit)
    return "\n\n".join((ROLE, *current, f"# Goal\n{GOALS[goal]}", "# Task\n{request}", rules))


def request(description: str, previews: str) -> str:
    """Return the request piece."""
    return f"{description.strip()}\n\n# Data files\n{previews.strip()}"


def failed(reason: str, trace: str = "") -> str:
    """Return the feedback piece for a run that failed, such as "It stopped with exit status 1", and the end of its trace."""
    return f"{reason}. The end of its error trace:\n```\n{trace}\n```" if trace else f"{reason}."


BASE = build("start")
IMPROVE = build("improve_or_debug")
IMPROVE_ONLY = build("improve")
DEBUG = build("debug")
DIVERGE = build("diverge")
