r"""Read an answer that is in one notation (notation.py): take it apart, and leave single formulas to math-verify's parser."""

import dataclasses
import re
from fractions import Fraction
from typing import Any

import sympy

import regions
import units
from formulas import is_constant, is_rounded, same_constant, sympify
from readings import (
    Choice,
    Equation,
    Group,
    Inequality,
    Literal,
    Numeral,
    Region,
    Residue,
    Value,
    Words,
    first,
    formula_of,
    matrix_of,
    matrix_readings,
    spread,
)
from syntax import NUMBER, exact, has_letters, inside, is_name, parse_formula, plain_words, split, without_text

MAX_ITEMS = 100  # items of a list; ten times as many of a matrix
MAX_UNIT_CHARS = 80
SEPARATOR = re.compile(r"[,;]|\\l(?:or|and)(?![A-Za-z])")
RELATION = re.compile(r"\\(?:le|ge|ne)(?![A-Za-z])|[<>]")
EQUALITY = re.compile(r"=|\\approx(?![A-Za-z])")
OPERATION = re.compile(r"\\(?:cup|cap|setminus)(?![A-Za-z])")
MEMBER = re.compile(r"\\(?:not)?in(?![A-Za-z])")
CONDITION = re.compile(r"\||:")
FUNCTION = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])|\\(?:log|ln|exp)(?![A-Za-z])")
# places where a unit may begin
TAIL = re.compile(
    r"(?<=[\d})\s.])(?=\s*(?:[A-Za-z]|\\(?:text|degree|mu|Omega|AA)(?![A-Za-z])|\\frac\s*\{\\text))|(?=\\degree)"
)
MATRIX = re.compile(r"\\begin\s*\{([bpB]?(?:small)?matrix|array)\}\s*(?:\{[^{}]*\})?(.*)\\end\s*\{\1\}", re.DOTALL)
NUMERAL = re.compile(r"\(?\s*(?:\\text\{)?(\d[0-9A-Fa-f]*|[A-F]+\d*)\}?\s*\)?\s*_\s*\{?\s*(\d+)\s*\}?")
RESIDUE = re.compile(r"(?:.+?\\equiv\s*)?(.+?)\s*\\pmod\s*\{(\d+)\}")
NONE = re.compile(
    r"(?:there (?:is|are) )?no(?: such .*|(?: real| integer| valid| possible)* (?:solution|root|value|number|integer)s?)"
    r"(?: exists?)?|none|null set|empty set"
)
SETS_IN_WORDS = {
    r"\mathbb{R}": "all real numbers|real numbers|all reals|all real x|all x|any real number|reals",
    r"\mathbb{R}^+": "all positive real numbers|positive real numbers|positive reals",
    r"\mathbb{Z}": "all integers|integers",
    r"\mathbb{N}": "all positive integers|positive integers|natural numbers",
}
WORD_SETS = {phrase: regions.SETS[name] for name, phrases in SETS_IN_WORDS.items() for phrase in phrases.split("|")}


