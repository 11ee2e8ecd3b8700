"""Limits on what is computed: the size of a number is estimated before sympy computes it."""

from __future__ import annotations

import math
import re
from typing import Any

MAX_CHARS = 1000
MAX_DEPTH = 12
MAX_DIGITS = 300
MAX_BITS = 200_000
MAX_NODES = 2000
MAX_EXPANDED_POWER = 64  # of a sum, which sympy may multiply out
MAX_MONOMIALS = 2000  # of a value that is multiplied out

LONG_NUMBER = re.compile(rf"[0-9]{{{MAX_DIGITS},}}")
# latex2sympy computes these at once, so their numbers may have at most four digits.
EAGER_COMMANDS = re.compile(r"\\(?:[dt]?binom|choose|gcd|lcm)|gcd|lcm")
FIVE_DIGITS = re.compile(r"[0-9]{5}")


def readable(latex: str) -> bool:
    """Whether latex2sympy may read the text: it is not too long or too deep, and has no large number to compute."""
    if len(latex) > MAX_CHARS or LONG_NUMBER.search(latex) or _depth(latex) > MAX_DEPTH:
        return False
    return not (EAGER_COMMANDS.search(latex) and (FIVE_DIGITS.search(latex) or "^" in latex or "!" in latex))


def small_enough(value: Any) -> bool:
    """Whether an expression can be computed quickly.

    That is so if each number in it has at most 200,000 bits, no sum is raised to more than the 64th power, and it has
    at most 2,000 monomials when it is multiplied out. Sums over an index, products, integrals, limits and derivatives
    are refused: they are exercises and not answers.
    """
    from sympy import Derivative, Integral, Limit, Product, Sum

    nodes = [value]
    for node in nodes:
        nodes.extend(_parts(node))
        if len(nodes) > MAX_NODES or isinstance(node, (Derivative, Integral, Limit, Product, Sum)):
            return False
    return _log2(value) <= MAX_BITS and _num_monomials(value) <= MAX_MONOMIALS


def _num_monomials(value: Any) -> float:
    """An upper bound on the number of terms when the value is multiplied out."""
    kind = type(value).__name__
    if kind == "Pow" and getattr(value.exp, "is_Integer", False) and value.exp > 1:
        terms, power = _num_monomials(value.base), min(int(value.exp), MAX_BITS)
        return float(math.comb(power + int(terms) - 1, power)) if terms <= MAX_MONOMIALS and power <= 64 else terms
    counts = [_num_monomials(part) for part in _parts(value)]
    if kind == "Mul":
        return math.prod(counts)
    return sum(counts) if kind == "Add" else max(counts, default=1.0)


def _parts(value: Any) -> Any:
    """The arguments of an expression, or the entries of a matrix, which are not always among its arguments."""
    return value.flat() if hasattr(value, "flat") else getattr(value, "args", ())


def _depth(text: str) -> int:
    """The largest number of brackets, of all kinds, that are open at the same time."""
    depth = deepest = 0
    for character in text:
        if character in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "})]":
            depth -= 1
    return deepest


def _log2(value: Any) -> float:
    """An upper bound on the bits of the value and of its parts; infinite for what is too large to compute."""
    if getattr(value, "is_Rational", False):
        return float(max(int(value.p).bit_length(), int(value.q).bit_length(), 1))
    sizes = [_log2(argument) for argument in _parts(value)]
    largest = max(sizes, default=1.0)
    if largest > MAX_BITS:
        return math.inf
    kind = type(value).__name__
    if kind == "Pow":
        return _log2_of_power(value, sizes)
    if kind in ("factorial", "factorial2", "subfactorial", "gamma") and value.is_number:
        return 2**largest * largest if largest < 32 else math.inf
    if kind in ("Add", "Mul"):
        return sum(sizes)
    return largest


def _log2_of_power(value: Any, sizes: list[float]) -> float:
    from sympy import Add

    base, exponent = value.args
    if exponent.free_symbols or base == 1:
        return max(sizes)
    if sizes[1] > 64:
        return math.inf
    size = abs(float(exponent.evalf(15)))
    if size > MAX_EXPANDED_POWER and base.has(Add):
        return math.inf
    return max(sizes[0], 1.0) * max(1.0, size)
