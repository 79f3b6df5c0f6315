r"""Units of answers: 7 km is 7000 m and not 7 m, and neither is 7 s.

A unit is a factor and exponents of base units. Numbers are compared after conversion if both answers name a unit; one that
names none is taken to mean the other's. Words that are no unit (7 apples) are units of their own.
"""

import dataclasses
import math
import re
from fractions import Fraction

PREFIXES = {"k": 3, "M": 6, "G": 9, "T": 12, "m": -3, "u": -6, "n": -9, "p": -12, "f": -15, "c": -2, "d": -1, "h": 2}
PREFIX_WORDS = {
    "kilo": 3,
    "mega": 6,
    "giga": 9,
    "tera": 12,
    "milli": -3,
    "micro": -6,
    "nano": -9,
    "pico": -12,
    "centi": -2,
}
PREFIX_WORDS |= {"deci": -1, "hecto": 2, "femto": -15}
# base units -> factor, exponents, names; names of the first row take SI prefixes
SI = {
    "m": (1, "m", "meter metre"),
    "g": (1, "g", "gram gramme"),
    "s": (1, "s", "second sec"),
    "A": (1, "A", "ampere amp"),
    "K": (1, "K", "kelvin"),
    "mol": (1, "mol", "mole"),
    "N": (1000, "g m s^-2", "newton"),
    "J": (1000, "g m^2 s^-2", "joule"),
    "W": (1000, "g m^2 s^-3", "watt"),
    "Pa": (1000, "g m^-1 s^-2", "pascal"),
    "Hz": (1, "s^-1", "hertz"),
    "C": (1, "A s", "coulomb"),
    "V": (1000, "g m^2 s^-3 A^-1", "volt"),
    "ohm": (1000, "g m^2 s^-3 A^-2", "Omega"),
    "F": (Fraction(1, 1000), "g^-1 m^-2 s^4 A^2", "farad"),
    "H": (1000, "g m^2 s^-2 A^-2", "henry"),
    "T": (1000, "g s^-2 A^-1", "tesla"),
    "L": (Fraction(1, 1000), "m^3", "l liter litre"),
    "eV": (Fraction("1.602176634e-16"), "g m^2 s^-2", "electronvolt"),
    "cal": (4184, "g m^2 s^-2", "calorie"),
    "bar": (10**8, "g m^-1 s^-2", ""),
    "pc": (Fraction("3.0856775814913673e16"), "m", "parsec"),
    "erg": (Fraction(1, 10**4), "g m^2 s^-2", ""),
    "dyn": (Fraction(1, 100), "g m s^-2", "dyne"),
    "M": (1000, "mol m^-3", "molar"),
    "B": (8, "bit", "byte"),
    "bit": (1, "bit", ""),
    "Jy": (1, "Jy", "jansky"),
    "Ah": (3600, "A s", ""),
    "Wh": (3600 * 1000, "g m^2 s^-2", ""),
}
OTHERS = {
    "min": (60, "s", "minute mins"),
    "hour": (3600, "s", "h hr"),
    "day": (86400, "s", "d"),
    "week": (7 * 86400, "s", "wk"),
    "month": (1, "month", "mo"),
    "year": (12, "month", "yr"),
    "inch": (Fraction("0.0254"), "m", "inches in"),
    "foot": (Fraction("0.3048"), "m", "feet ft"),
    "yard": (Fraction("0.9144"), "m", "yd"),
    "mile": (Fraction("1609.344"), "m", "mi"),
    "acre": (Fraction("4046.8564224"), "m^2", ""),
    "hectare": (10**4, "m^2", "ha"),
    "cc": (Fraction(1, 10**6), "m^3", "ccm"),
    "gallon": (Fraction("0.003785411784"), "m^3", "gal"),
    "quart": (Fraction("0.000946352946"), "m^3", "qt"),
    "pint": (Fraction("0.000473176473"), "m^3", "pt"),
    "cup": (Fraction("0.0002365882365"), "m^3", ""),
    "ounce": (Fraction("28.349523125"), "g", "oz"),
    "lb": (Fraction("453.59237"), "g", "pound lbs"),
    "ton": (10**6, "g", "tonne t"),
    "mph": (Fraction("1609.344") / 3600, "m s^-1", ""),
    "kph": (Fraction(1000, 3600), "m s^-1", "kmh kmph"),
    "knot": (Fraction(1852, 3600), "m s^-1", ""),
    "angstrom": (Fraction(1, 10**10), "m", "A "),
    "AU": (149597870700, "m", "au"),
    "ly": (9460730472580800, "m", "lightyear"),
    "atm": (101325 * 1000, "g m^-1 s^-2", "atmosphere"),
    "amu": (Fraction("1.66053906660e-24"), "g", "u dalton"),
    "degree": (1, "angle", "deg arcdegree"),
    "arcmin": (Fraction(1, 60), "angle", "arcminute"),
    "arcsec": (Fraction(1, 3600), "angle", "arcsecond"),
    "radian": (Fraction(180) / Fraction(math.pi), "angle", "rad"),
    "rpm": (6, "angle s^-1", ""),
    "Celsius": (1, "Celsius", "degC"),
    "Fahrenheit": (1, "Fahrenheit", "degF"),
    "dollar": (1, "dollar", "USD usd bucks buck"),
    "cent": (Fraction(1, 100), "dollar", "penny pennies"),
    "euro": (1, "euro", "EUR"),
    "sterling": (1, "sterling", "GBP"),
    "yen": (1, "yen", "JPY"),
    "rupee": (1, "rupee", "Rs INR"),
    "dozen": (12, "", ""),
    "unit": (1, "", ""),
}
CURRENCIES = {
    "\\$": "dollar",
    "US\\$": "dollar",
    "USD": "dollar",
    "€": "euro",
    "£": "sterling",
    "¥": "yen",
    "₹": "rupee",
}
CURRENCY = re.compile(rf"(-?)\s*({'|'.join(map(re.escape, sorted(CURRENCIES, key=len, reverse=True)))})\s*")
IRREGULAR = {"feet": "foot", "inches": "inch", "people": "person", "men": "man", "women": "woman", "children": "child"}
ATOM = re.compile(r"([A-Za-z]+)\s*(?:\^\s*\{?\s*([-+]?\d+)\s*\}?|(?<=[a-z])([23])(?!\d))?|(/)|(\*|·|\s)")


