"""The command line of ``fastgrpo inspect``."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

ABOUT = """\
Show what a run would begin with: the rendered prompt with its special tokens, the ids that end a response, responses to
the run's first problems with their verdicts, what share of the groups has something to teach at several temperatures,
and what to change if none has. Nothing is trained.

  fastgrpo inspect RECIPE [--section.field value ...]        what `fastgrpo train RECIPE` would begin with
  fastgrpo inspect MODEL DATA [--reward NAME] [--section.field value ...]        without a recipe

What is no option below is a setting of the run, as `fastgrpo train --help` lists them. What a recipe prepares lies in
the folder of its run, where the run will find it. On a CPU responses are cut at 192 tokens, on a GPU at 2048, unless
the command line gives --rollout.max_response_tokens.
"""
PROBLEMS, ANSWERS, SHOWN = 12, 8, 4
AROUND = (0.7, 1.0, 1.2)
"""Of a run's temperature: a lower one makes weak models surer, a higher one groups more various."""


@dataclass(frozen=True)
class Options:
    places: list[str]  # a recipe, or a model and its data; empty: the usual recipe
    settings: list[str]  # of the run
    reward: str
    problems: int
    answers: int
    shown: int
    temperatures: tuple[float, ...]  # empty: the run's and two around it

    def temperatures_for(self, own: float) -> list[float]:
        """All temperatures in order, with the run's own."""
        return sorted({own, *(self.temperatures or (round(own * factor, 3) for factor in AROUND))})


def parse(arguments: Sequence[str]) -> Options:
    """Exits on --help and on options that are none. Raises ValueError for numbers that make no sense."""
    places = list(takewhile(lambda word: not word.startswith("-"), arguments))
    found, settings = _parser().parse_known_args(arguments[len(places) :])
    if len(places) > 2:
        raise ValueError(f"needed a recipe, or a model and its data, got {' '.join(places)}")
    for name, least in (("problems", 1), ("answers", 2), ("shown", 0)):
        if getattr(found, name) < least:
            raise ValueError(f"--{name} must be at least {least}, got {getattr(found, name)}")
    if wrong := [t for t in found.temperatures if not 0 < t < math.inf]:
        raise ValueError(f"--temperatures must be above 0 and finite, got {wrong[0]:g}")
    temperatures = tuple(found.temperatures)
    return Options(places, settings, found.reward, found.problems, found.answers, found.shown, temperatures)


def _parser() -> argparse.ArgumentParser:
    """Of what is no setting of the run."""
    parser = argparse.ArgumentParser(
        "fastgrpo inspect",
        usage="fastgrpo inspect [RECIPE | MODEL DATA] [options] [--section.field value ...]",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--reward",
        default="",
        help="a verifier of fastgrpo.rewards by its name, FILE.py:FUNCTION or package.module:function; "
        "default: the recipe's, strict_boxed without one",
    )
    parser.add_argument("--problems", type=int, default=PROBLEMS, help=f"problems, a group each; default: {PROBLEMS}")
    parser.add_argument("--answers", type=int, default=ANSWERS, help=f"responses to each; default: {ANSWERS}")
    parser.add_argument("--shown", type=int, default=SHOWN, help=f"problems whose responses are shown; default {SHOWN}")
    parser.add_argument(
        "--temperatures",
        type=float,
        nargs="+",
        default=(),
        metavar="T",
        help="at which responses are drawn, by the same noise; default: the run's own and two around it",
    )
    return parser
