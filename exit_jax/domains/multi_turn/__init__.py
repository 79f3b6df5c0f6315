"""Environments of your own of several turns, or of others: a protocol in text, in processes with limits, with ExIt around them."""
