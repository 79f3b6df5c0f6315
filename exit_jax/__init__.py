"""Exploratory Iteration (ExIt) in JAX: policies that improve their own answers."""

__version__ = "0.1.0"
