"""Text -> sympy expression, by a grammar of numbers, letters, ``+ - * / ^ !``, brackets, ``sqrt``, ``ln`` and ``pi``.

sympy's own ``parse_expr`` calls ``eval``, so no text of a response may reach it. The size of a value is checked before
it is computed: an absurd answer costs microseconds, not a process.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # sympy takes half a second to import, and most verifiers never need it
    from sympy import Expr

MAX_CHARS = 500
MAX_DIGITS = 100
MAX_DEPTH = 30
MAX_BITS = 4096
MAX_FACTORIAL = 200
MAX_DEGREE = 60

NUMBER = r"[0-9]+\.?[0-9]*(?:e[+-]?[0-9]{1,3}(?![0-9.]))?|\.[0-9]+"
TOKEN = re.compile(rf"\s*(?:(?P<number>{NUMBER})|(?P<name>sqrt|pi|ln|[^\W\d_])|(?P<operator>\*\*|[-+*/^()!]))\s*")


class NotArithmetic(ValueError):
    """The text does not follow the grammar, or its value is too large to be computed."""


def parse_arithmetic(text: str) -> Expr:
    """The value of the text. Letters are symbols, and a product needs no sign (``2pi``, ``(x+1)(x-1)``).

    A letter before a bracket is an unknown function (``f(x)``), as in sympy's parser. Numbers with a point or an
    exponent are decimal floats with as many digits as the text has. Raises NotArithmetic.
    """
    if len(text) > MAX_CHARS:
        raise NotArithmetic(f"more than {MAX_CHARS} characters")
    return _Parser(_tokens(text)).whole()


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens = []
    at = 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise NotArithmetic(f"{text[at]!r} at {at}")
        kind = str(match.lastgroup)
        tokens.append((kind, "^" if match[kind] == "**" else match[kind]))
        at = match.end()
    return tokens


class _Parser:
    """Recursive descent: sum < product < signed < power < factorial < atom."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self._degree = 1  # product of the exponents of all powers whose base is not a plain number

    def whole(self) -> Expr:
        value = self._sum()
        if self._at < len(self._tokens):
            raise NotArithmetic(f"{self._tokens[self._at][1]!r} too many")
        return value

    def _take(self, *operators: str) -> str | None:
        if self._at < len(self._tokens) and self._tokens[self._at] in [("operator", o) for o in operators]:
            self._at += 1
            return self._tokens[self._at - 1][1]
        return None

    def _sum(self) -> Expr:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NotArithmetic(f"more than {MAX_DEPTH} levels of brackets")
        value = self._product()
        while sign := self._take("+", "-"):
            right = self._product()
            value = _bounded(value + right if sign == "+" else value - right)
        self._depth -= 1
        return value

    def _product(self) -> Expr:
        value = self._signed()
        while True:
            if self._take("*"):
                value = _bounded(value * self._signed())
            elif self._take("/"):
                value = _bounded(value / _nonzero(self._signed()))
            elif self._starts_factor():
                value = _bounded(value * self._power())
            else:
                return value

    def _starts_factor(self) -> bool:
        return self._at < len(self._tokens) and (
            self._tokens[self._at][0] != "operator" or self._tokens[self._at][1] == "("
        )

    def _signed(self) -> Expr:
        negative = False
        while sign := self._take("+", "-"):
            negative ^= sign == "-"
        return -self._power() if negative else self._power()

    def _power(self) -> Expr:
        base = self._factorial()
        if not self._take("^"):
            return base
        self._depth += 1  # a^b^c nests to the right
        if self._depth > MAX_DEPTH:
            raise NotArithmetic(f"more than {MAX_DEPTH} powers")
        exponent = self._signed()
        self._depth -= 1
        self._check_power(base, exponent)
        return _bounded(base**exponent)

    def _check_power(self, base: Expr, exponent: Expr) -> None:
        """Raises NotArithmetic for a number of more than 4,096 bits and for a polynomial of a degree above 60."""
        if not exponent.is_Rational:
            return
        size = abs(float(exponent)) if _bits(exponent) <= 64 else float("inf")
        if base.is_Rational:
            if base == 0 and exponent < 0:
                raise NotArithmetic("division by 0")
            if base not in (0, 1, -1) and size * _bits(base) > MAX_BITS:
                raise NotArithmetic("too large a power")
            return
        self._degree *= max(1, int(size)) if size < MAX_BITS else MAX_BITS
        if self._degree > MAX_DEGREE:
            raise NotArithmetic("too high a power")

    def _factorial(self) -> Expr:
        from sympy import factorial

        value = self._atom()
        while self._take("!"):
            if not (value.is_Symbol or (value.is_Integer and 0 <= value <= MAX_FACTORIAL)):
                raise NotArithmetic(f"factorial of what is not a letter or a number up to {MAX_FACTORIAL}")
            value = factorial(value)
        return value

    def _atom(self) -> Expr:
        if self._at == len(self._tokens):
            raise NotArithmetic("unfinished")
        kind, text = self._tokens[self._at]
        self._at += 1
        if kind == "number":
            return _number(text)
        if kind == "name":
            return self._name(text)
        if text == "(":
            return self._rest_of_bracket()
        raise NotArithmetic(f"{text!r} where a number should be")

    def _rest_of_bracket(self) -> Expr:
        value = self._sum()
        if not self._take(")"):
            raise NotArithmetic("a bracket that does not close")
        return value

    def _name(self, name: str) -> Expr:
        from sympy import Function, Symbol, ln, pi, sqrt

        if name == "pi":
            return pi
        if name in ("sqrt", "ln"):
            argument = self._rest_of_bracket() if self._take("(") else self._atom()
            return _bounded(sqrt(argument) if name == "sqrt" else ln(_nonzero(argument)))
        if self._take("("):
            return Function(name)(self._rest_of_bracket())
        return Symbol(name)


def _number(text: str) -> Expr:
    from sympy import Float, Integer

    if len(text) > MAX_DIGITS:
        raise NotArithmetic(f"more than {MAX_DIGITS} digits")
    return Integer(int(text)) if text.isdigit() else Float(text)


def _nonzero(value: Expr) -> Expr:
    if value.is_zero:
        raise NotArithmetic("division by 0")
    return value


def _bits(value: Any) -> int:
    return max(int(value.p).bit_length(), int(value.q).bit_length())


def _bounded(value: Expr) -> Expr:
    if value.is_Rational and _bits(value) > MAX_BITS:
        raise NotArithmetic(f"a number of more than {MAX_BITS} bits")
    return value