class Reader:
    """Read gold answers, or responses; lowercase: whether X is x."""

    def __init__(self, lowercase: bool = True, is_gold: bool = False):
        self.lowercase, self.is_gold = lowercase, is_gold

    def read(self, text: str) -> tuple[Any, ...]:
        """Return the readings of an answer, the likeliest first; () for an empty one."""
        text = text.strip()
        if not text:
            return ()
        literal = re.sub(r"\s|\\cdot(?![A-Za-z])|(?<=[A-Za-z])\.", "", without_text(text))
        try:
            readings = self._read(text)
        except MemoryError:
            raise
        except Exception:  # a text that is too deep, or that sympy cannot hold
            readings = ()
        return (*readings, Literal(literal.lower() if self.lowercase else literal))

    def _read(self, text: str) -> tuple[Any, ...]:
        if choice := self.choice(text):
            return choice
        parts = split(text, SEPARATOR)
        if len(parts) == 1:
            return self.one(text)
        if len(parts) > 2 * MAX_ITEMS:
            return ()
        joined = re.sub(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,.])", lambda m: m[0].replace(",", ""), text)
        numbers = self._read(joined) if joined != text else ()  # 1,234 is one number or two
        return (*numbers, *self.several(text, parts))

    def choice(self, text: str) -> tuple[Any, ...]:
        """Return the letter of a multiple choice and its value, () if it is none.

        A value that passes for a letter, as in "(A) B", would be a second guess at the choice, so it does not count.
        """
        plain = re.sub(r"^(?:choice|option)\s+", "", without_text(text).strip(), flags=re.IGNORECASE)
        if match := re.fullmatch(r"\(?\s*([A-J])\s*[).:]*", plain):
            return Choice(match[1]), *self.one(match[1])
        match = re.fullmatch(r"(?:\(\s*([A-J])\s*\)|([A-J])\s*[).:])\s*[:.=]?\s*(.+)", plain, re.DOTALL)
        if not match or SEPARATOR.match(match[3]):
            return ()
        letter = re.sub(r"\\[A-Za-z]+|x\s*=|[^A-Za-z0-9]", "", match[3])
        is_guess = re.fullmatch("[A-Ja-hj]", letter)
        return Choice(match[1] or match[2]), *(() if is_guess else self._read(match[3]))

    def several(self, text: str, parts: list[str]) -> tuple[Any, ...]:
        """Return the readings of parts between commas, "and" or "or"."""
        items, separators = [part for part in parts[::2] if part], {part.replace(";", ",") for part in parts[1::2]}
        if len(items) < 2:
            return self.one(items[0]) if items else ()
        if separators == {r"\land"} and (quantity := compound(text.replace(r"\land", " "))):
            return (quantity,)
        if r"\ne" in items[0] and not any(map(RELATION.search, items[1:])):  # x \ne 0, 1
            items[1:] = [items[0].partition(r"\ne")[0] + rf"\ne {item}" for item in items[1:]]
        readings = [self.one(item) for item in items]
        if all(map(RELATION.search, items)):
            found = [first(item, Region) for item in readings]
            if all(found) and (region := regions.combine(found, separators)):
                return (region,)
        found: list[Any] = []
        names = re.match(r"\(?\s*[A-Za-z]\s*(?:,\s*[A-Za-z]\s*)+\)?\s*(?:=|\\in(?![A-Za-z]))\s*(?=[(\\])", text)
        if names:  # x, y = (1, 2)
            found += self._read(text[names.end() :])
        if re.fullmatch(r"-?\d{1,3}(?:, ?\d{3})*, ?0\d\d(?:, ?\d{3})*", text):  # no list has 080 in it
            found.append(Value(Fraction(re.sub(", ?", "", text))))
        unit = next((r.unit for r in readings[-1] if isinstance(r, Value) and r.unit and not r.weak), None)
        if unit:  # 3 and 4 cm
            readings = [
                tuple(dataclasses.replace(r, unit=r.unit or unit) if isinstance(r, Value) else r for r in item)
                for item in readings
            ]
        found.append(Group("list", tuple(reading for item in readings for reading in spread(item))))
        if not self.is_gold and (match := re.fullmatch(r"(-?\d+),(\d+)", text)):  # 3,5 for 3.5
            found.append(Value(Fraction(f"{match[1]}.{match[2]}"), len(match[2]), weak=True))
        return tuple(found)

    def one(self, text: str) -> tuple[Any, ...]:
        """Return the readings of what has no separator at its top level."""
        text = text.strip()
        if not text:
            return ()
        if number := exact(text):
            return (number,)
        words = plain_words(text)
        if NONE.fullmatch(words):
            return (Region(sympy.S.EmptySet),)
        if words in WORD_SETS:
            return (Region(WORD_SETS[words]),)
        if text.replace(" ", "") in regions.SETS:
            return (Region(regions.SETS[text.replace(" ", "")]),)
        for reader in (
            self.vector,
            self.equality,
            self.membership,
            self.operation,
            self.bracketed,
            self.relation,
            self.special,
        ):
            if found := reader(text):
                return found
        if re.fullmatch(r"\\text\{[A-Za-z]\}", text):  # a variable in text
            text = text[6:-1]
        values = self.quantity(text)
        return (Words(words), *values) if len(words) > 2 else values

    def equality(self, text: str) -> tuple[Any, ...]:
        """Return the readings of a chain of = and \\approx.

        Its last side is an answer alone, but for equations with 0, and for chains whose numbers differ (6 = 7).
        """
        parts = split(text, EQUALITY)
        sides = [side for side in parts[::2] if side]
        if len(parts) == 1 or any(map(RELATION.search, sides)):
            return ()
        if len(sides) == 1:
            return self.one(sides[0])
        if len(sides) == 2 and is_name(sides[1]) and not is_name(sides[0]):
            sides.reverse()  # 3 = x
        readings = [self.one(side) for side in sides]
        formulas = tuple(map(formula_of, readings))
        numbers = [formula for formula in formulas if is_constant(formula)]
        answer = readings[-1]
        if r"\approx" in parts:  # the exact value counts, and the rounded one if it is that
            if len(sides) > 2 or is_constant(formulas[0]):
                answer = readings[-2] + (answer if rounds(formulas[-2], answer) else ())
        elif len(numbers) > 1 and not all(same_constant(numbers[0], number) for number in numbers[1:]):
            answer = ()
        elif formulas[-1] == 0 and not is_name(sides[0]):
            answer = ()
        if is_constant(formulas[0]) and r"\approx" not in parts:
            return answer or (Equation("", formulas, ()),)
        return (Equation(re.sub(r"\s", "", sides[0]), formulas, answer),)

    def vector(self, text: str) -> tuple[Any, ...]:
        """Return the readings of a sum of unit vectors, which notation.py calls \\uniti, \\unitj and \\unitk."""
        axes = ("i", "j", "k") if r"\unitk" in text else ("i", "j")
        if r"\unit" not in text or "=" in text:
            return ()
        named = re.sub(r"\\unit([ijk])", lambda m: f" u_{{{'ijk'.index(m[1])}}} ", text)
        value, units_ = parse_formula(named, self.lowercase), [sympy.Symbol(f"u_{k}") for k in range(len(axes))]
        if not isinstance(value, sympy.Expr):
            return ()
        parts = [sympy.expand(value).coeff(unit) for unit in units_]
        return (Group("tuple", tuple((Value(part),) for part in parts)),)

    def membership(self, text: str) -> tuple[Any, ...]:
        r"""Return the readings of x \in S and x \notin S."""
        parts = split(text, MEMBER)
        if len(parts) != 3 or not is_name(parts[0]):
            return ()
        variable, readings = parts[0].replace(" ", ""), self.one(parts[2])
        if parts[1] == r"\notin":
            found = [region for r in readings if (region := regions.region_of(r))]
            return tuple(Region(sympy.Complement(sympy.S.Reals, region.numbers), variable) for region in found)
        return tuple(dataclasses.replace(r, variable=variable) if isinstance(r, Region) else r for r in readings)

    def operation(self, text: str) -> tuple[Any, ...]:
        """Return the readings of a union, an intersection or a difference of sets."""
        parts = split(text, OPERATION)
        found = (
            [next(filter(None, map(regions.region_of, self.one(part))), None) for part in parts[::2]]
            if len(parts) > 1
            else []
        )
        if not found or not all(found):
            return ()
        return (Region(regions.operate([region.numbers for region in found if region], parts[1::2])),)

    def bracketed(self, text: str) -> tuple[Any, ...]:
        """Return the readings of a set, tuple, interval, vector or matrix that is all there is."""
        if match := MATRIX.fullmatch(text.strip("[]() ")):
            return self.matrix(match[2])
        left, content, right = inside(text) or ("", "", "")
        if left == r"\{":
            return self.set_of(content)
        items = split(content, re.compile("[,;]"))[::2]
        if len(items) == 1 and (left, right) == ("(", ")"):
            return self._read(content)
        if len(items) < 2 or not all(items) or len(items) > MAX_ITEMS:
            return ()
        readings = tuple(map(self.one, items))
        if left in ("(", r"\langle", "<") and sum(r"\pm" in item for item in items) == 1:  # (0, \pm 2)
            both = [spread(item) for item in readings]
            return (
                Group(
                    "list",
                    tuple((Group("tuple", tuple(item[min(k, len(item) - 1)] for item in both)),) for k in (0, 1)),
                ),
            )
        found: list[Any] = []
        if (left, right) in (("(", ")"), (r"\langle", r"\rangle"), ("<", ">")) or (
            left + right == "[]" and len(items) > 2
        ):
            found.append(Group("tuple", readings))
        low, high = formula_of(readings[0]), formula_of(readings[-1])
        if len(items) == 2 and left in "([" and right in ")]" and low is not None and high is not None:
            region = regions.interval(left, low, high, right)
            found += [region] if region else []
        return tuple(found)

    def set_of(self, content: str) -> tuple[Any, ...]:
        r"""Return the readings of \{content\}: items, or a variable and a condition on it."""
        builder = split(content, CONDITION)
        if len(builder) == 3 and re.fullmatch(r"[A-Za-z](?:\s*\\in\s*\\mathbb\s*\{R\})?", builder[0]):
            return tuple(r for r in self._read(builder[2]) if isinstance(r, (Region, Group)))
        items = [part for part in split(content, SEPARATOR)[::2] if part]
        return (Group("set", tuple(reading for item in items[:MAX_ITEMS] for reading in spread(self.one(item)))),)

    def matrix(self, body: str) -> tuple[Any, ...]:
        """Return the readings of a matrix from what is between its begin and end."""
        rows = [
            row for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr(?![A-Za-z])", body.replace(r"\hline", "")) if row.strip()
        ]
        cells = [row.split("&") for row in rows]
        if sum(map(len, cells)) > 10 * MAX_ITEMS:
            return ()
        return matrix_readings(tuple(tuple(map(self.one, row)) for row in cells))

    def relation(self, text: str) -> tuple[Any, ...]:
        r"""Return the readings of an inequality, or a chain of them. \ge 7 alone is one of any variable."""
        parts = split(text, RELATION)
        symbols = [symbol.strip() for symbol in parts[1::2]]
        if not symbols:
            return ()
        is_bare = len(symbols) == 1 and not parts[0]
        sides = [formula_of(self.one(side or "x")) if side or is_bare else None for side in parts[::2]]
        if any(side is None for side in sides):
            return ()
        sides = [sympify(side) for side in sides]
        if region := regions.where(sides, symbols):
            return (dataclasses.replace(region, variable="" if is_bare else region.variable),)
        return (Inequality(sides[0], symbols[0], sides[1]),) if len(sides) == 2 else ()

    def special(self, text: str) -> tuple[Any, ...]:
        r"""Return the readings of a numeral in a base, a residue and \pm."""
        digits = NUMERAL.fullmatch(text)
        if digits and 2 <= int(digits[2][:3]) <= 36:
            return (Numeral(digits[1].lstrip("0").upper() or "0", int(digits[2])),)
        if match := RESIDUE.fullmatch(text):
            number, modulus = exact(match[1]), int(match[2][:MAX_ITEMS])
            if not number or not modulus:
                return ()
            return Residue(number.value % modulus, modulus), dataclasses.replace(number, weak=True)
        if len(re.findall(r"\\(?:pm|mp)(?![A-Za-z])", text)) == 1:
            both = [self.one(re.sub(r"\\(?:pm|mp)(?![A-Za-z])", sign, text)) for sign in "+-"]
            return (Group("list", tuple(both)),) if all(both) else ()
        return ()

    def quantity(self, text: str) -> tuple[Any, ...]:
        """Return the readings of a number or formula, which may have a unit, a currency or a percent sign."""
        if match := units.CURRENCY.match(text):
            readings, unit = self.quantity(match[1] + text[match.end() :]), units.parse(units.CURRENCIES[match[2]])
            number = exact(match[1] + text[match.end() :])
            readings = (number,) if number else readings
            return tuple(dataclasses.replace(r, unit=unit) for r in readings if isinstance(r, Value))
        if text.endswith(r"\%"):
            return tuple(dataclasses.replace(r, percent=True) for r in self.one(text[:-2]) if isinstance(r, Value))
        if mixed := compound(text):
            return (mixed,)
        for match in TAIL.finditer(text, max(0, len(text) - MAX_UNIT_CHARS)):
            head, tail = text[: match.start()], text[match.start() :].strip()
            if measured := self.measured(head, tail):
                if not measured[0].weak:
                    return measured
                break
        else:
            measured = ()
        value = parse_formula(text, self.lowercase)
        if isinstance(value, (sympy.MatrixBase, sympy.MatrixExpr)):
            return matrix_of(value)
        return measured if value is None else (Value(value), *measured)

    def measured(self, head: str, tail: str) -> tuple[Any, ...]:
        r"""Return the readings of a number and its unit, () if they are none.

        In \text or as a sign a unit may follow any formula. A bare one follows a number: known units of several letters, words,
        and after a space single letters, which may be variables, too.
        """
        number, is_typeset = exact(head), tail.startswith("\\")
        if head.strip()[-1:] in ("", "+", "-", "^", "_", "/") or (
            tail.startswith(r"\degree") and FUNCTION.search(head)
        ):
            return ()
        unit = units.parse(tail)
        if unit is None:
            return ()
        num_letters = len(re.sub("[^A-Za-z]", "", tail))
        is_weak = not is_typeset and num_letters == 1
        if not is_typeset and (has_letters(head) or (not unit.is_known and (num_letters < 3 or head[-1:] != " "))):
            return ()
        if is_weak and (not number or head[-1:] != " " or "frac" in head or "/" in head):
            return ()
        formula = None if number else parse_formula(head.strip(), self.lowercase)
        values = (number,) if number else (Value(formula),) if formula is not None else ()
        if not unit.exponents:  # dozen, square units
            return tuple(dataclasses.replace(r, value=r.value * unit.factor) for r in values)
        return tuple(dataclasses.replace(r, unit=unit, weak=is_weak) for r in values)


def compound(text: str) -> Value | None:
    """Return 5 ft 3 in or 2 hours 30 minutes as one quantity."""
    bare = re.sub(r"\\degree", " degree ", without_text(text))
    bare = re.sub(r"(?<=degree)\s*(\d+)\s*'(?!')", r" \1 arcmin ", bare)
    if not re.fullmatch(rf"\s*(?:{NUMBER}\s*[A-Za-z]+\.?\s*){{2,4}}", bare):
        return None
    parts = [(Fraction(number), units.parse(name)) for number, name in re.findall(rf"({NUMBER})\s*([A-Za-z]+)", bare)]
    whole = parts[0][1]
    if whole is None or not all(unit and unit.is_known and unit.exponents == whole.exponents for _, unit in parts):
        return None
    return Value(sum(number * unit.factor for number, unit in parts if unit) / whole.factor, unit=whole)


def rounds(value: Any, last: tuple[Any, ...]) -> bool:
    """Return whether a decimal number is a constant rounded to its places."""
    shown = first(last, Value)
    return shown is not None and isinstance(shown.value, Fraction) and is_rounded(shown.value, shown.places or 0, value)
