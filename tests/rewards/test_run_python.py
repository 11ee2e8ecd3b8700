"""Programs against tests: what passes, as data sets have them and as a reward in the pool."""

import json
import os
import re
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest

from fastgrpo.rewards import (
    MADE_UP,
    AssertTest,
    CallTest,
    Item,
    StdinTest,
    ValueTest,
    VerifierPool,
    last_code_block,
    run_python,
)
from fastgrpo.rewards import tests_of as read_tests
from fastgrpo.rewards.sandbox import session
from tests.rewards.sandboxes import ADD, needs_bwrap

# What passes.


@needs_bwrap
def test_outcomes_are_in_the_order_of_the_tests_with_the_first_failures_reason():
    result = run_python(
        ADD, [StdinTest("1 2", "3"), StdinTest("1 2", "4"), StdinTest("x", "5"), StdinTest("5 5", "10")]
    )
    assert result.outcomes == (True, False, False, True)
    assert (result.passed, result.total, result.share, result.all_passed) == (2, 4, 0.5, False)
    assert result.reason == "test 2: needed the output '4', got '3\\n'"


@needs_bwrap
def test_the_reason_has_the_last_line_of_the_traceback():
    assert run_python("1/0", [StdinTest("", "")]).reason == "test 1: exit code 1: ZeroDivisionError: division by zero"
    assert "SyntaxError" in run_python("def", [StdinTest("", "")]).reason
    assert run_python("assert False", [StdinTest("", "")]).reason == "test 1: exit code 1: AssertionError"
    assert run_python(None, [StdinTest("", "")]).reason == "there is no program"


@needs_bwrap
def test_with_stop_at_failure_later_tests_are_not_run():
    program = "import time\nt = float(input())\ntime.sleep(t)\nprint(t)"
    tests = [StdinTest("0", "0.0"), StdinTest("0", "1"), *[StdinTest("3", "3.0")] * 3]
    began = time.monotonic()
    assert run_python(program, tests, stop_at_failure=True).outcomes == (True, False, False, False, False)
    assert time.monotonic() - began < 3


@needs_bwrap
def test_tests_beyond_the_programs_time_fail_without_being_run():
    program = "import time\ntime.sleep(0.4)\nprint(1)"
    result = run_python(program, [StdinTest("", "1")] * 50, timeout_s=1.0)
    assert result.outcomes[0] and 1 <= result.passed <= 2 and result.total == 50


@needs_bwrap
@pytest.mark.parametrize(
    ("printed", "expected", "tolerance", "passes"),
    [
        ("a  \nb\t\n\n\n", "a\nb", 0, True),
        ("a\r\nb", "a\nb\n", 0, True),
        (" a", "a", 0, False),
        ("a\n\nb", "a\nb", 0, False),
        ("0.30000000000000004", "0.3", 0, False),
        ("0.30000000000000004 x", "0.3  x", 1e-9, True),
        ("1000001", "1000000", 1e-5, True),
        ("nan", "0.3", 1e-9, False),
        ("7", "inf", 1e-9, False),
        ("Infinity", "inf", 1e-9, True),
        ("1 2", "1", 1e-9, False),
        ("ä€😀", "ä€😀", 0, True),
    ],
)
def test_outputs_are_compared_but_for_whitespace_at_line_ends(printed, expected, tolerance, passes):
    test = StdinTest("", expected)
    assert run_python(f"print({printed!r}, end='')", [test], float_tolerance=tolerance).all_passed is passes


@needs_bwrap
def test_values_are_compared_as_json_has_them():
    program = "from fractions import Fraction\nclass Solution:\n    def f(self, x): return eval(x)"
    values = {
        "(1, [2, (3,)])": ([1, [2, [3]]], True),
        "{1: 'a'}": ({"1": "a"}, True),
        "10**5000": (10**5000, True),
        "10**5000 + 1": (10**5000, False),
        "Fraction(1, 4)": (0.25, True),
        "None": (None, True),
        "{1, 2}": ([1, 2], False),
        "'\\ud800'": ("\ud800", True),
        "1e400": (float("inf"), True),
        "0.1 + 0.2": (0.3, False),
    }
    tests = [CallTest("f", [given], expected) for given, (expected, _) in values.items()]
    assert run_python(program, tests).outcomes == tuple(right for _, right in values.values())
    near = [CallTest("f", ["[0.1 + 0.2, {'a': 1}]"], [0.3, {"a": 1.0}]), CallTest("f", ["[0.4]"], [0.3])]
    assert run_python(program, near, float_tolerance=1e-9).outcomes == (True, False)
    far = [CallTest("f", ["10**400"], 0.3), CallTest("f", ["1"], 10**400), CallTest("f", ["1"], float("inf"))]
    assert run_python(program, far, float_tolerance=1e-9).outcomes == (False, False, False)


