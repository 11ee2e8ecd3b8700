"""The judged responses of ../shared/data/verifier: ten problems, sixteen responses each."""

import json
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2].parent / "shared" / "data" / "verifier" / "math_answers_sample_cases.jsonl"


def cases() -> list[tuple[str, str, bool]]:
    """(response, answer, whether it was judged right); skips the test that asks for them where they are not."""
    if not FILE.exists():
        pytest.skip(f"needs the labelled responses in {FILE}")
    found = []
    for line in FILE.read_text().splitlines():
        case = json.loads(line)
        (solution,) = case["solutions"]
        answer = solution.removeprefix("\\boxed{").removesuffix("}")
        found += [(text, answer, reward > 0) for text, reward in zip(case["generateds"], case["rewards"], strict=True)]
    return found
