"""Whether two values that math-verify calls equal are equal in each of their numbers, however small these are."""

from __future__ import annotations

from typing import Any

EXACT = 1e-20  # relative, of numbers without a decimal point
DECIMAL = 5e-6  # relative: 0.333333 is 1/3
DIGITS = 30


def agree(gold: Any, target: Any) -> bool:
    """Whether both have the same parts, in order, with equal numbers.

    The library rounds to 6 decimals and drops what is below 1e-15, so small numbers are all equal to it, and it takes
    the last side of any chain of equations. Call this for what it has found equal.
    """
    from latex2sympy2_extended.logic import And
    from sympy import Eq
    from sympy.core.relational import Relational

    if isinstance(target, And):
        chained = isinstance(gold, And) and len(gold._unsorted_args) == len(target._unsorted_args)
        return chained and all(map(agree, gold._unsorted_args, target._unsorted_args))
    if isinstance(target, Eq) and not isinstance(gold, Eq):
        return _is_name(target.lhs) and agree(gold, target.rhs)
    if isinstance(gold, Eq) and not isinstance(target, Relational):
        return agree(gold.rhs, target)
    if isinstance(gold, Relational) and isinstance(target, Relational):
        return _proportional(gold.lhs - gold.rhs, target.lhs - target.rhs)
    if isinstance(gold, Relational) and hasattr(gold, "as_set"):
        gold = gold.as_set()
    if _kind(gold) != _kind(target):
        return False
    golds, targets = _parts(gold), _parts(target)
    if golds is None or targets is None:
        return _same(gold, target)
    return len(golds) == len(targets) and all(map(agree, golds, targets))


def _is_name(value: Any) -> bool:
    """Whether it is x, f(x) or (x, y)."""
    from sympy.core.function import AppliedUndef

    parts = _parts(value)
    return isinstance(value, AppliedUndef) or value.is_Symbol if parts is None else all(map(_is_name, parts))


def _kind(value: Any) -> str:
    """A pair in brackets may be an open interval or a tuple, and one without brackets is read as a set."""
    from sympy import FiniteSet, Interval, MatrixBase, Tuple

    if (isinstance(value, Interval) and value.is_open) or isinstance(value, Tuple):
        return "tuple"
    kinds = {FiniteSet: "set", Interval: "interval", MatrixBase: "matrix"}
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), "value")


def _parts(value: Any) -> list[Any] | None:
    """The elements of a set, tuple or matrix and the ends of intervals; None of a value."""
    from math_verify.grader import sort_key
    from sympy import FiniteSet, Interval, MatrixBase, Tuple, Union, ordered

    if isinstance(value, FiniteSet):
        return list(ordered(value.args, keys=sort_key, default=False))
    if isinstance(value, Interval):
        return [value.start, value.end]
    if isinstance(value, MatrixBase):
        return list(value.flat())
    return list(value.args) if isinstance(value, Tuple | Union) else None


def _proportional(gold: Any, target: Any) -> bool:
    """Whether one side of a relation is a number times the other one's; an equation may also be solved for a letter."""
    from sympy import simplify

    ratio = simplify(gold / target)
    return bool(not ratio.free_symbols and ratio.is_finite and not ratio.is_zero)


def _same(gold: Any, target: Any) -> bool:
    from math_verify.grader import sympy_symbolic_eq
    from sympy import Float

    if gold == target:
        return True
    gold, target = gold.doit(), target.doit()
    if not (gold.free_symbols or target.free_symbols):
        tolerance = DECIMAL if gold.has(Float) or target.has(Float) else EXACT
        left, right = gold.evalf(DIGITS), target.evalf(DIGITS)
        if abs(left - right) <= tolerance * max(abs(left), abs(right)):
            return True
    return bool(sympy_symbolic_eq(gold, target))