@dataclasses.dataclass(frozen=True)
class Unit:
    """A unit: what it is in base units, or, for a word that is no unit, the word with exponent 1."""

    factor: Fraction
    exponents: tuple[tuple[str, int], ...]
    is_known: bool = True

    def agrees(self, other: "Unit") -> bool:
        """Return whether both measure the same kind of thing."""
        temperatures = (("Celsius", 1),), (("Fahrenheit", 1),)
        angle = (("angle", 1),)
        if {self.exponents, other.exponents} in ({angle, temperatures[0]}, {angle, temperatures[1]}):
            return True  # 20° for 20 °C
        return self.exponents == other.exponents


def _exponents(text: str) -> dict[str, int]:
    return {name: int(power or 1) for name, power in re.findall(r"([A-Za-z]+)(?:\^(-?\d+))?", text)}


def _table() -> dict[str, tuple[Fraction, dict[str, int]]]:
    table = {}
    for symbol, (factor, exponents, names) in SI.items():
        base = _exponents(exponents)
        for prefix, power in {"": 0, **PREFIXES}.items():
            table.setdefault(prefix + symbol, (factor * Fraction(10) ** power, base))
        for name in names.split():
            for prefix, power in {"": 0, **PREFIX_WORDS}.items():
                table.setdefault(prefix + name, (factor * Fraction(10) ** power, base))
        if "l" in names.split():
            for prefix in "mcd":
                table.setdefault(prefix + "l", (factor * Fraction(10) ** PREFIXES[prefix], base))
    for symbol, (factor, exponents, names) in OTHERS.items():
        for name in (symbol, *names.split()):
            table[name] = (Fraction(factor), _exponents(exponents))  # before prefixes: min is no milli-inch
    return table


TABLE = _table()


def _lookup(name: str) -> tuple[Fraction, dict[str, int]] | None:
    """Return a unit by its symbol or name, in the plural and capitalised, too."""
    for spelling in (name, name.lower() if len(name) > 3 else name, name.lower() if len(name) > 1 else name):
        for singular in (spelling, re.sub("es$", "", spelling), re.sub("s$", "", spelling)):
            if singular in TABLE and (singular == spelling or len(singular) > 1):
                return TABLE[singular]
    return None


def flatten(text: str) -> str:
    r"""Return a unit written in LaTeX as plain text: \text{m}/\text{s}^{2} is m/s^2."""
    text = re.sub(r"\\frac\s*\{((?:[^{}]|\{[^{}]*\})*)\}\s*\{((?:[^{}]|\{[^{}]*\})*)\}", r"\1/(\2)", text)
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(
        r"\\degree\s*(?:([CF])(?![A-Za-z])|Celsius|Fahrenheit)?", lambda m: f" deg{m[1] or m[0][7:].strip()[:1]} ", text
    )
    text = text.replace(r"\cdot", "*").replace(r"\mu", " u").replace(r"\Omega", " ohm ")
    text = re.sub(r"\bu\s+(?=[A-Za-z])", "u", text)  # \mu m
    text = re.sub(r"\\(?:AA|angstrom)", " angstrom ", text)
    text = re.sub(r"(?<![A-Za-z])per(?![A-Za-z])", "/", text)
    text = re.sub(r"(?<![A-Za-z])(?:square|sq\.?)\s+([A-Za-z]+)", r"\1^2", text)
    text = re.sub(r"(?<![A-Za-z])(?:cubic|cu\.?)\s+([A-Za-z]+)", r"\1^3", text)
    text = re.sub(r"([A-Za-z]+)\s+squared", r"\1^2", text)
    text = re.sub(r"([A-Za-z]+)\s+cubed", r"\1^3", text)
    return " ".join(re.sub(r"[.(){}]|degrees?\s+(?=[CF])", lambda m: "" if len(m[0]) == 1 else "deg", text).split())


def parse(text: str) -> Unit | None:
    """Return the unit that a text names; a noun of up to three words is a unit of its own. None if it can be neither."""
    text = flatten(text)
    if not text:
        return None
    factor, exponents, index, sign = Fraction(1), {}, 0, 1
    while index < len(text):
        atom = ATOM.match(text, index)
        found = atom and atom[1] and _lookup(atom[1])
        if atom is None or (atom[1] and not found):
            return _noun(text)
        if atom[4]:
            sign = -1
        elif found:
            power = sign * int(atom[2] or atom[3] or 1)
            if abs(power) > 12:
                return None
            factor *= found[0] ** power
            for name, exponent in found[1].items():
                exponents[name] = exponents.get(name, 0) + exponent * power
        index = atom.end()
    return Unit(factor, tuple(sorted((name, power) for name, power in exponents.items() if power)))


def _noun(text: str) -> Unit | None:
    words = text.split()
    if len(words) > 3 or not all(re.fullmatch(r"[A-Za-z][a-z'/-]+", word) for word in words):
        return None
    *_, last = words
    words[-1] = IRREGULAR.get(last.lower(), re.sub("s$", "", last.lower()))
    return Unit(Fraction(1), ((" ".join(words).lower(), 1),), is_known=False)
