import os
import re
from pathlib import Path

import psutil
import pytest
import sympy.physics.units  # noqa: F401 - its own names go through eval when simplify first wants them
from sympy.parsing import sympy_parser

from fastgrpo.rewards import Verdict, VerifierPool, self_test_of
from tests.rewards import hostile
from tests.rewards.demanded_forms import RESPONSES, verifier
from tests.rewards.test_pool import workers_of
from tests.rewards.triples import triples

MIB = 2**20
WORKERS = 2
QUICK = ("strict_boxed", "dapo_minerva", "mathd_or_sympy", "deepscaler")


def judge(name: str, items: list[tuple[str, str]], timeout_s: float) -> list[Verdict]:
    """All verdicts; on the way, no process may hold more than 300 MiB, and this one may not grow by 64."""
    here = psutil.Process()
    verdicts: list[Verdict] = []
    with VerifierPool(f"fastgrpo.rewards:{name}", WORKERS, timeout_s, 2.0, self_test_of(verifier(name))) as pool:
        before = here.memory_info().rss
        for start in range(0, len(items), 50):
            verdicts += pool.score(items[start : start + 50])
            for pid in workers_of(os.getpid()):
                assert psutil.Process(pid).memory_info().rss < 300 * MIB
        assert here.memory_info().rss - before < 64 * MIB
    return verdicts


@pytest.mark.parametrize("name", [*QUICK, "simplerl_mix"])
def test_a_sample_of_hostile_responses_is_judged_or_refused(name: str, tmp_path: Path):
    items = list(hostile.responses(99, str(tmp_path / "executed")))
    verdicts = judge(name, items, timeout_s=1.0)
    assert len(verdicts) == 99
    assert not any(verdict.correct for verdict in verdicts)
    assert {verdict.failure for verdict in verdicts} <= {"", "timeout"}
    assert not (tmp_path / "executed").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", RESPONSES)
def test_many_hostile_responses_are_judged_or_refused(name: str, tmp_path: Path):
    count = 2000 if name in QUICK else 400
    items = list(hostile.responses(count, str(tmp_path / "executed")))
    verdicts = judge(name, items, timeout_s=5.0 if name in QUICK else 0.6)
    failures = [verdict.failure for verdict in verdicts]
    assert len(verdicts) == count
    assert not any(verdict.correct for verdict in verdicts)
    assert set(failures) <= {"", "timeout"}
    assert failures.count("timeout") <= (0 if name in QUICK else 40)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", RESPONSES)
def test_code_in_a_response_is_not_executed(name: str, tmp_path: Path):
    """In this process, where nothing would stop it: as the answer, in brackets, as LaTeX, as a plain text."""
    sentinel = tmp_path / "executed"
    calls = [
        f"__import__('os').system('touch {sentinel}')",
        f"open('{sentinel}','w')",
        f"exec(\"open('{sentinel}','w')\")",
    ]
    places = ["{}", "({})", "1+{}", "\\text{{{}}}", "\\operatorname{{{}}}", "2^{{{}}}", "{{1,{}}}", "sqrt({})", "[{}"]
    for call in calls:
        for place in places:
            answer = place.format(call)
            assert verifier(name)(RESPONSES[name](answer), "42") is not True
            assert verifier(name)(answer, "42") is not True
            verifier(name)(RESPONSES[name]("42"), answer)
    assert not sentinel.exists()


def test_the_sentinel_would_show_what_is_executed(tmp_path: Path):
    """The payloads work: evaluated on purpose, one of them makes the file."""
    sentinel = tmp_path / "executed"
    eval(f"__import__('os').system('touch {sentinel}')")
    assert sentinel.exists()


@pytest.mark.parametrize("name", ["mathd_or_sympy", "math_verify", "simplerl_mix", "prime_union"])
def test_the_known_hang_is_refused_in_this_process(name: str):
    assert not verifier(name)(RESPONSES[name](hostile.KNOWN_HANG), "42")


def test_hostile_responses_are_the_same_for_every_number_of_them():
    assert list(hostile.responses(50, "s"))[:20] == list(hostile.responses(20, "s"))
    assert max(len(response) for response, _ in hostile.responses(200, "s")) >= hostile.MEGABYTE


@pytest.mark.parametrize("name", ["mathd_or_sympy", "math_verify", "simplerl_mix"])
def test_sympys_eval_is_handed_nothing_but_numbers(name: str, monkeypatch: pytest.MonkeyPatch):
    """``sympy.Number("1.5")``, as latex2sympy calls it, ends in an eval: of what its lexer found to be a number."""
    handed = []
    evaluate = sympy_parser.eval_expr

    def spy(code: str, *namespaces: dict[str, object]) -> object:
        handed.append(code)
        return evaluate(code, *namespaces)

    monkeypatch.setattr(sympy_parser, "eval_expr", spy)
    short = ("code", "unicode_digits", "surrogates")
    for i, (response, answer) in enumerate(hostile.responses(120, "/nowhere/executed")):
        if hostile.FAMILIES[i % len(hostile.FAMILIES)].__name__ in short and len(response) < 1000:
            verifier(name)(response, answer)
    for triple in triples(40):
        verifier(name)(RESPONSES[name](triple.equivalent), triple.answer)
        verifier(name)(f"thus {triple.different}", triple.answer)
    strange = {code for code in handed if not re.fullmatch(r"(Integer|Float) \('?[0-9.]+'? \)", code)}
    assert strange <= {"E "}  # sympy's own constant
    assert bool(handed) == (name != "mathd_or_sympy")
