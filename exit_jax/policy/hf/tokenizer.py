"""The one loader of tokenizers: what runs is what tokenizer.json says, or nothing runs.

``transformers.AutoTokenizer`` builds the tokenizer that it expects of a model's type and takes only parts from the file. To
``model_type`` qwen2 it gives Qwen2's pre-tokenizer whatever the file has; 5.3 to 5.21 encode "Mia has 10 shells" as
"Miahas10shells" with the files of R1-Distill-Llama; and where the file is missing it may build one of two tokens, without a
word. So the file is loaded as it is, and a sample of texts is encoded by it and by the library ``tokenizers`` alone.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from exit_jax.policy.hf.config import CheckpointError, read_json, require_embeddings

Tokenizer = Any  # one of transformers, whose import takes a second and is not needed here
FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
# Files of JSON beside FILE that transformers reads where they exist; each holds an object.
_BESIDE = (CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.json")
# What pre-tokenizers, normalisers and decoders are known to treat differently.
PROBE = (
    "Mia has 10 shells, 345 stones and 12345 + 678 = 13023 grains.",
    "It's don't WE'LL, isn't it? (x**2) -> [y] & {z}; 3.14 != 2,718%",
    "  two  spaces\n\n\nthree newlines\t\ttabs \n trailing ",
    "def f(x):\n    return x + 1  # done\n\nprint(f(2))\r\n",
    "$\\frac{1}{2} \\times \\sqrt{3} \\le 10^{-3}$ \\boxed{42}",
    "naïve café Ⅷ ﬁ ½ e\u0301 Å \u00a0\u200b 日本語 текст 안녕 🙂👍🏽",
    '<tool_call>\n{"name": "search", "arguments": {"query": "1.5"}}\n</tool_call>',
    "<think>\nOK.\n</think>\n\nassistant\n# Request",
)
_NUM_SHOWN = 3


def load(folder: str | pathlib.Path, vocab_size: int | None = None, special_tokens: bool = False) -> Tokenizer:
    """Return the tokenizer of a folder as transformers' PreTrainedTokenizerFast.

    It encodes and decodes as ``tokenizers.Tokenizer.from_file`` of its tokenizer.json does; special tokens and the chat
    template are those of the files beside it.

    Args:
      vocab_size: that of the model, which must have an embedding for every token.
      special_tokens: whether texts will be encoded with what the file's post-processor puts around them.

    Raises:
      CheckpointError: without tokenizer.json, if a file is damaged or of another format, if files contradict each other, or if
        transformers would encode otherwise than the file says.
    """
    folder = pathlib.Path(folder)
    plain = read_plain(folder)
    if vocab_size is not None:
        require_embeddings(folder / FILE, 1 + max(plain.get_vocab().values(), default=-1), vocab_size)
    for name in _BESIDE:
        if (folder / name).exists():
            read_json(folder / name)
    from transformers import PreTrainedTokenizerFast  # a second of import

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        _check_template(folder, tokenizer.chat_template)
        _check_same(folder, tokenizer, plain, special_tokens)
    except CheckpointError:
        raise
    except Exception as error:  # damaged files make it raise errors of any kind, some only when it encodes
        raise CheckpointError(
            f"{folder}: transformers cannot read the tokenizer ({_brief(error)}); download {CONFIG} and what is beside it again"
        ) from error
    return tokenizer


def read_plain(folder: pathlib.Path) -> Any:
    """Return the ``tokenizers.Tokenizer`` of a folder, without truncation and padding.

    Raises:
      CheckpointError: if there is none, or it cannot be read.
    """
    from tokenizers import Tokenizer

    path = folder / FILE
    if not path.is_file():
        found = sorted(item.name for item in folder.iterdir() if _is_vocabulary(item.name)) if folder.is_dir() else []
        other = f" ({', '.join(found)} can be turned into several tokenizers, and is not read)" if found else ""
        raise CheckpointError(
            f"{folder} holds no {FILE}{other}; copy that of the same model there, or write one by "
            "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...) and look at what it encodes"
        )
    try:
        plain = Tokenizer.from_file(str(path))
    except Exception as error:  # it raises a bare Exception
        raise CheckpointError(
            f"{path} is no tokenizer that the library tokenizers reads ({_brief(error)}); download it again"
        ) from error
    plain.no_truncation()
    plain.no_padding()
    return plain


def _is_vocabulary(name: str) -> bool:
    return name.endswith((".model", ".tiktoken")) or name in ("vocab.json", "vocab.txt", "merges.txt", "tekken.json")


def _brief(error: Exception) -> str:
    """Return kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]:.200}" if lines else repr(error)