@needs_bwrap
def test_an_expected_value_that_json_has_not_is_refused():
    with pytest.raises(ValueError, match="must be one that JSON has"):
        run_python("def f(): return 1", [CallTest("f", [], Fraction(1, 2))])
    with pytest.raises(ValueError, match="arguments must be numbers, texts"):
        run_python("def f(x): return 1", [CallTest("f", [Fraction(1, 2)], 1)])


@needs_bwrap
def test_assertions_and_test_functions_decide_by_their_end():
    program = "def f(x):\n    return x + 1\ndef test_of_the_program():\n    raise SystemExit"
    texts = [
        "assert f(1) == 2",
        "assert f(1) == 3",
        "assert f(1) == 2 and f(2) == 3",
        "assert f(1) in (3, 4)",
        "import solution\ndef test_it():\n    assert solution.f(0) == 1",
        "def test_it():\n    assert f(0) == 0",
    ]
    assert run_python(program, read_tests(texts)).outcomes == (True, False, True, False, True, False)


@needs_bwrap
@pytest.mark.parametrize("program", ["import os\nos._exit(0)", "import sys\nsys.exit()", "raise SystemExit(0)"])
def test_a_program_that_ends_before_its_tests_passes_none(program):
    tests = [AssertTest("assert True"), ValueTest("1", 1), CallTest("f", [], None), StdinTest("", "x")]
    assert run_python(program, tests).passed == 0


@needs_bwrap
def test_every_test_begins_anew():
    program = (
        "import os, random\nprint(os.path.exists('/tmp/x'), len(random.__dict__.get('mine', [])))\nrandom.mine = [1]"
    )
    assert run_python(program, [StdinTest("", "False 0")] * 2).all_passed
    assert run_python("print(hash('a'))", [StdinTest("", "x")]).reason == (
        run_python("print(hash('a'))", [StdinTest("", "x")]).reason
    ), "the order of sets is the same in every run"


# Tests as data sets have them.


def test_public_schemas_are_read():
    stdin = {"inputs": ["1\n", ["a", "b"]], "outputs": ["2\n", ["c", "d"]]}
    assert read_tests(stdin) == read_tests(json.dumps(stdin)) == [StdinTest("1\n", "2\n"), StdinTest("a\nb", "c\nd")]
    calls = {"fn_name": "f", "inputs": [[1, [2]]], "outputs": [[3]]}
    assert read_tests(calls) == [CallTest("f", [1, [2]], [3], may_be_wrapped=True)]
    lines = {"fn_name": "f", "inputs": ["1\n[2]"], "outputs": ["[3]"]}
    assert read_tests(json.dumps(lines)) == read_tests(calls)
    entries = [
        {"input": "1", "output": "2", "testtype": "stdin"},
        {"input": "[1]", "output": "true", "metadata": '{"func_name": "g"}'},
    ]
    assert read_tests(entries) == [StdinTest("1", "2"), CallTest("g", [[1]], True, may_be_wrapped=True)]
    assert read_tests(["assert f(1) == [2]", "assert f(1) == {2}"]) == [
        ValueTest("f(1)", [2]),
        AssertTest("assert f(1) == {2}"),
    ]
    long = f'{{"fn_name": "f", "inputs": [[1]], "outputs": [{"9" * 5000}]}}'
    assert read_tests(long) == [CallTest("f", [1], 10**5000 - 1, may_be_wrapped=True)]
    assert sys.get_int_max_str_digits() == 4300


@needs_bwrap
def test_a_value_in_a_list_of_one_is_right_as_apps_writes_it():
    tests = read_tests({"fn_name": "f", "inputs": [[1], [2], [3]], "outputs": [[2], 3, [[4]]]})
    assert run_python("def f(x): return x + 1", tests).outcomes == (True, True, False)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "an empty text"),
        ("[]", "at least one test"),
        ({"inputs": [], "outputs": []}, "at least one test"),
        ({"inputs": ["1"], "outputs": []}, "as many inputs as outputs"),
        ({"inputs": "1", "outputs": "1"}, "as many inputs as outputs"),
        ({"input": "1"}, "needed tests as"),
        (3, "needed tests as"),
    ],
)
def test_other_tests_are_refused_in_words(value, words):
    with pytest.raises(ValueError, match=words):
        read_tests(value)


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\na\n```\ntext\n```python\nb\n\n  c\n```", "b\n\n  c"),
        ("```py\na\n```\n```\nb\n```", "a"),
        ("```python\na\n```\nthen\n```python\nb", "a"),
        ("  ```Python3\n  x\n  ```", "  x"),
        ("no block", None),
        ("```python\ncut off", None),
        ("```python\n```", ""),
    ],
)
def test_the_last_complete_python_block_is_the_program(response, program):
    assert last_code_block(response) == program


