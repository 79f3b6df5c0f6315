"""The one family of faults that a user can mend, which the command line prints as one line with status 2; and being stopped."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A config, checkpoint, data set or workdir that cannot be used; the message names the value, the rule and the remedy."""


class ConfigError(UserError):
    """A config or a workdir that cannot be used; the message lists every fault and its remedy."""


class DomainError(UserError):
    """Tasks that cannot be had as they were asked for; the message says what to change."""


class GradingError(RuntimeError):
    """Verifiers or environments that fail as a whole, not for an answer; the log says why."""


class LostProcessError(RuntimeError):
    """Another process of the run ended, or no longer answers; started again together, they go on from the newest checkpoint."""


class Interrupted(Exception):
    """A signal asked the run to stop, and its state was saved."""

    def __init__(self, signum: int, title: str, step: int):
        super().__init__(f"stopped at {title} step {step}; the same command resumes there")
        self.signum = signum


def exit_status(call: Callable[[], int]) -> int:
    """Call what a command line does and return its exit status; a fault that a user can mend is one line on stderr."""
    try:
        return call()
    except UserError as error:
        said, status = f"error: {error}", 2
    except (GradingError, LostProcessError) as error:
        said, status = f"error: {error}", 1
    except KeyboardInterrupt:
        said, status = "stopped; the same command goes on", 130
    except OSError as error:  # a full disk, a folder that went away
        said, status = f"error: {error}; mend it, and the same command resumes", 1
    except Interrupted as stop:
        said, status = str(stop), 128 + stop.signum
    print(f"\n{said}", file=sys.stderr)
    return status