def _check_template(folder: pathlib.Path, template: Any) -> None:
    named = template if isinstance(template, Mapping) else {"default": template or ""}
    if not all(isinstance(text, str) for text in named.values()):
        raise CheckpointError(
            f"{folder}: the chat template is {template!r:.100}, which must be text; download {CONFIG} again"
        )


def _check_same(folder: pathlib.Path, tokenizer: Tokenizer, plain: Any, special: bool) -> None:
    """Raise unless both have the same tokens, and read and write the probe alike."""
    named = tokenizer.added_tokens_decoder, plain.get_added_tokens_decoder()
    ours, theirs = ({number: token.content for number, token in added.items()} for added in named)
    extra = [ours[number] for number in sorted(ours) if theirs.get(number) != ours[number]]
    if extra or len(tokenizer) != plain.get_vocab_size():
        shown = ", ".join(map(repr, extra[:_NUM_SHOWN])) + (
            f" and {len(extra) - _NUM_SHOWN} more" * (len(extra) > _NUM_SHOWN)
        )
        raise CheckpointError(
            f"{folder}: the files beside {FILE} name tokens that it does not have: {shown}; they are of different tokenizers: "
            f"download all files of one, or mend {CONFIG}"
        )
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    if blank := [token for token, number in named if number is None]:
        raise CheckpointError(f"{folder}: special tokens are {blank}, which are none of {FILE}; mend {CONFIG}")
    if not special:
        _check_survival(folder, plain)
    for text in (*PROBE, *_around_added(plain)):
        ids, wanted = _encode_both(text, tokenizer, plain, special)
        said = _decode(tokenizer, wanted), plain.decode(wanted, skip_special_tokens=False)
        if ids != wanted or said[0] != said[1]:
            import transformers

            deed = f"encodes {text!r:.60} as {ids[:8]}" if ids != wanted else f"decodes {wanted[:8]} as {said[0]!r:.60}"
            right = wanted[:8] if ids != wanted else f"{said[1]!r:.60}"
            raise CheckpointError(
                f"{folder}: transformers {transformers.__version__} {deed}, where {FILE} says {right}; another version of "
                f"transformers may read it rightly, or {CONFIG} changes it (as split_special_tokens does)"
            )


def _check_survival(folder: pathlib.Path, plain: Any) -> None:
    """Raise if letters or digits of a plain sentence are lost, or a text is now these and now those ids."""
    if getattr(plain.model, "dropout", None):
        raise CheckpointError(f"{folder / FILE} has a dropout, so that a text has other ids each time; set it to null")
    read = plain.decode(plain.encode(PROBE[0], add_special_tokens=False).ids, skip_special_tokens=False)
    if _letters(read) != _letters(PROBE[0]):
        raise CheckpointError(
            f"{folder / FILE} makes {read!r} of {PROBE[0]!r}; a policy could not read its tasks, take another"
        )


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


def _encode_both(text: str, tokenizer: Tokenizer, plain: Any, special: bool = False) -> tuple[list[int], list[int]]:
    return tokenizer.encode(text, add_special_tokens=special), plain.encode(text, add_special_tokens=special).ids


def _decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _around_added(plain: Any) -> list[str]:
    """Return texts with every added token between words, and at both edges."""
    added = [token.content for token in plain.get_added_tokens_decoder().values()]
    return [
        "".join(f"{token} a {token}1\n" for token in added[start : start + 64]) for start in range(0, len(added), 64)
    ]


def check_pair(tokenizer: Tokenizer, name: str, folder: pathlib.Path) -> None:
    """Refuse a tokenizer with which a checkpoint was not trained: the same text must be the same ids to both.

    A checkpoint's folder without tokenizer.json says nothing about it.

    Args:
      name: what the tokenizer is called, for the error.

    Raises:
      CheckpointError: naming a token, or a text, that the two disagree about.
    """
    if not (folder / FILE).exists():
        return
    plain = read_plain(folder)
    ours, theirs = tokenizer.get_vocab(), plain.get_vocab()
    differ = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    remedy = (
        "a policy would read and write ids that mean something else to it; name the checkpoint's own tokenizer, or copy the "
        "tokenizer that the checkpoint was trained with into its folder"
    )
    if differ:
        token = differ[0]
        raise CheckpointError(
            f"{name} is not the tokenizer of {folder}: {len(differ)} tokens have other ids, as {token!r}, "
            f"{ours.get(token, 'none')} there and {theirs.get(token, 'none')} here; {remedy}"
        )
    for text in (*PROBE, *_around_added(plain)):
        ids, wanted = _encode_both(text, tokenizer, plain)
        if ids != wanted:
            raise CheckpointError(
                f"{name} is not the tokenizer of {folder}: it encodes {text!r:.60} as {ids[:8]}, not {wanted[:8]}; {remedy}"
            )
