"""The tokenizer of the tiny policy: a fragment is one token, any other text is bytes, so that all text survives it."""

import json
from typing import Any

from exit_jax.domains.ml_engineering import fragments
from exit_jax.domains.text.tokenizer import END, ROLES, with_plain_chat


def make() -> Any:
    """Return a tokenizer of transformers, whose pre-tokens are statements: a line and the indented ones below it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    listed = ["".join(part for part, _ in as_bytes.pre_tokenize_str(text)) for text in fragments.vocabulary()]
    listed += sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: number for number, text in enumerate(listed)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))  # so a whole pre-token is looked up first
    statement = pre_tokenizers.Split(Regex(r"\n(?! )"), "merged_with_previous")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([statement, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END, *ROLES.values()])
    return with_plain_chat(tokenizer)


def identity() -> str:
    """Return what names the vocabulary in the hash of a warm start."""
    return json.dumps(fragments.vocabulary())
