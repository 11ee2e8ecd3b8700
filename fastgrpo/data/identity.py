"""Which prompts a run or an evaluation goes by, in a few numbers, so that another set of them is noticed."""

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from fastgrpo.types import Prompt

PARTS = 64
"""Checksums of one set: two sets that differ in a row are told apart to a sixty-fourth of their length."""

Identity = dict[str, Any]


def identity_of(prompts: Sequence[Prompt]) -> Identity:
    """Number and checksums of prompts, each with all that its responses and their verdicts depend on. JSON."""
    ends = [len(prompts) * part // PARTS for part in range(PARTS + 1)]
    parts = [prompts[start:end] for start, end in pairwise(ends) if start < end]
    return {
        "problems": len(prompts),
        "last_rows": [part[-1].row for part in parts],
        "checksums": [_checksum(part) for part in parts],
    }


def other_than(there: Any, now: Identity) -> str:
    """How prompts that there were, as a file says, differ from those that there are; empty if they do not."""
    there = there if isinstance(there, dict) else {}
    if all(there.get(name) == now[name] for name in ("problems", "checksums")):
        return ""
    if there.get("problems") != now["problems"]:
        return f"{there.get('problems')} problems there, {now['problems']} now"
    before = there["checksums"] if isinstance(there.get("checksums"), list) else []
    same = next((n for n, pair in enumerate(zip(before, now["checksums"], strict=False)) if pair[0] != pair[1]), 0)
    if not now["problems"]:
        return "other checksums there, and no problems now"
    first, last = now["last_rows"][same - 1] + 1 if same else 0, now["last_rows"][same]
    where = f"rows {first} to {last}" if first < last else f"row {last}"
    return f"other prompts or answers, the first of them in {where}"


def _checksum(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(prompt.prompt_ids.tobytes())
        digest.update(json.dumps([len(prompt.prompt_ids), prompt.text, prompt.answer, prompt.solution]).encode())
        if prompt.columns is not None:
            digest.update(json.dumps(prompt.columns, sort_keys=True, default=repr).encode())
    return digest.hexdigest()[:16]
