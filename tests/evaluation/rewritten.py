"""Golds written as a model would write them: what a rule must see through if it is to find a right answer right."""

import re

from fastgrpo.evaluation.records import ProblemRow
from fastgrpo.rewards import VerifierPool

PLAIN = re.compile(r"[-+]?\$?[-+]?\\?\$?[\d,.]+(\\!|[\d,.\s])*\$?|[-+]?\\[dt]?frac\{?\d+\}?\{?\d+\}?|[-+]?\d+/\d+")
E_NOTATION = re.compile(r"([-+]?[\d.]+)e(-?)\+?0*(\d+)")
CODE = re.compile(r"np\.(\w+)\((.*)\)")
COMMANDS = re.compile(
    r"\\(text|mbox|mathrm)\s*\{[^}]*\}|\\(left|right|frac|dfrac|tfrac|sqrt|pi|infty|cup|circ|pm|cdot|times|begin|end|"
    r"mathbb|in|angle|quad|ldots|dots|leq?|geq?|geqslant|le|ge|degree|%)|pmatrix|cases|array"
)


def rewritten(gold: str) -> list[str]:
    """Other ways to write the gold, all of them right; none for a number, words, a point, an interval or a matrix,
    which have one."""
    bare = gold.replace("$", "").strip().rstrip(".")
    if PLAIN.fullmatch(gold.strip()):
        return []
    if match := E_NOTATION.fullmatch(bare):
        return [f"{match[1]} \\times 10^{{{match[2]}{match[3]}}}", f"{match[1]} \\cdot 10^{{{match[2]}{match[3]}}}"]
    if match := CODE.fullmatch(bare):
        return [f"\\{match[1]}({match[2]})", f"\\{match[1]}\\left({match[2]}\\right)"]
    parts = [part.strip() for part in bare.split(",")]
    if len(parts) > 1 and "(" not in bare and "[" not in bare and "{" not in bare.replace("\\frac{", ""):
        return [", ".join(reversed(parts)), ",".join(reversed(parts))]
    if re.search(r"\d\s*\\?%$", bare):
        return [re.sub(r"\s*\\?%$", r"\\%", bare)] if not bare.endswith("\\%") else [bare[:-2] + "%"]
    if bare.count("=") == 1:
        left, right = (side.strip() for side in bare.split("="))
        return [f"{right} = {left}"] if right == "0" else [right]
    if re.search(r"[A-Za-z]", COMMANDS.sub("", bare)) and not bare.startswith("\\text"):
        return [f"0+{bare}", f"{bare}+0", f"1 \\cdot ({bare})", f"({bare})"]
    if re.search(r"\\sqrt|\\pi|\\frac|\^|\\pm", bare) and not re.search(r"[,;]|circ|matrix|\\cup", bare):
        return [f"0+{bare}", f"{bare}+0", f"1 \\cdot ({bare})"]
    return []


def seen_in_no_way(problems: list[ProblemRow], pool: VerifierPool) -> tuple[int, list[int]]:
    """How many golds can be written differently, and the problems of those that the pool's rule then rejects in every
    way."""
    ways = {p.problem: rewritten(p.answer) for p in problems}
    items = [(f"So it is \\boxed{{{way}}}.", p.answer) for p in problems for way in ways[p.problem]]
    verdicts = iter(pool.score(items))
    found = {number: [next(verdicts).correct for _ in some] for number, some in ways.items() if some}
    return len(found), [number for number, verdicts in found.items() if not any(verdicts)]
