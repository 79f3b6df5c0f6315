"""The protocol of several turns: what an environment may raise."""


class Unavailable(Exception):
    """A server that went away, after all retries: the run stops, and goes on at the next start."""


class Refused(Exception):
    """An environment that cannot be carried here; the message says which and why. Raised while it is made, or by ``reset``."""
