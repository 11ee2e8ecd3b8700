"""Tests of a program: what it is given, and whether what it gives back is right, decided outside the sandbox."""

import ast
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from fastgrpo.rewards.sandbox import inside
from fastgrpo.rewards.sandbox.session import Answer

LONGEST_INT = 4000  # digits; Python's own limit is 4300
SHOWN = 80


class Test(Protocol):
    """A test of a program. ``request`` is what the sandbox gets."""

    def request(self) -> tuple[str, Any]: ...

    def complaint(self, answer: Answer, float_tolerance: float) -> str:
        """Why the answer is wrong; empty if it is right."""
        ...


@dataclass(frozen=True)
class StdinTest:
    """The program reads ``stdin`` and must print ``stdout``, but for whitespace at line ends and empty last lines."""

    stdin: str
    stdout: str

    def request(self) -> tuple[str, Any]:
        return "stdin", self.stdin.encode("utf-8", "surrogatepass")

    def complaint(self, answer: Answer, float_tolerance: float) -> str:
        got = answer.output.decode("utf-8", "replace")
        if _lines(got) == _lines(self.stdout) or (float_tolerance and _near_texts(got, self.stdout, float_tolerance)):
            return ""
        return f"needed the output {_short(self.stdout)}, got {_short(got)}"


@dataclass(frozen=True)
class CallTest:
    """``function(*arguments)`` must return ``expected``, as JSON has it: a tuple is a list.

    ``function`` is one of the program's, or a method of its class ``Solution``. ``may_be_wrapped``: what stands in an
    ``expected`` list of one is right too, for APPS and TACO wrap values so.
    """

    function: str
    arguments: Sequence[Any]
    expected: Any
    may_be_wrapped: bool = False

    def request(self) -> tuple[str, Any]:
        return "call", (self.function, list(self.arguments))

    def complaint(self, answer: Answer, float_tolerance: float) -> str:
        what = f"{self.function}(...)"
        complaint = _wrong_value(what, answer, self.expected, float_tolerance)
        if complaint and self.may_be_wrapped and isinstance(self.expected, list) and len(self.expected) == 1:
            return _wrong_value(what, answer, self.expected[0], float_tolerance) and complaint
        return complaint


@dataclass(frozen=True)
class ValueTest:
    """The ``expression``, of the program's names, must have the value ``expected``, as JSON has it."""

    expression: str
    expected: Any

    def request(self) -> tuple[str, Any]:
        return "evaluate", self.expression

    def complaint(self, answer: Answer, float_tolerance: float) -> str:
        return _wrong_value(self.expression, answer, self.expected, float_tolerance)


@dataclass(frozen=True)
class AssertTest:
    """Python text that must run to its end after the program, and then every ``test_*`` function that it defines.

    It may ``import solution``. What it expects is in the program's own process: a hostile program can pass it.
    """

    text: str

    def request(self) -> tuple[str, Any]:
        return "assert", self.text

    def complaint(self, answer: Answer, float_tolerance: float) -> str:
        return "" if answer.value == answer.token else "the assertions did not come to their end"


def tests_of(value: Any) -> list[Test]:
    """The tests in a data set's column, as public sets of problems have them: a JSON text or what it says.

    - ``{"inputs": [...], "outputs": [...]}`` of standard input and output (TACO, APPS, PRIME, CodeContests), where an
      entry may be a list of lines; with ``"fn_name"``, of arguments and returned values;
    - a list of ``{"input": ..., "output": ...}`` (LiveCodeBench, DeepCoder), with ``"fn_name"`` in an entry or in its
      ``"metadata"`` for calls, whose arguments stand on a line each;
    - Python text, or a list of such texts, with assertions or ``test_*`` functions (MBPP, KodCode). A text that is one
      ``assert expression == value`` is a test of a value: what it expects stays outside the sandbox.

    Raises ValueError for anything else, and if there are no tests.
    """
    value = _parsed(value)
    if isinstance(value, Mapping) and {"inputs", "outputs"} <= value.keys():
        tests = _paired(value["inputs"], value["outputs"], value.get("fn_name"))
    elif isinstance(value, str):
        tests = [_assertion(value)]
    elif isinstance(value, Sequence) and value and all(isinstance(v, str) for v in value):
        tests = [_assertion(v) for v in value]
    elif isinstance(value, Sequence) and all(isinstance(v, Mapping) and {"input", "output"} <= v.keys() for v in value):
        tests = [t for v in value for t in _paired([v["input"]], [v["output"]], _function_of(v))]
    else:
        raise ValueError(
            'needed tests as {"inputs": [...], "outputs": [...]}, as a list of {"input": ..., "output": ...} or as '
            f"Python text with assertions, got {_short(value)}"
        )
    if not tests:
        raise ValueError("needed at least one test, got none: leave such rows out of the data")
    return tests


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if not value.strip():
        raise ValueError("needed at least one test, got an empty text: leave such rows out of the data")
    try:
        with _ints_of_any_length():  # of a data set, which is not hostile
            return json.loads(value)
    except ValueError:
        return value


