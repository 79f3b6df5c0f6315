r"""One notation for answers: what models and data sets spell in a hundred ways, rewritten in front of math-verify.

``rewrite`` works on text alone, and on gold answer and response alike: Unicode, commands, phrases, and then ``RULES``, each of
which has an example that a test holds. What the words mean that stay (units, choices, "no solution") is for the other modules.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction

GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau upsilon phi "
    "chi psi omega"
).split()
RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱᵃᵇᵏᵐᵗˣʸ", "0123456789+-=()niabkmtxy"))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₓₙₖₘ", "0123456789+-=()aexnkm"))
# what characters stand for; NFKC does the rest (full-width digits, mathematical letters)
CHARACTERS = {
    character: replacement
    for replacement, characters in {
        "-": "‐‑‒–—―−﹣－",
        " ": "\t\r\n\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000",
        "": "\u200b\u200c\u200d\u2060\u2061\u2062\ufeff\u00ad",
        "'": "′’‘`",
        "''": "″",
        '"': "“”",
        "/": "⁄∕",
        "*": "∗",
        ",": "，、",
        ".": "。",
        "|": "∣",
        **{r"\times ": "×✕", r"\cdot ": "⋅·∙", r"\div ": "÷", r"\pm ": "±", r"\mp ": "∓", r"\infty ": "∞"},
        **{r"\degree ": "°º˚", r"\le ": "≤⩽≦", r"\ge ": "≥⩾≧", r"\ne ": "≠", r"\approx ": "≈≃≅", r"\equiv ": "≡"},
        **{r"\in ": "∈", r"\notin ": "∉", r"\cup ": "∪", r"\cap ": "∩", r"\setminus ": "∖", r"\emptyset ": "∅⌀"},
        **{
            r"\langle ": "⟨〈",
            r"\rangle ": "⟩〉",
            r"\lfloor ": "⌊",
            r"\rfloor ": "⌋",
            r"\lceil ": "⌈",
            r"\rceil ": "⌉",
        },
        **{r"\land ": "∧", r"\lor ": "∨", r"\sqrt ": "√", r"\sqrt[3] ": "∛", r"\sqrt[4] ": "∜", r"\angle ": "∠"},
        **{
            r"\triangle ": "△",
            r"\to ": "→",
            r"\dots ": "…⋯",
            r"\mu ": "µ",
            r"\Omega ": "Ω",
            r"\phi ": "ϕ",
            r"\sum ": "∑",
        },
        **{r"\mathbb{R}": "ℝ", r"\mathbb{Z}": "ℤ", r"\mathbb{N}": "ℕ", r"\mathbb{Q}": "ℚ", r"\mathbb{C}": "ℂ"},
        **{rf"\{name} ": chr(0x3B1 + index) for index, name in enumerate(GREEK)},
        **{rf"\{name.title()} ": chr(0x391 + index) for index, name in enumerate(GREEK) if name != "varsigma"},
    }.items()
    for character in characters
}
# commands that say the same, or nothing
COMMANDS = {
    name: replacement
    for replacement, names in {
        "": "left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr bigm mleft mright displaystyle "
        "textstyle scriptstyle limits nolimits bf it rm sf tt bfseries large Large huge small normalsize noindent strut "
        "mathstrut hfill hfil newline relax par",
        " ": "quad qquad thinspace medspace thickspace enspace enskip space nobreakspace",
        r"\frac": "dfrac tfrac cfrac nicefrac sfrac xfrac flatfrac",
        r"\binom": "dbinom tbinom",
        r"\cdot ": "times ast",
        r"\dots ": "ldots cdots dotsc dotsb dotsm dotso textellipsis",
        r"\le ": "leq leqslant leqq",
        r"\ge ": "geq geqslant geqq",
        r"\ne ": "neq",
        "<": "lt",
        ">": "gt",
        r"\approx ": "simeq thickapprox cong doteq",
        r"\emptyset ": "varnothing O",
        r"\{": "lbrace",
        r"\}": "rbrace",
        "[": "lbrack",
        "]": "rbrack",
        "(": "lparen lgroup",
        ")": "rparen rgroup",
        "|": "mid vert lvert rvert",
        r"\setminus ": "backslash smallsetminus",
        r"\lor ": "vee",
        r"\land ": "wedge",
        r"\degree ": "circ",
        r"\infty ": "infin",
        r"\to ": "rightarrow longrightarrow",
        r"\Rightarrow ": "implies",
        r"\mathbb{R}": "R reals Reals",
        r"\mathbb{Z}": "Z integers",
        r"\epsilon ": "varepsilon",
        r"\phi ": "varphi",
        r"\text{angstrom}": "AA",
        r"\text{euro}": "euro",
        r"\text{pound}": "pounds",
    }.items()
    for name in names.split()
}
# commands that only set their argument apart, and those whose argument may be words
WRAPPERS = (
    "mathbf boldsymbol bm pmb bold mathit mathsf mathtt mathnormal mathcal underline emph ensuremath boxed fbox framebox "
    "mathop mathrel mathbin mathord mathopen mathclose uline smash"
).split()
TEXTS = "text textbf textit textrm textsf texttt textnormal textsc mathrm mbox hbox operatorname operatorname*".split()
# phrases, in a formula's \text or bare; the last ones stand after their number
PHRASES = {
    phrase: replacement
    for replacement, phrases in {
        r" \ge ": "greater than or equal to|at least|no less than|not less than|no fewer than",
        r" \le ": "less than or equal to|at most|no more than|not more than|no greater than|up to",
        r" > ": "greater than|more than|larger than|bigger than",
        r" < ": "less than|fewer than|smaller than",
        r" \ne ": "is not equal to|not equal to|does not equal",
        r" \ormore ": "or more|or greater|or above|or larger|or higher|or over|and above|and up|and more|or bigger",
        r" \orless ": "or less|or fewer|or below|or smaller|or lower|or under|and below",
        r" \lor ": "and/or|or",
        r" \land ": "and",
        r"\% ": "percentage|percent|per cent|pct",
        r" \infty ": "infinity",
        r" \cup ": "union",
        r" \degree ": "degrees|degree|degs|deg",
        r"\pm ": "plus or minus|plus/minus",
        r" \pmod ": "modulo|mod",
        " - ": "negative|minus",
        " ": "only",
    }.items()
    for phrase in phrases.split("|")
}
PHRASE = re.compile(
    rf"(?<![A-Za-z\\])(?:{'|'.join(sorted(map(re.escape, PHRASES), key=len, reverse=True))})(?![A-Za-z])", re.IGNORECASE
)
FUNCTIONS = (
    "arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth sin cos tan cot sec csc log ln exp gcd lcm max min det"
).split()
# words in front of an answer
LEAD = re.compile(
    r"^(?:\\text\s*\{\s*)?(?:so |thus |therefore,? |hence,? )?(?:the )?(?:final |correct )?"
    r"(?:answer(?: is)?|(?:[a-z]+ ){0,4}(?:is|are|equals)(?= *\}? *[-\d\\$]))\s*[:=]?\s*\}?\s*(?=\S)",
    re.IGNORECASE,
)
SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
WORD_VALUES = {word: value for value, word in enumerate(SMALL)} | {word: 10 * n for n, word in enumerate(TENS, 2)}
SCALE = f"(?:{'|'.join(SCALES)})s?"
NUMBER_WORD = f"(?:{'|'.join(sorted([*WORD_VALUES, *SCALES, 'hundred'], key=len, reverse=True))})"
NUMBER_WORDS = rf"{NUMBER_WORD}(?:(?:-|\s+and\s+|\s+){NUMBER_WORD})*"
NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
UNIT_VECTOR = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|vec|hat|widehat)\s*\{(?:\\(?:mathbf|bm)\s*\{)?\s*\\?([ijk])(?:math)?\s*\}{1,2}"
)
EDGES = re.compile(r"(?<!\\)[.,;:]+$|\\\\$|^(?:=|\\approx|\\Rightarrow)\s*")
THIN = r"(?:(?<!\\)\\[,;:!> ]|[\s~])"
MARK = r"\\(?:overline|bar|overbar|widebar|dot)"


def end_of_group(text: str, start: int) -> int:
    """Return the index of the brace that closes the one at ``start``, -1 if there is none."""
    depth, index = 0, start
    while index < len(text):
        if text[index] == "\\":
            index += 1
        elif text[index] in "{}":
            depth += 1 if text[index] == "{" else -1
            if not depth:
                return index
        index += 1
    return -1


def replace_commands(text: str, names: Sequence[str], render: Callable[[str], str]) -> str:
    r"""Replace every ``\name{content}`` by what ``render`` makes of the content, the inner ones first."""
    pattern = rf"\\(?:{'|'.join(map(re.escape, names))})\s*(?:\[[^\[\]]*\]\s*)*\{{"
    for match in reversed(list(re.finditer(pattern, text))):
        end = end_of_group(text, match.end() - 1)
        if end >= 0:
            text = text[: match.start()] + render(text[match.end() : end]) + text[end + 1 :]
    return text


def plain(content: str) -> str:
    r"""Return what a piece of text in a formula stands for: \text{045} is a number, \mathrm{sin} a function."""
    content = " ".join(re.sub(r"~|(?<!\\)\\ ", " ", content).split())
    if content in FUNCTIONS and content not in ("min", "sec"):  # which are units, too
        return rf"\{content} "
    if content in ("e", "i") or not re.search("[A-Za-z]", content) or re.search(r"\\[A-Za-z]|[\^_{]", content):
        return f" {content} "
    is_word = re.search("[A-Za-z]{2}", content)
    if re.search(r"[=+<>]", content) or (re.search(r"\d| - ", content) and not is_word):  # a formula
        return f" {content} "
    if not PHRASE.search(content):
        return rf"\text{{{content}}}"
    pieces = re.split(r"(\s*\\[A-Za-z%]+ | [<>] )", PHRASE.sub(lambda m: PHRASES[m[0].lower()], content))
    return "".join(
        rf"\text{{{piece.strip()}}}" if re.search("[A-Za-z]{2}", piece) and "\\" not in piece else piece
        for piece in pieces
    )


def repeating(match: re.Match) -> str:
    """Return a repeating decimal as a fraction."""
    whole, fixed, block = match["whole"] or "0", match["fixed"] or "", re.sub(r"\D", "", match["block"])
    if len(whole + fixed + block) > 60:
        return match[0]
    value = Fraction(int(whole + fixed + block) - int(whole + fixed), (10 ** len(block) - 1) * 10 ** len(fixed))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def continued(match: re.Match) -> str:
    """Return 0.1666... as a fraction, if its digits end in a block that is there twice; else without the dots."""
    found = re.fullmatch(r"(?P<fixed>\d*?)(?P<block>\d+?)(?P=block)+", match["digits"])
    if not found:
        return f"{match['whole']}.{match['digits']}"
    return RULE["a block in parentheses"][0].sub(repeating, f"{match['whole']}.{found['fixed']}({found['block']})")


def in_digits(match: re.Match) -> str:
    """Return a number in words as digits: twenty-one, three hundred and five."""
    total = part = 0
    for word in re.findall("[a-z]+", match[0].lower()):
        if word in WORD_VALUES:
            part += WORD_VALUES[word]
        elif word == "hundred":
            part = 100 * (part or 1)
        elif word in SCALES:
            total, part = total + (part or 1) * 10 ** SCALES[word], 0
    return f" {total + part} "


def digits(match: re.Match) -> str:
    """Return a number without what sets its thousands apart."""
    return re.sub(r"\D", "", match[0])


# what, pattern, replacement, an example, what becomes of it; applied from the first to the last
Replacement = str | Callable[[re.Match], str]
RULES: tuple[tuple[str, str, Replacement, str, str], ...] = (
    ("lines of an environment", r"\\begin\{(aligned|align\*?|gathered|split|equation\*?|cases)\}(.*?)\\end\{\1\}",
     lambda m: re.sub(r"\s*\\\\\s*", ", ", m[2].replace("&", "").strip(" \\")),
     r"\begin{cases} x = 1 \\ y = 2 \end{cases}", "x = 1, y = 2"),
    # numbers
    ("thousands set apart", rf"(?<![\d.,])\d{{1,3}}(?:(?:\{{,\}}|,?\s*\\!|{THIN}+)\s*\d{{3}})+(?![\d/]|\s*/)",
     digits, r"12\,345", "12345"),
    ("thousands after apostrophes", r"(?<![\d.,])\d{1,3}(?:'\d{3})+(?![\d'])", digits, "12'345", "12345"),
    ("thousands after dots", r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![\d.,])", digits, "1.234.567", "1234567"),
    ("a decimal comma after them", r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+),(\d+)(?![\d,])",
     lambda m: f"{m[1].replace('.', '')}.{m[2]}", "1.234,5", "1234.5"),
    ("thousands before a decimal point", r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?=\.\d)", digits, "1,234.5", "1234.5"),
    ("a decimal comma in braces", r"(?<=\d)\{,\}(?=\d)", ".", "3{,}5", "3.5"),
    ("a separator in braces", r"\{\s*([,;:])\s*\}", r"\1", "a{,}b", "a,b"),
    ("spaces", rf"{THIN}+", " ", r"1\; \, 2a", "1 2a"),
    ("a block under a line",
     rf"(?<!\d)(?P<whole>\d*)\.(?P<fixed>\d*)\s*{MARK}\s*(?P<block>\{{\s*[\d\s]+\}}|\d)(?!\s*\d*\s*\\dot)",
     repeating, r"0.1\overline{6}", r"\frac{1}{6}"),
    ("dots over the first and the last digit",
     r"(?<!\d)(?P<whole>\d*)\.(?P<fixed>\d*)\s*(?P<block>\\dot\s*\{?\d\}?\s*\d*\s*\\dot\s*\{?\d\}?)",
     repeating, r"0.\dot{1}4285\dot{7}", r"\frac{1}{7}"),
    ("a block in parentheses", r"(?<!\d)(?P<whole>\d*)\.(?P<fixed>\d*)\s*(?P<block>\(\d+\))(?!\s*[\d^(])",
     repeating, "0.1(6)", r"\frac{1}{6}"),
    ("dots", r"\.\.\.+", r"\\dots ", "1, 2, ...", r"1, 2, \dots"),
    ("a decimal with dots", r"(?<!\d)(?P<whole>\d*)\.(?P<digits>\d{1,60})\s*\\dots", continued, "0.1666...", r"\frac{1}{6}"),
    ("powers", r"\*\*", "^", "x**2", "x^{2}"),
    ("a power in parentheses", r"\^\s*\(\s*([^(){}^]+)\s*\)", r"^{\1}", "2^(10)", "2^{10}"),
    ("a bare power", r"\^\s*([-+]?\d+)", r"^{\1}", "2^10", "2^{10}"),
    ("a bare index", r"(?<!\\log)_\s*(\d+)", r"_{\1}", "101_16", "101_{16}"),
    ("the base of a logarithm", r"\\log\s*_\s*(\d)", r"\\log_{\1}", r"\log_2 8", r"\log_{2} 8"),
    ("logarithms to base e", r"\\log\s*_\s*\{?e\}?", r"\\ln ", r"\log_e 2", r"\ln 2"),
    ("times ten", r"(?<=\d)\s*(?:[xX*]|\\cdot)\s*(?=10\s*\^)", r"\\cdot ", "3 x 10^5", r"3\cdot 10^{5}"),
    ("e-notation", rf"(?<![\w.])({NUMBER})\s*(?:[eE]|\\text\{{[eE]\}})\s*([-+]?)\s*(\d+)(?!\d|\.\d)",
     lambda m: rf"{m[1]}\cdot 10^{{{m[2].strip('+')}{m[3]}}}", "4.5E+33", r"4.5\cdot 10^{33}"),
    ("products", r"\s*\*\s*", r"\\cdot ", r"2*3", r"2\cdot 3"),
    ("a large number", rf"(?<![\d.])({NUMBER})\s*(?:\\text\{{({SCALE})\}}|({SCALE})(?![A-Za-z]))",
     lambda m: rf"{m[1]}\cdot 10^{{{SCALES[(m[2] or m[3]).rstrip('s')]}}}", r"3 \text{ million}", r"3\cdot 10^{6}"),
    ("a number in words",
     rf"(?i)\\text\{{{NUMBER_WORDS}\}}|(?<![A-Za-z\\{{]){NUMBER_WORDS}(?![A-Za-z])|(?<=_\{{){NUMBER_WORDS}(?=\}})", in_digits,
     "twenty-one", "21"),
    # fractions and roots
    ("over", r"\{\s*([^{}]+?)\s*\\over(?![A-Za-z])\s*([^{}]+?)\s*\}", r"\\frac{\1}{\2}", r"{1 \over 2}", r"\frac{1}{2}"),
    ("choose", r"\{\s*([^{}]+?)\s*\\choose(?![A-Za-z])\s*([^{}]+?)\s*\}", r"\\binom{\1}{\2}",
     r"{5 \choose 2}", r"\binom{5}{2}"),
    ("a raised numerator", r"\^\{?(\d+)\}?\s*/\s*_\{?(\d+)\}?", r"\\frac{\1}{\2}", "^1/_2", r"\frac{1}{2}"),
    ("two bare digits", r"\\(frac|binom)\s*(\d)\s*(\d)", r"\\\1{\2}{\3}", r"\frac12", r"\frac{1}{2}"),
    ("two bare letters", r"\\(frac|binom)\s+(\w)\s*(\w)", r"\\\1{\2}{\3}", r"\frac ab", r"\frac{a}{b}"),
    ("a bare numerator", r"\\(frac|binom)\s*(\w)\s*\{", r"\\\1{\2}{", r"\frac1{2}", r"\frac{1}{2}"),
    ("a bare denominator", r"(\\(?:frac|binom)\s*\{[^{}]*\})\s*(\w)", r"\1{\2}", r"\frac{1}2", r"\frac{1}{2}"),
    ("a fraction of parentheses", r"\(([^()]+)\)\s*/\s*\(([^()]+)\)", r"\\frac{\1}{\2}", "(x+1)/(x+2)", r"\frac{x+1}{x+2}"),
    ("a binomial in one line",
     r"(?<![A-Za-z])C\s*\(\s*(\w+)\s*,\s*(\w+)\s*\)|(?:\{\s*\}\s*)?_\s*\{?(\w+)\}?\s*C\s*_\s*\{?(\w+)\}?",
     lambda m: rf"\binom{{{m[1] or m[3]}}}{{{m[2] or m[4]}}}", "C(5,2)", r"\binom{5}{2}"),
    ("roots in words", r"(?<![\\A-Za-z])sqrt\s*(?=[\d(\[{A-Za-z])", r"\\sqrt ", "sqrt(2)", r"\sqrt{2}"),
    ("cube roots in words", r"(?<![\\A-Za-z])cbrt\s*(?=[\d(])", r"\\sqrt[3] ", "cbrt(2)", r"\sqrt[3]{2}"),
    ("a root of parentheses", r"(\\sqrt(?:\s*\[[^\[\]]*\])?)\s*\(([^()]+)\)", r"\1{\2}", r"\sqrt(2)", r"\sqrt{2}"),
    ("a root's number", r"(\\sqrt(?:\s*\[[^\[\]]*\])?)\s*(\d+|[A-Za-z])", r"\1{\2}", r"\sqrt 2", r"\sqrt{2}"),
    # names
    ("functions", rf"(?<![\\A-Za-z])(?<!\d (?=min|sec))(?<!\d(?=min|sec))({'|'.join(FUNCTIONS)})(?=\s*[\d(^_\\]|\s+\w)",
     r"\\\1 ", "sin(x)", r"\sin (x)"),
    ("inverse functions", r"(?<![\\A-Za-z])a(sin|cos|tan)(?=\s*\()", r"\\arc\1 ", "asin(1)", r"\arcsin (1)"),
    ("constants", r"(?<![\\A-Za-z])(pi|theta|alpha|beta|phi|lambda)(?![A-Za-z])", r"\\\1 ", "2pi", r"2\pi"),
    ("infinity", r"(?<![\\A-Za-z])(?:inf|oo)(?![A-Za-z])|\+\s*\\infty", r"\\infty ", "(-inf, 2)", r"(-\infty , 2)"),
    ("a written union", r"(?<=[)\]}])\s*U\s*(?=[(\[\\])", r" \\cup ", "(1,2) U (3,4)", r"(1,2) \cup (3,4)"),
    ("the empty set", r"\\\{\s*\\\}", r"\\emptyset ", r"\{ \}", r"\emptyset"),
    ("open to the left", r"(?<![\w)}\]])\]\s*([^,;\[\]]+[,;][^,;\[\]]+?)\s*([\[\]])",
     lambda m: f"({m[1]}{')' if m[2] == '[' else ']'}", "]1,2]", "(1,2]"),
    ("open to the right", r"([\[(])([^,;\[\]]+[,;][^,;\[\]]+)\[", r"\1\2)", "[0,1[", "[0,1)"),
    # relations
    ("at most", r"<=|=<|&le;", r"\\le ", "x <= 2", r"x \le 2"),
    ("at least", r">=|=>|&ge;", r"\\ge ", "x >= 2", r"x \ge 2"),
    ("unequal", r"!=|<>|\\not\s*=", r"\\ne ", "x != 2", r"x \ne 2"),
    ("plus or minus", r"\+\s*/\s*-|\+-", r"\\pm ", "3 +/- 2", r"3 \pm 2"),
    ("about", r"~=|\\sim(?![A-Za-z])", r"\\approx ", r"\sim 3", r"\approx 3"),
    ("and more", rf"(?<![\d.])([-+]?\s*{NUMBER})\s*\\ormore", r"\\ge \1", r"7 \text{ or more}", r"\ge 7"),
    ("and less", rf"(?<![\d.])([-+]?\s*{NUMBER})\s*\\orless", r"\\le \1", "7 or less", r"\le 7"),
    ("a modulus", r"\(?\s*\\[bp]?mod\s*\{?\s*(\w+)\s*\}?\s*\)?", r" \\pmod{\1}", "3 (mod 11)", r"3 \pmod{11}"),
    ("a base", r"_?\s*\{?\s*(?:\\text\{\s*)?(?<![A-Za-z])\(?(?:in )?base\s*[- ]?\}?\s*\{?(\w+)\)?\}*\)?", r"_{\1}",
     r"101_{\text{base }2}", "101_{2}"),
    ("a number as an index", r"_\{\s*\(?\s*(\d+)\s*\)?\s*\}", r"_{\1}", "101_{(2)}", "101_{2}"),
    ("a ratio in words", r"(?<=\d)\s*(?:\\text\{to\}|to)\s*(?=\d)", ":", r"3 \text{ to } 4", "3:4"),
    ("a remark", r"\\text\{\([A-Za-z ,']{8,}\)\}$", "", r"7 \text{ (as it is prime)}", "7"),
    ("a letter for degrees", r"(?<=\d)\s*\^\s*\{?\s*(?:o|\\text\{o\})\s*\}?(?![A-Za-z])", r"\\degree ", "30^o", r"30\degree"),
    ("degrees", r"\^\s*\{\s*\\degree\s*\}|\^?\s*\\degree(?![A-Za-z])\s*", r"\\degree ", r"30^{\circ}", r"30\degree"),
    ("percent", r"\s*\\?%", r"\\% ", "5 %", r"5\%"),
    ("a hyphen before a unit", r"(?<=\d)-(?=[A-Za-z]{2})", " ", "7-inch", "7 inch"),
)  # fmt: skip
RULE = {name: (re.compile(pattern), replacement) for name, pattern, replacement, _, _ in RULES}


def from_unicode(text: str) -> str:
    """Return a text in ASCII as far as it can be: x² is x^{2}, ½ is \\frac{1}{2}, a line over a digit \\overline."""
    text = re.sub(f"[{''.join(RAISED)}]+", lambda m: f"^{{{''.join(RAISED[c] for c in m[0])}}}", text)
    text = re.sub(f"[{''.join(LOWERED)}]+", lambda m: f"_{{{''.join(LOWERED[c] for c in m[0])}}}", text)
    text = re.sub("(?:\\d[\u0305\u0304])+", lambda m: rf"\overline{{{re.sub('[^0-9]', '', m[0])}}}", text)
    text = re.sub("\\d\u0307", lambda m: rf"\dot{{{m[0][0]}}}", text)
    pieces = []
    for character in text:
        if character < "\x80" and character not in "\t\r\n`":
            pieces.append(character)
        elif character in CHARACTERS:
            pieces.append(CHARACTERS[character])
        elif unicodedata.decomposition(character).startswith("<fraction>"):
            above, _, below = unicodedata.normalize("NFKC", character).partition("⁄")
            pieces.append(rf"\frac{{{above}}}{{{below or 1}}}")
        else:
            known = unicodedata.normalize("NFKC", character)
            pieces.append("".join(CHARACTERS.get(c, c) for c in known))
    return "".join(pieces)


def rewrite(text: str) -> str:
    r"""Return an answer in one notation.

    >>> rewrite(r"$\displaystyle x \leqslant \dfrac12\text{ or }x\ge 3.$")
    'x \\le \\frac{1}{2} \\lor x\\ge 3'
    """
    text = from_unicode(text)
    text = re.sub(r"\\\$", "\0", text).replace("$", "").replace("\0", r"\$")
    text = re.sub(r"(?<!\\)\\[()\[\]]|\*\*(?=\S[^*]*\*\*)|(?<=\S)\*\*(?=\s|$|[.,])|__", "", text)
    text = re.sub(
        r"\\(?:textcolor|colorbox)\s*\{[^{}]*\}\s*(?=\{)|\\color\s*\{[^{}]*\}|\\(?:left|right)\s*\.", "", text
    )
    text = re.sub(r"\\(?:[hv]space|kern|hskip|label|tag|[hv]?phantom)\*?\s*\{[^{}]*\}|(?<!\\)\\(?=\s|$)", " ", text)
    text = UNIT_VECTOR.sub(r"\\unit\1 ", text)
    text = replace_commands(text, WRAPPERS, lambda content: f"{{{content}}}")
    text = replace_commands(text, TEXTS, plain)
    text = re.sub(r"(?<!\\)\\([A-Za-z]+)\s*", lambda m: COMMANDS.get(m[1], m[0]), text)
    text = LEAD.sub("", text.strip())
    text = PHRASE.sub(lambda m: PHRASES[m[0].lower()], text)
    for pattern, replacement in RULE.values():
        text = pattern.sub(replacement, text)
    text = re.sub(r"\s+", " ", text).strip()
    while text != (shorter := EDGES.sub("", text).strip()) or (
        text[:1] == "{" and end_of_group(text, 0) == len(text) - 1
    ):
        text = shorter if text != shorter else text[1:-1].strip()
    return text
