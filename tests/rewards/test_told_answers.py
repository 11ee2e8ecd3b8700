r"""Answers on which public reports have told graders to err, beside the verdicts of the verifiers' sources.

``told_answers.tsv`` has six columns: the verdicts of the sources and ours, each for the eight verifiers of `COMPARED`;
that of math_verify_strict, which has no source; what stands in the box, or after "!" a whole response; the gold answer;
the kind. The sources that ran are those of ``test_dressed_answers.py`` and, for the first two, thunlp/JustRL
train/verl/utils/reward_score/math_dapo.py; prime_union's is DeepScaleR's or verl's.
"""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.rewards.demanded_forms import RESPONSES, verifier

FILE = Path(__file__).with_name("told_answers.tsv")
DOC = Path(__file__).parents[2] / "docs" / "verifiers.md"
COMPARED = (
    "strict_boxed",
    "dapo_minerva",
    "mathd_or_sympy",
    "deepscaler",
    "math_verify",
    "simplerl_mix",
    "format_penalty",
    "prime_union",
)


class Told(NamedTuple):
    source: str
    ours: str
    strict: str
    answer: str
    gold: str
    kind: str


ROWS = [Told(*line.split("\t")) for line in FILE.read_text().splitlines()[1:]]


def accepts(name: str, answer: str, gold: str) -> bool:
    """Whether the verifier accepts the answer, in a box or on a line as it demands; after "!" it is a response."""
    whole = answer.startswith("!")
    response = answer[1:] if whole else f"\\boxed{{{answer}}}"
    if name == "dapo_minerva" and not whole:
        response = f"Answer: {answer}"
    if name in ("deepscaler", "prime_union"):
        response = f"</think>{response}"
    return verifier(name)(response, gold) is True


@pytest.mark.parametrize("name", [*COMPARED, "math_verify_strict"])
def test_every_told_answer_is_judged_as_the_table_says(name: str):
    found = [(row, "FT"[accepts(name, row.answer, row.gold)]) for row in ROWS]
    wanted = [(row.ours + row.strict)[[*COMPARED, "math_verify_strict"].index(name)] for row in ROWS]
    assert not [pair for pair, letter in zip(found, wanted, strict=True) if pair[1] != letter]


def test_ours_are_the_sources_verdicts_but_for_what_the_source_misreads():
    """And but for a response without a closed box, which format_penalty calls unformatted, whatever its source says."""
    mended = {"repeating decimal", "bracket of a fraction", "degree of a root", "names of functions"}
    for row in ROWS:
        if row.kind in mended:
            assert row.ours <= row.source, row
            continue
        differing = [name for name, s, o in zip(COMPARED, row.source, row.ours, strict=True) if s != o]
        assert not differing or (differing == ["format_penalty"] and row.answer.startswith("!")), row


def documented() -> list[tuple[str, str, set[str]]]:
    """(answer, gold, verifiers) of the table of what is accepted by source and wrong."""
    lines = DOC.read_text().splitlines()
    start = lines.index("| kind | in the box | the answer | accepted by |")
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        _, answer, gold, names = (cell.strip() for cell in line.strip("|").split("|"))
        rows.append((answer.strip("`").strip(), gold.strip("`").strip(), set(names.replace("`", "").split(", "))))
    return rows


def test_each_false_positive_of_the_doc_is_accepted_by_the_verifiers_it_names_and_no_other():
    rows = documented()
    assert len(rows) >= 15
    for answer, gold, names in rows:
        found = {name for name in RESPONSES if accepts(name, answer, gold)}
        assert found == names, (answer, gold)


def test_the_strict_one_takes_none_of_them():
    for answer, gold, names in documented():
        assert "math_verify_strict" not in names
        assert not accepts("math_verify_strict", answer, gold)


def test_the_doc_has_every_told_answer_that_is_accepted_and_wrong():
    listed = {(answer, gold) for answer, gold, _ in documented()}
    wrong = {
        "small numbers",
        "earlier box",
        "equal right sides",
        "space after the comma",
        "comma dropped",
        "other units",
    }
    wrong |= {
        "other units",
        "near an integer",
        "time of day",
        "unbraced fraction",
        "another base",
        "negated",
        "false equation",
    }
    wrong |= {"letters in another order", "tuple for a set"}
    for kind in wrong:
        told = {(row.answer, row.gold) for row in ROWS if row.kind == kind}
        assert told & listed, kind
