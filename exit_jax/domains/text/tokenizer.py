"""The tokenizer of a domain: a checkpoint's, or one that is trained on the spot on the domain's own texts."""

import functools
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from exit_jax.domains.domain import DomainError
from exit_jax.errors import UserError
from exit_jax.policy.hf import tokenizer as hf_tokenizer
from exit_jax.policy.hf.config import resolve

VERSION = 1  # version of the way one is trained
END = "<|end|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def load(name: str) -> Any:
    """Return the tokenizer of a folder or hub id.

    Raises:
      DomainError: if there is none, or transformers would encode otherwise than its files say.
    """
    try:
        return hf_tokenizer.load(resolve(name))
    except UserError as error:
        raise DomainError(f"domain.tokenizer = {name!r} cannot be loaded: {error}") from error


@functools.cache
def of_bytes() -> Any:
    """Return a tokenizer in which every byte is a token, with the plain chat template: 260 ids, and nothing to download."""
    return _train([], 0)


def train(texts: Sequence[str], vocab_size: int, folder: pathlib.Path) -> Any:
    """Return a byte-level BPE tokenizer of texts, in which every digit is a token of its own, with a plain chat template.

    It is kept in ``folder`` under a hash of texts and size, so that a run which resumes finds the very same.
    """
    recipe = json.dumps([VERSION, list(texts), vocab_size, CHAT_TEMPLATE])
    target = folder / f"tokenizer-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            _train(texts, vocab_size).save_pretrained(partial)
            try:
                os.rename(partial, target)
            except OSError:  # another process was faster
                if not target.exists():
                    raise
            else:
                pathlib.Path(partial).mkdir()  # something for the context to remove
    return hf_tokenizer.load(target)


def _train(texts: Sequence[str], vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    anything = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # so " \\times " is one token, too
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, anything])
    tokenizer.decoder = decoders.ByteLevel()
    special = [END, *ROLES.values()]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return with_plain_chat(tokenizer)


def with_plain_chat(tokenizer: Any) -> Any:
    """Return a tokenizer of transformers, with the plain chat template, from one of tokenizers that has END and ROLES."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        additional_special_tokens=list(ROLES.values()),
        chat_template=CHAT_TEMPLATE,
    )
