"""The one family of faults that a user can mend, which the command line prints as one line with status 2; and being stopped."""


class UserError(ValueError):
    """A config, checkpoint, data set or workdir that cannot be used; the message names the value, the rule and the remedy."""


class ConfigError(UserError):
    """A config or a workdir that cannot be used; the message lists every fault and its remedy."""


class Interrupted(Exception):
    """A signal asked the run to stop, and its state was saved."""

    def __init__(self, signum: int, title: str, step: int):
        super().__init__(f"stopped at {title} step {step}; the same command resumes there")
        self.signum = signum
