"""What a pool refuses before it judges anything, and what it takes for granted once it has started."""

import os
import time
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from fastgrpo.rewards import SELF_TEST, VerifierPool
from fastgrpo.rewards.pool.feeder import Feeder
from tests.rewards.test_pool import DIED, RIGHT, STRICT, UNFORMATTED, workers_of


@pytest.mark.parametrize(
    ("verifier", "words"),
    [
        ("strict_boxed", "package.module:function"),
        (":f", "package.module:function"),
        ("fastgrpo.rewards:", "package.module:function"),
        ("/no/such/recipe.py:f", "no file /no/such/recipe.py"),
        ("no_such_package.module:f", "No module named 'no_such_package'"),
        ("fastgrpo.rewards.strict_boxed:f", "no function 'f'; it has strict_boxed"),
        ("fastgrpo.rewards.strict_boxed:BOX", "no function 'BOX'"),
    ],
)
def test_a_name_that_names_no_verifier_is_refused(verifier: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VerifierPool(verifier, workers=1, timeout_s=1, memory_limit_gib=1)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("import no_such_package", ValueError, "No module named 'no_such_package'"),
        ("x = (", ValueError, "SyntaxError"),
        ("import sys; sys.exit(3)", ValueError, "SystemExit"),
        ("a = bytes(2 * 2**30)", ValueError, "raise memory_limit_gib"),
        ("import os; os.write(2, b'oh dear'); os._exit(3)", RuntimeError, "(?s)exit status 3.*oh dear"),
    ],
)
def test_a_recipe_that_does_not_load_is_refused(
    tmp_path: Path, source: str, error: type[Exception], words: str
) -> None:
    before = workers_of(os.getpid())
    path = tmp_path / "recipe.py"
    path.write_text(source)
    with pytest.raises(error, match=words):
        VerifierPool(f"{path}:f", 2, timeout_s=1, memory_limit_gib=1)
    assert workers_of(os.getpid()) == before


def test_a_recipe_that_does_not_end_loading_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.py"
    path.write_text("import time; print('zzz', flush=True); time.sleep(99)")
    with pytest.raises(RuntimeError, match=r"(?s)not ready after 3.0 s.*zzz"):
        VerifierPool(f"{path}:f", 2, timeout_s=1, memory_limit_gib=1, start_timeout_s=3.0)


@pytest.mark.parametrize(
    ("function", "words"), [("always", "needed False .* got True"), ("misspelt", "NameError: .*, line \\d+\\)")]
)
def test_a_verifier_that_fails_the_self_test_is_refused(recipe: str, function: str, words: str) -> None:
    with pytest.raises(RuntimeError, match=f"(?s){words}"):
        VerifierPool(f"{recipe}:{function}", workers=1, timeout_s=1, memory_limit_gib=1, self_test=SELF_TEST)


def test_a_reward_by_its_name_has_the_known_answers_that_it_was_decorated_with(recipe: str) -> None:
    with pytest.raises(RuntimeError, match=r"failed its self-test: needed False .* got True"):
        VerifierPool(f"{recipe}:decorated", workers=1, timeout_s=1, memory_limit_gib=1)


def test_an_unformatted_answer_may_be_a_known_one(recipe: str) -> None:
    with VerifierPool(f"{recipe}:naughty", 1, 1, 1, self_test=[("no_answer", "", "unformatted")]) as pool:
        assert pool.score([("no_answer", "")]) == [UNFORMATTED]
    with pytest.raises(RuntimeError, match=r"needed False .* got unformatted"):
        VerifierPool(f"{recipe}:naughty", 1, 1, 1, self_test=[("no_answer", "", False)])


def test_a_self_test_of_ones_own_replaces_the_default(recipe: str) -> None:
    with VerifierPool(f"{recipe}:always", 1, timeout_s=1, memory_limit_gib=1, self_test=[("", "", True)]) as pool:
        assert pool.score([("", "1")]) == [RIGHT]
    with pytest.raises(RuntimeError, match="self-test: needed True"):
        VerifierPool(STRICT, 1, timeout_s=1, memory_limit_gib=1, self_test=[("42", "42", True)])


def test_an_edit_of_the_recipe_in_mid_run_changes_no_verdict(tmp_path: Path) -> None:
    path = tmp_path / "recipe.py"
    path.write_text("import os\ndef f(response, answer):\n    return os._exit(1) if response else True\n")
    with VerifierPool(f"{path}:f", 1, timeout_s=1, memory_limit_gib=1, self_test=[]) as pool:
        path.write_text("def f(response, answer):\n    return False\n")
        assert pool.score([("die", ""), ("", "")]) == [DIED, RIGHT]


def test_a_worker_that_cannot_be_replaced_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "recipe.py"
    flag = tmp_path / "flag"
    path.write_text(f"import os\nif os.path.exists({str(flag)!r}): os._exit(7)\ndef f(response, answer): os._exit(1)\n")
    with VerifierPool(f"{path}:f", 1, timeout_s=1, memory_limit_gib=1, self_test=[]) as pool:
        flag.touch()
        with pytest.raises(RuntimeError, match=r"exit status 7 before its first item, 3 time\(s\) in a row"):
            pool.score([("", "")] * 3)


@pytest.mark.parametrize("arguments", [(0, 1, 1), (1, 0, 1), (1, float("inf"), 1), (1, 1, -1), (1, float("nan"), 1)])
def test_limits_that_make_no_sense_are_refused(arguments: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError, match="more than 0 and finite"):
        VerifierPool(STRICT, *arguments)


class SlowPipe:
    """Takes its time to be written to, and notes whether it is closed meanwhile."""

    def __init__(self, pipe: FileIO) -> None:
        self.pipe, self.is_written, self.was_closed_in_a_write = pipe, False, False

    def write(self, data: bytes) -> None:
        self.is_written = True
        time.sleep(0.1)
        self.pipe.write(data)
        self.is_written = False

    def close(self) -> None:
        self.was_closed_in_a_write = self.is_written
        self.pipe.close()

    @property
    def closed(self) -> bool:
        return self.pipe.closed


def test_the_end_of_a_failed_start_writes_into_no_file_that_is_being_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may be another file's by then. Caller and thread end the same pool at the same time."""
    pipes: list[SlowPipe] = []
    start = Feeder.start

    def slow_start(feeder: Any) -> None:
        feeder._wake_write = SlowPipe(feeder._wake_write)
        pipes.append(feeder._wake_write)
        start(feeder)

    monkeypatch.setattr(Feeder, "start", slow_start)
    with pytest.raises(ValueError, match="No module named"):
        VerifierPool("no_such_package.module:f", workers=1, timeout_s=1, memory_limit_gib=1)
    assert [pipe.was_closed_in_a_write for pipe in pipes] == [False] and pipes[0].closed
