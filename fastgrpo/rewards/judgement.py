"""What a reward may return, and what a run makes of it: a verdict."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

Part = float | tuple[float, float] | None  # a value, or a value and its weight; None is left out
Judgement = bool | float | Literal["unformatted"] | Mapping[str, Part] | None  # what a reward returns; numpy's too
KnownAnswer = tuple[str, str, Judgement]  # response text, answer, what the reward must return

Failure = Literal["", "timeout", "died", "raised"]

MAX_REWARD = float.fromhex("0x1.fffffep127")  # float32's, in which rewards are computed
ALLOWED = 'a bool, a number, None, "unformatted" or a dict of named numbers'


class RewardError(RuntimeError):
    """A reward cannot go on, whatever the response; the message says why. A reward may raise it to stop the run."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reward says of a response.

    ``failure`` is the reason if there was no judgement; then the response counts as wrong. ``"died"`` means that two
    processes ended while they judged it; one alone may have been killed from outside, for instance for lack of memory.
    """

    correct: bool | None  # None: the score says it, by --reward.correct
    failure: Failure = ""
    unformatted: bool = False  # wrong, and without an answer in the form that the reward demands
    score: float | None = None  # the reward itself; None: a yes or no, whose reward the settings say
    teaches: bool = True  # false where the reward was None, NaN or infinite
    parts: Mapping[str, float] = field(default_factory=dict)  # what the score is the weighted sum of


def as_json(value: Any) -> Any:
    """What a reward has returned, as `verdict_of` reads it from JSON. Raises TypeError for what is no judgement."""
    return _summed(value) if isinstance(value, Mapping) else _plain(value)


def verdict_of(judgement: Any) -> Verdict:
    """The verdict that `as_json` describes. Raises ValueError for anything else: it comes from a reward's process."""
    match judgement:
        case None:
            return Verdict(None, teaches=False)
        case bool() as yes:
            return Verdict(yes)
        case "unformatted":
            return Verdict(False, unformatted=True)
        case float() as score:
            return _number(score, None, {})
        case {"score": float() as score, "correct": bool() | None as correct, "parts": dict() as parts}:
            if all(isinstance(value, float) for value in parts.values()):
                return _number(score, correct, parts)
    raise ValueError(f"not a judgement: {judgement!r:.200}")


def _number(score: float, correct: bool | None, parts: Mapping[str, float]) -> Verdict:
    return Verdict(correct, score=score, teaches=abs(score) <= MAX_REWARD, parts=parts)


def _plain(value: Any) -> bool | float | str | None:
    """A judgement without parts as JSON holds it: bool stays, every other number becomes a float."""
    if value is None or (isinstance(value, str) and value == "unformatted"):
        return value
    if type(value).__name__ in ("bool", "bool_"):  # numpy's too
        return bool(value)
    if isinstance(value, Real):
        return _as_float(value)
    raise TypeError(f"a reward must return {ALLOWED}, got {type(value).__name__} {value!r:.60}")


def _as_float(value: Any) -> float:
    """The number as a float; infinite where none is so large."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _summed(parts: Mapping[Any, Any]) -> dict[str, Any] | None:
    """The weighted sum of named parts and each without its weight; None where no part has a value."""
    total, values, correct = 0.0, {}, None
    for name, part in parts.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"the parts of a reward are named by texts, got {name!r}")
        value, weight = part if isinstance(part, tuple | list) and len(part) == 2 else (part, 1.0)
        value, weight = _part(name, value), _part(name, weight)
        if weight is None:
            raise _no_part(name, "the weight None")
        if name == "correct" and isinstance(value, bool):
            correct = value
        if value is not None:
            values[name] = float(value)
            total += weight * value if weight else 0.0
    return {"score": float(total), "correct": correct, "parts": values} if values else None


def _part(name: str, value: Any) -> bool | float | None:
    try:
        plain = _plain(value)
    except TypeError:
        plain = ""
    if isinstance(plain, str):
        raise _no_part(name, f"{type(value).__name__} {value!r:.60}")
    return plain


def _no_part(name: str, got: str) -> TypeError:
    return TypeError(f"part {name!r} of a reward must be a number, or a number and its weight, got {got}")
