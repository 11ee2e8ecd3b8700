"""A program that a model wrote, against tests, in a sandbox."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from fastgrpo.rewards.sandbox.cases import Test, ending
from fastgrpo.rewards.sandbox.command import SandboxName
from fastgrpo.rewards.sandbox.session import Answer, Ended, Session


@dataclass(frozen=True)
class CodeResult:
    """Which tests a program passed, in their order, and why it did not pass the first that it failed."""

    outcomes: tuple[bool, ...]
    reason: str  # of the first failure, with the test's number from 1; empty if there is none

    @property
    def passed(self) -> int:
        return sum(self.outcomes)

    @property
    def total(self) -> int:
        return len(self.outcomes)

    @property
    def share(self) -> float:
        """Of the tests that passed: 1.0 if all did."""
        return self.passed / self.total

    @property
    def all_passed(self) -> bool:
        return all(self.outcomes)


def run_python(
    program: str | None,
    tests: Sequence[Test],
    *,
    timeout_s: float = 8.0,
    test_timeout_s: float = 4.0,
    memory_gib: float = 1.0,
    sandbox: SandboxName = "auto",
    float_tolerance: float = 0.0,
    stop_at_failure: bool = False,
) -> CodeResult:
    """Which of the tests a program passes.

    Args:
        program: Python text, as `last_code_block` finds it; None or "" passes nothing.
        tests: of `tests_of`, or `StdinTest`, `CallTest`, `ValueTest` and `AssertTest` of ``fastgrpo.rewards``; at least
            one.
        timeout_s: wall-clock seconds for all tests together; those that are left fail. Give --reward.timeout_s some
            seconds more, or the pool ends the reward first.
        test_timeout_s: the same for one test.
        memory_gib: address space of a test's process; at most --reward.memory_limit_gib, which the reward itself has.
        sandbox: ``"bwrap"`` (bubblewrap) or ``"nsjail"``; ``"auto"``: what is installed of them; ``"rlimits"``: none.
        float_tolerance: numbers may differ by it, relative to the expected one if that is above 1; 0: they may not.
        stop_at_failure: the tests after the first failure fail without being run, for a reward that wants all.

    Raises:
        SandboxError: there is no sandbox, or it does not start. The message says what to install.
        ValueError: there are no tests, or a limit is out of range.

    One interpreter without packages is started for a program. It starts a process for every test, in which the program
    runs from its beginning. That process has no network, cannot start other processes, and sees nothing of the disk but
    Python itself and an empty /tmp of 64 MiB; its output ends at 16 MiB. It may use threads. What a test expects never
    comes near it, but for the text of assertions. The comparison ignores whitespace at line ends.

    ``sandbox="rlimits"`` has the same limits and refuses the same system calls, so the program has no network, and
    starts and signals no process. But it reads every file that this user may read, the data set with its answers among
    them, and may write and delete what this user may; where the kernel allows it (kernel.yama.ptrace_scope 0), the
    memory of this user's other processes too. As root it runs as nobody.
    """
    if not tests:
        raise ValueError("run_python needs at least one test, got none")
    if not min(timeout_s, test_timeout_s) > 0 or float_tolerance < 0:
        raise ValueError(
            f"timeout_s and test_timeout_s must be more than 0 and float_tolerance at least 0, got {timeout_s}, "
            f"{test_timeout_s} and {float_tolerance}"
        )
    session = Session(program or "", memory_gib, sandbox)
    if not program:
        return CodeResult((False,) * len(tests), "there is no program")
    outcomes: list[bool] = []
    reason = ""
    with session:
        until = time.monotonic() + timeout_s
        for number, test in enumerate(tests, 1):
            left_s = until - time.monotonic()
            if left_s <= 0:
                complaint = f"not run: the {timeout_s:g} s for all tests were over"
            else:
                complaint = _complaint(session, test, min(test_timeout_s, left_s), float_tolerance)
            outcomes.append(not complaint)
            reason = reason or (f"test {number}: {complaint}" if complaint else "")
            if complaint and (left_s <= 0 or stop_at_failure or complaint == ENDED):
                break
    return CodeResult((*outcomes, *[False] * (len(tests) - len(outcomes))), reason)


ENDED = "the program ended its sandbox"


def _complaint(session: Session, test: Test, timeout_s: float, float_tolerance: float) -> str:
    try:
        answer: Answer = session.ask(test.request(), timeout_s)
    except Ended:
        return ENDED
    return ending(answer.status, answer.errors) or test.complaint(answer, float_tolerance)


def last_code_block(response: str) -> str | None:
    """The text of the last complete ```python block; None if there is none."""
    last: str | None = None
    lines: list[str] | None = None
    for line in response.splitlines():
        mark = line.strip()
        if lines is None and mark.lower() in ("```python", "```python3", "```py"):
            lines = []
        elif lines is not None and mark == "```":
            last, lines = "\n".join(lines), None
        elif lines is not None:
            lines.append(line)
    return last
