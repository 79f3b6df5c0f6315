r"""The syntax of answers in one notation: parts between separators and brackets, plain numbers, words, single formulas."""

import functools
import re
from fractions import Fraction
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

from readings import Value

NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
MAX_POWER = 300  # power of ten in a number that is kept as a fraction
MAX_FORMULA_CHARS = 1000
BRACKET = re.compile(r"\\(?:[{}]|langle|rangle|begin|end)|[(\[{}\])]")
# what the left side of an equation may be that only names its right side: x, f(x), AB, |AB|, a_{10}, \angle ABC, m+n
NAME = re.compile(r"(?=[A-Za-z\\|(])(?:\\[A-Za-z]+(?![A-Za-z])|[A-Za-z{}_'|()\d\s,^+])+")
SYNONYMS = {"dne": "does not exist", "undefined": "does not exist", "infinite": "infinitely many"}


def split(text: str, pattern: re.Pattern) -> list[str]:
    """Split a text at the matches of a pattern outside brackets; the matches are the odd items."""
    parts, start, depth, index = [], 0, 0, 0
    while index < len(text):
        token = BRACKET.match(text, index)
        if token:
            depth += 1 if token[0][-1] in "([{" or token[0] in (r"\langle", r"\begin") else -1
            index = token.end()
        elif depth <= 0 and (match := pattern.match(text, index)):
            parts += [text[start:index].strip(), match[0]]
            start = index = match.end()
        else:
            index += 1
    return [*parts, text[start:].strip()]


def inside(text: str) -> tuple[str, str, str] | None:
    """Return the opening bracket, the content and the closing bracket, if they enclose all of a text."""
    match = re.fullmatch(r"(\\\{|\\langle(?![A-Za-z])|[(\[<])(.*)(\\\}|\\rangle|[)\]>])", text, re.DOTALL)
    if not match or (match[1] == r"\{") != (match[3] == r"\}"):
        return None
    depth = 0
    for bracket in re.findall(r"\\[{}]|[()\[\]{}]", match[2]):
        depth += 1 if bracket[-1] in "([{" else -1
        if depth < 0:
            return None
    return None if depth else (match[1], match[2].strip(), match[3])


def without_text(text: str) -> str:
    r"""Return a text whose words are bare: 7\text{ cm} is 7 cm."""
    return re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)


def is_name(text: str) -> bool:
    """Return whether the left side of an equation only names what its right side is."""
    return NAME.fullmatch(text) is not None


def has_letters(text: str) -> bool:
    """Return whether a formula has letters but for those of its commands."""
    return re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text)) is not None


def plain_words(text: str) -> str:
    """Return words without case, articles and punctuation, "" if it is more than words."""
    bare = without_text(text).strip()
    if not re.fullmatch(r"[A-Za-z(\"][A-Za-z .,'/&()?!\"-]*", bare) or not re.search("[A-Za-z]{2}", bare):
        return ""
    bare = re.sub(r"[^a-z ]", lambda m: " " if m[0] in "-/," else "", bare.lower())
    words = " ".join(word for word in bare.split() if word not in ("the", "a", "an"))
    return SYNONYMS.get(words, words)


def exact(text: str) -> Value | None:
    r"""Return a plain number, None if it is none: -1.5, \frac{3}{4}, 3/4, 1\frac{1}{2}, 4.5\cdot10^{33}."""
    text, sign = text.strip(), 1
    while text[:1] in ("-", "+"):
        sign, text = sign * (-1 if text[0] == "-" else 1), text[1:].strip()
    if re.fullmatch(NUMBER, text):
        return Value(sign * Fraction(text), len(text.partition(".")[2]) if "." in text else None)
    if match := re.fullmatch(rf"(?:({NUMBER})\s*\\cdot\s*)?10\s*\^\{{\s*([-+]?\d+)\s*\}}", text):
        if abs(int(match[2][:9])) > MAX_POWER:
            return None
        return Value(sign * Fraction(match[1] or 1) * Fraction(10) ** int(match[2]))
    part = rf"\{{?\s*(-?{NUMBER})\s*\}}?"
    match = re.fullmatch(rf"(?:(\d+)\s*)?\\frac\s*{part}\s*{part}|(?:(\d+)\s+)?{part}\s*/\s*{part}", text)
    if not match:
        return None
    whole, above, below = match[1] or match[4], Fraction(match[2] or match[5]), Fraction(match[3] or match[6])
    if not below or (whole and (above < 0 or below < 0)):
        return None
    return Value(sign * (int(whole or 0) + above / below))


@functools.lru_cache(maxsize=512)
def parse_formula(text: str, lowercase: bool) -> Any:
    """Return math-verify's reading of one formula, with exact decimals; None if it has none."""
    if len(text) > MAX_FORMULA_CHARS or re.search(r"[,;]$|\\(?:text|dots|pmod|%)|\d\s+\d|\d\s*'|\?", text):
        return None
    text = re.sub(r"\\degree", r"\\cdot\\frac{\\pi}{180}", text)
    if not re.search(r"(?<![A-Za-z\\])i\s*=", text):  # the index of a sum
        text = re.sub(r"(?<![A-Za-z\\])i(?![A-Za-z])", "I", text)
    config = ConversionConfig(lowercase_symbols=lowercase)
    try:
        value = latex2sympy(text, is_real=None, normalization_config=None, conversion_config=config)
        if isinstance(value, sympy.Basic):
            value = value.xreplace({number: sympy.Rational(str(number)) for number in value.atoms(sympy.Float)})
    except MemoryError:
        raise
    except Exception:  # whatever a parser of strange texts may raise
        return None
    return value if isinstance(value, (sympy.Expr, sympy.MatrixBase, sympy.MatrixExpr)) else None
