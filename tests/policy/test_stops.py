"""A text that ends responses, against Python's own search in the text that tokens make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import LLAMA, random_params

from exit_jax.policy import choice, decoder, sampler
from exit_jax.policy.choice import SamplingConfig
from exit_jax.policy.stops import StopText

# texts whose starts return in their midst, which a search that begins anew at each mismatch gets wrong
TEXTS = ("</tool_call>", "aabaaab", "abab", "x", "<<b<<b>")


def make_tokens(text: str, rng) -> list[str | None]:
    """Return a vocabulary of pieces of a text, cut anywhere, with others; one id has no token."""
    pieces = [text[a:b] for a, b in np.sort(rng.integers(0, len(text) + 1, (12, 2))) if b > a]
    return [text, f"}}{text}", f"{text}\n", f"{text[-1]}!", text[0], f"é{text[0]}", " ", "z", *pieces, *text, None]


def cut_somewhere(text: str, tokens: list[str | None], rng) -> list[int]:
    """Return ids whose tokens make up a text, cut at random."""
    ids: list[int] = []
    while text:
        ids.append(int(rng.choice([i for i, token in enumerate(tokens) if token and text.startswith(token)])))
        text = text[len(tokens[ids[-1]]) :]
    return ids


def first_in_text(text: str, pieces: list[str | None]) -> int | None:
    """Return the index of the piece with which a text is first complete; what has no token cuts."""
    seen = ""
    for index, piece in enumerate(pieces):
        seen += "\0" if piece is None else piece
        if text in seen:
            return index
    return None


@pytest.mark.parametrize("text", TEXTS)
def test_found_where_the_text_is(text):
    rng = np.random.default_rng(len(text))
    tokens = make_tokens(text, rng)
    stop = StopText.of(text, tokens)
    rows = rng.integers(4, len(tokens) + 2, (400, 30))  # the last two are ids beyond the tokenizer's
    for row in rows[::4]:
        row[: rng.integers(10)] = rng.integers(4)  # in one token
    for row in rows[1::4]:
        pieces = cut_somewhere(text, tokens[4:], rng)
        at = rng.integers(30 - len(pieces))
        row[at : at + len(pieces)] = np.array(pieces) + 4
    named = [*tokens, None, None]
    expected = [first_in_text(text, [named[token] for token in row]) for row in rows]
    assert [stop.find(row.tolist()) for row in rows] == expected
    assert sum(index is None for index in expected) > 5 or len(text) == 1
    assert sum(index is not None for index in expected[1::4]) == 100

    settings = SamplingConfig(30, (), 1.0, stop_text=stop)
    ends = jax.jit(lambda position: choice.ends(settings, jnp.asarray(rows)[:, None], position))
    found = np.concatenate([np.asarray(ends(position)) for position in range(30)], axis=1)
    assert [int(row.argmax()) if row.any() else None for row in found] == expected


def test_sampling_stops_with_the_text_and_not_before():
    """Every row ends with the token that completes the text, of which some hold more; a full row never holds it."""
    tokens = ["ab", "b", "c", "xa", "a", "bc", "aa", "ca", *"defghijkl"][: LLAMA.vocab_size]
    params, shape = decoder.unstack(LLAMA, random_params(LLAMA)), LLAMA
    prompt = jnp.array([[4, 5, 6], [9, 2, 0]]), jnp.array([3, 2])
    settings = SamplingConfig(24, (), 4.0, stop_text=StopText.of("abc", tokens))
    draw = jax.jit(
        lambda settings, slots: sampler.sample(shape, settings, 64, params, *prompt, jax.random.key(1), slots),
        static_argnums=(0, 1),
    )
    whole = jax.device_get(draw(settings, 0))
    ended = 0
    for response, kept, finished in zip(
        *(leaf.reshape(128, -1) for leaf in (whole.tokens, whole.mask, whole.finished))
    ):
        said = [tokens[token] for token in response[kept]]
        assert "abc" not in "".join(said[:-1])
        assert ("abc" in "".join(said)) == bool(finished[0])
        assert finished[0] or len(said) == 24
        ended += finished[0]
    assert 20 < ended < 128
    refilled = jax.device_get(draw(settings, 16))
    np.testing.assert_array_equal(refilled.tokens, whole.tokens)
    np.testing.assert_array_equal(refilled.finished, whole.finished)


def test_a_text_of_no_length_is_refused():
    for text in ("", "a" * 127):
        with pytest.raises(ValueError, match=rf"1 to 126 characters, .* has {len(text)}"):
            StopText.of(text, ["a"])
