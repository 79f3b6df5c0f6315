"""Halves of surrogate pairs, which JSON may hold and neither a tokenizer nor a file takes. The standard library only."""


def replace_surrogates(text: str) -> str:
    r"""Return a text that can be written: each half becomes "?".

    >>> replace_surrogates("so \ud83d")
    'so ?'
    """
    return text.encode(errors="replace").decode()
