"""Evaluation of a policy over K steps: scaffolds, the responses that are stored, the figures."""
