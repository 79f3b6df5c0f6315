"""Environments of several turns, your own or others': a protocol in text, in processes with limits, with ExIt around."""