REWARD = """
from fastgrpo.rewards import last_code_block, run_python, tests_of

def reward(response, answer):
    return run_python(last_code_block(response), tests_of(answer), timeout_s=60, test_timeout_s=60).all_passed
"""


@needs_bwrap
def test_it_is_a_reward_in_the_pool_whose_limits_hold_for_it_too(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(REWARD)
    tests = json.dumps({"inputs": ["1 2"], "outputs": ["3"]})
    right, wrong, endless = (f"So:\n```python\n{code}\n```" for code in (ADD, "print(4)", "while True: pass"))
    with VerifierPool(
        f"{path}:reward", 1, timeout_s=2.0, memory_limit_gib=1.5, self_test=[(right, tests, True)]
    ) as pool:
        verdicts = pool.score([(text, tests) for text in (wrong, endless, right)])
        assert [(v.correct, v.failure) for v in verdicts] == [(False, ""), (False, "timeout"), (True, "")]


@needs_bwrap
def test_the_documented_reward_gives_the_share_of_hidden_tests(tmp_path):
    pages = "".join(page.read_text() for page in (Path(__file__).parents[2] / "docs").glob("rewards*.md"))
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", pages, re.DOTALL) if "run_python(last" in code]
    path = tmp_path / "recipe.py"
    path.write_text(example)
    row = {"tests": json.dumps({"inputs": ["1 2", "2 2"], "outputs": ["3", "4"]})}
    texts = [f"```python\n{code}\n```" for code in (ADD, "print(3)", "print(1)")]
    with VerifierPool(f"{path}:reward", 1, timeout_s=20.0, memory_limit_gib=2.0, self_test=[]) as pool:
        verdicts = pool.score([Item(text, "", {"row": row}) for text in texts])
    assert [v.score for v in verdicts] == [1.0, 0.5, 0.0]


@needs_bwrap
def test_the_trial_of_a_reward_runs_a_program(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(REWARD.replace("(response, answer)", "(response, answer, row)").replace("(answer)", "(row)"))
    names = {**MADE_UP.named, "row": {"inputs": [""], "outputs": ["42"]}}
    with VerifierPool(f"{path}:reward", 1, 20.0, 2.0, example=MADE_UP._replace(named=names)):
        pass
    path.write_text(path.read_text().replace(".all_passed", ".all_passed or 1 / 0"))
    with VerifierPool(f"{path}:reward", 1, 20.0, 2.0, example=MADE_UP._replace(named=names)) as pool:
        assert pool.score([MADE_UP._replace(named=names)])[0].correct is True
    names["row"] = {"inputs": [""], "outputs": ["41"]}
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        VerifierPool(f"{path}:reward", 1, 20.0, 2.0, example=MADE_UP._replace(named=names))


def test_a_sandbox_that_does_not_start_refuses_the_reward(monkeypatch, tmp_path):
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "recipe.py").write_text(
        REWARD.replace("tests_of(answer)", "tests_of({'inputs': [''], 'outputs': ['']})")
    )
    with pytest.raises(RuntimeError, match=r"called once.*the sandbox bwrap did not start: .*No permissions"):
        VerifierPool(f"{tmp_path / 'recipe.py'}:reward", 1, 20.0, 2.0)


@needs_bwrap
def test_more_memory_than_the_reward_has_is_refused(monkeypatch):
    monkeypatch.setattr(session.resource, "getrlimit", lambda _: (2**30, 2**30))
    with pytest.raises(ValueError, match=r"at most what the reward's own process has, 1 GiB .*memory_limit_gib.*got 2"):
        run_python(ADD, [StdinTest("", "")], memory_gib=2.0)


@pytest.mark.parametrize(
    "change",
    [{"timeout_s": 0}, {"test_timeout_s": -1}, {"memory_gib": 0}, {"float_tolerance": -1}, {"sandbox": "chroot"}],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=r"must be .*got"):
        run_python(ADD, [StdinTest("", "")], **change)
    with pytest.raises(ValueError, match="at least one test"):
        run_python(ADD, [])
