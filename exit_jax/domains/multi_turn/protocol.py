"""What an environment of several turns may raise."""


class Unavailable(Exception):
    """A server that went away, after its adapter's own retries: the run stops, and goes on at the next start."""


class Refused(Exception):
    """An environment that cannot be carried, by name and reason: refused at load."""
