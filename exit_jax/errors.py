"""The one family of faults that a user can mend; the command line prints them as one line and exits with status 2."""


class UserError(ValueError):
    """A config, checkpoint, data set or workdir that cannot be used; the message names the value, the rule and the remedy."""
