"""A language model as pure functions over a plain dict of parameters."""