def _function_of(entry: Mapping[str, Any]) -> str | None:
    metadata = _parsed(entry.get("metadata") or "{}")
    named = entry.get("fn_name") or metadata.get("fn_name") or metadata.get("func_name")
    return str(named) if named else None


def _paired(inputs: Sequence[Any], outputs: Sequence[Any], function: str | None) -> list[Test]:
    if isinstance(inputs, str) or isinstance(outputs, str) or len(inputs) != len(outputs):
        raise ValueError(
            f"needed as many inputs as outputs, each in a list, got {_short(inputs)} and {_short(outputs)}"
        )
    pairs = zip(inputs, outputs, strict=True)
    return [_call(function, i, o) if function else StdinTest(_text(i), _text(o)) for i, o in pairs]


def _call(function: str, given: Any, expected: Any) -> CallTest:
    """Arguments come as a list, or as JSON in a text with a line for each; then the value is JSON in a text too."""
    if isinstance(given, str):
        arguments = [_parsed(line) for line in given.split("\n") if line.strip()]
        return CallTest(function, arguments, _parsed(expected), may_be_wrapped=True)
    return CallTest(function, list(given), expected, may_be_wrapped=True)


def _assertion(text: str) -> Test:
    try:
        [statement] = ast.parse(text).body
        if not isinstance(statement, ast.Assert) or not isinstance(statement.test, ast.Compare):
            return AssertTest(text)
        comparison = statement.test
        if len(comparison.ops) != 1 or not isinstance(comparison.ops[0], ast.Eq):
            return AssertTest(text)
        expected = ast.literal_eval(comparison.comparators[0])
        _as_json(expected)
    except (ValueError, SyntaxError, RecursionError):
        return AssertTest(text)
    return ValueTest(ast.unparse(comparison.left), expected)


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _near_texts(got: str, expected: str, tolerance: float) -> bool:
    words, wanted = got.split(), expected.split()
    return len(words) == len(wanted) and all(
        a == b or _are_near(a, b, tolerance) for a, b in zip(words, wanted, strict=True)
    )


def _are_near(a: Any, b: Any, tolerance: float) -> bool:
    """Whether both are numbers, or words for them, and near. No float holds an int of very many digits."""
    try:
        got, expected = float(a), float(b)
    except (ValueError, OverflowError):
        return False
    return got == expected or abs(got - expected) <= tolerance * max(1.0, abs(expected)) < math.inf


def _wrong_value(what: str, answer: Answer, expected: Any, tolerance: float) -> str:
    if not answer.value:
        return f"{what} has no value"
    try:
        got = _loads(answer.value.decode())
    except (ValueError, RecursionError):
        return f"the value of {what} is none that JSON has"
    if _equal(got, _as_json(expected), tolerance):
        return ""
    return f"needed {what} == {_short(expected)}, got {_short(got)}"


def _equal(got: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(got, list) and isinstance(expected, list):
        return len(got) == len(expected) and all(_equal(a, b, tolerance) for a, b in zip(got, expected, strict=True))
    if isinstance(got, dict) and isinstance(expected, dict):
        return got.keys() == expected.keys() and all(_equal(v, expected[k], tolerance) for k, v in got.items())
    if tolerance and isinstance(got, float | int) and isinstance(expected, float | int):
        return bool(got == expected) or _are_near(got, expected, tolerance)
    return bool(got == expected)


def _as_json(value: Any) -> Any:
    """The value as it would come back from JSON. Raises ValueError for what JSON has not."""
    try:
        with _ints_of_any_length():
            return _loads(json.dumps(value))
    except TypeError as error:
        raise ValueError(f"an expected value must be one that JSON has: {error}") from None


def _loads(text: str) -> Any:
    return json.loads(text, parse_int=_int)


def _int(digits: str) -> int | Decimal:
    """The number; one of very many digits in a type that is read in linear time, for a program may have written it."""
    return int(digits) if len(digits) <= LONGEST_INT else Decimal(digits)


@contextmanager
def _ints_of_any_length() -> Iterator[None]:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int of too many digits
        text = f"a long {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def ending(status: int, errors: bytes) -> str:
    """How a test's process ended, if that was not its natural end; else empty."""
    if status == 0:
        return ""
    if status == inside.TIMED_OUT:
        return "no end within its time"
    last = errors.decode("utf-8", "replace").strip().splitlines()[-1:]
    how = f"ended by signal {-status}" if status < 0 else f"exit code {status}"
    return f"{how}: {last[0][:200]}" if last else how
