"""Answers tried on the verifier that is to judge by them."""

import pytest

from fastgrpo import rewards
from fastgrpo.rewards import VerifierPool, known_answers
from fastgrpo.rewards.golds import FIRST_CHUNK, GoldReport, first_rows, forms_for, plain_form, try_golds

LONG = "5" + " " * 100_000 + "x"  # which takes minutes to look at
PLAIN = [
    LONG,
    "5",
    "-3",
    "100",
    "0",
    "\\frac{1}{2}",
    "(1,2)",
    "x^2+1",
    "\\text{east}",
    "1e-7",
    "90^\\circ",
    "(A)",
    "0.5",
]
DRESSED = {
    "x=5": "5",
    "f(5)": "",
    "$5$": "5",
    "\\(5\\)": "5",
    "5\\\\": "5",
    "5.": "5",
    "\\frac{1}{2}.": "\\frac{1}{2}",
    "The answer is 5": "5",
    "the final answer is: $\\frac{1}{2}$.": "\\frac{1}{2}",
    "9 (apples)": "9",
    "5\\text{ cm}": "5",
    "5 \\, \\mathrm{cm}^2": "5",
    "15\\mbox{ cm}^2": "15",
    "5 cm": "5",
    "25\\%": "25",
    "\\$1,234": "1234",
    "1,234": "1234",
    "12{,}345.50": "12345.5",
    "98,\\!770": "98770",
    "033": "33",
    "+7": "7",
    "0.50": "0.5",
    "-07.0": "-7",
}


def test_an_answer_in_dress_has_a_plain_form_and_a_plain_one_has_none():
    assert {gold: plain_form(gold) for gold in PLAIN} == dict.fromkeys(PLAIN, "")
    assert {gold: plain_form(gold) for gold in DRESSED} == DRESSED


@pytest.fixture(scope="module")
def judged():
    """By verifier: what it says of these answers."""
    golds = ["5", "x=5", "1,234", "The answer is 5", "9 (apples)", "5\\\\", "a\nb", "\\frac{1}{2}", "z" * 200]
    found = {}
    for name in ("strict_boxed", "dapo_minerva", "mathd_or_sympy", "deepscaler", "simplerl_mix", "format_penalty"):
        with VerifierPool(f"fastgrpo.rewards:{name}", 1, 10.0, 4.0) as pool:
            forms = forms_for(f"fastgrpo.rewards:{name}", None, pool)
            found[name] = try_golds(pool, golds, 60.0, forms)
    return found


def test_every_verifier_is_asked_in_a_form_that_it_reads(judged):
    assert all(r.num_tried == 9 and not {"5", "\\frac{1}{2}"} & {*r.unmet, *r.dressed} for r in judged.values())


def test_answers_that_no_response_meets_are_those_of_the_verifiers_own_verdict(judged):
    assert judged["strict_boxed"].unmet == ["z" * 200]  # longer than what it looks at
    assert judged["dapo_minerva"].unmet == ["a\nb"]  # it reads a line
    assert "9 (apples)" in judged["simplerl_mix"].unmet


def test_answers_that_only_their_own_spelling_meets_are_told_with_the_plainer_one(judged):
    assert {"x=5": "5", "1,234": "1234", "5\\\\": "5"}.items() <= judged["strict_boxed"].dressed.items()
    lenient = judged["mathd_or_sympy"].dressed
    assert "x=5" not in lenient and "1,234" not in lenient
    for report in judged.values():
        assert report.dressed["The answer is 5"] == "5"


def test_no_answer_is_tried_after_the_time_is_over():
    with VerifierPool("fastgrpo.rewards:strict_boxed", 1, 10.0, 4.0) as pool:
        assert try_golds(pool, ["5"] * 10, 0.0, [("", "")]) == GoldReport(0)


def test_a_slow_verifier_is_noticed_before_the_time_is_over(tmp_path):
    file = tmp_path / "slow.py"
    file.write_text("import time\ndef slow(response, answer):\n    time.sleep(0.1)\n    return True\n")
    with VerifierPool(f"{file}:slow", 1, 10.0, 4.0) as pool:
        assert try_golds(pool, ["5"] * 1000, 0.2, [("", "")]).num_tried == FIRST_CHUNK


def test_a_verifier_that_demands_a_form_of_its_own_is_asked_in_it(tmp_path):
    @known_answers(("<answer>42</answer>", "42", True), ("\\boxed{42}", "42", False), ("", "42", False))
    def tagged(response, answer):
        return f"<answer>{answer}</answer>" in response

    file = tmp_path / "tagged.py"
    file.write_text("def tagged(response, answer):\n    return f'<answer>{answer}</answer>' in response\n")
    with VerifierPool(f"{file}:tagged", 1, 10.0, 4.0) as pool:
        forms = forms_for(f"{file}:tagged", tagged, pool)
        assert forms == (("<answer>", "</answer>"),)
        assert try_golds(pool, ["5", "7"], 60.0, forms) == GoldReport(2)


def test_only_a_verifier_with_known_answers_is_tried(tmp_path):
    file = tmp_path / "reward.py"
    file.write_text("def scored(response, answer):\n    return 0.5\n")
    with VerifierPool(f"{file}:scored", 1, 10.0, 4.0) as pool:
        assert not forms_for(f"{file}:scored", lambda response, answer: 0.5, pool)
        assert forms_for(f"{file}:scored", rewards.strict_boxed, pool)


def test_words_name_rows_and_how_many_were_tried():
    row_of = first_rows([("5", 0), ("", 1), ("x=5", 2), ("5", 3), ("bad", 4)])
    assert row_of == {"5": 0, "x=5": 2, "bad": 4}
    report = GoldReport(2, ["bad"], {"x=5": "5"})
    assert report.unmet_words("a.jsonl", "strict", row_of) == (
        "1 of 2 (of 3) different answers of a.jsonl are rejected by strict even word for word: row 4 'bad'"
    )
    assert report.dressed_words("a.jsonl", row_of).endswith("alone: row 2 'x=5'; '5' does not meet 'x=5'")
    assert GoldReport(3).unmet_words("a", "b", row_of) == GoldReport(3).dressed_words("a", row_of) == ""
