"""One call of the reward -> one message to the pool; and what the reward is tried on before it may judge a run."""

import asyncio
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from fastgrpo.rewards.judgement import KnownAnswer, RewardError, as_json
from fastgrpo.rewards.pool import wire
from fastgrpo.rewards.pool.load import Reward
from fastgrpo.rewards.signature import signature_of

Message = tuple[bytes, str]  # a code of ``wire``, and its text

MAX_LINE_CHARS = 1000
_HERE = str(Path(__file__).parent)
SIMPLE = {True: (wire.ACCEPTED, ""), False: (wire.REJECTED, "")}


class Judge:
    """A reward and how it is called."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self.signature = signature_of(reward)
        self.runner: asyncio.Runner | None = asyncio.Runner() if self.signature.is_async else None

    def judge(self, call: wire.Call) -> Message:
        """The message about a call; never raises."""
        try:
            return self.message(call, self.start(call))
        except BaseException as error:  # also SystemExit: only the pool ends this process
            return self.failure(error)

    async def judge_async(self, call: wire.Call, timeout_s: float) -> Message:
        """`judge` for an async reward, which may take ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s) as limit:
                value = await self.start(call)
            return self.message(call, value)
        except BaseException as error:
            return (wire.TIMED_OUT, f"no verdict in {timeout_s} s") if limit.expired() else self.failure(error)

    def start(self, call: wire.Call) -> Any:
        """Calls the reward: what it returns, or, if it is async, what is to be awaited."""
        if self.signature.whole_groups:
            responses, answers, named = zip(*call, strict=True)
            lists = {name: [each[name] for each in named] for name in self.signature.names}
            return self.reward(list(responses), list(answers), **lists)
        ((response, answer, its),) = call
        return self.reward(response, answer, **its) if its else self.reward(response, answer)

    def message(self, call: wire.Call, value: Any) -> Message:
        """What the pool is told of what the reward returned. Raises TypeError if that is no judgement."""
        if not self.signature.whole_groups:
            return SIMPLE[value] if value is True or value is False else (wire.JUDGED, json.dumps(as_json(value)))
        values = list(value)
        if len(values) != len(call):
            return wire.BROKEN, f"the reward got {len(call)} responses of a group and returned a list of {len(values)}"
        return wire.JUDGED, json.dumps([as_json(each) for each in values])

    def failure(self, error: BaseException) -> Message:
        if isinstance(error, MemoryError):
            return wire.RETIRED, "MemoryError: the reward went over memory_limit_gib"
        if isinstance(error, RewardError):
            return wire.BROKEN, str(error)
        return wire.RAISED, described(error)


def complaint(judge: Judge, setup: wire.Setup) -> str:
    """What is wrong with the reward; empty if nothing is. What it imports late is loaded too."""
    known = setup.self_test
    if known is None:
        known = getattr(judge.reward, "known_answers", ())
        if not known:
            return _fault_on(judge, setup.example, setup.timeout_s)
    for case in known:
        if fault := _fault_of(judge, case, setup):
            return f"failed its self-test: {fault}. Mend it, or give a self_test that fits what it judges"
    return ""


def _fault_of(judge: Judge, case: KnownAnswer, setup: wire.Setup) -> str:
    text, answer, expected = case
    code, said = _tried(judge, wire.Item(text, answer, setup.example.named), setup.timeout_s)
    if code not in (wire.ACCEPTED, wire.REJECTED, wire.JUDGED):
        found = said
    elif (given := _judgement(judge, code, said)) == as_json(expected):
        return ""
    else:
        found = str(given)
    return f"needed {expected} for the response {text[-200:]!r} and the answer {answer!r}, got {found}"


def _fault_on(judge: Judge, example: wire.Item, timeout_s: float) -> str:
    code, said = _tried(judge, example, timeout_s)
    if code in (wire.ACCEPTED, wire.REJECTED, wire.JUDGED):
        return ""
    return f"cannot judge: before any training it was called once, on a made-up response, and failed: {said}"


def _tried(judge: Judge, item: wire.Item, timeout_s: float) -> Message:
    item = item._replace(named={name: item.named[name] for name in judge.signature.names})
    if judge.runner is None:
        return judge.judge([item])
    return judge.runner.run(judge.judge_async([item], timeout_s))


def _judgement(judge: Judge, code: bytes, said: str) -> Any:
    if code != wire.JUDGED:
        return code == wire.ACCEPTED
    found = json.loads(said)
    return found[0] if judge.signature.whole_groups else found


def described(error: BaseException) -> str:
    """The last line of a traceback with its place in the reward's own code, and then the traceback."""
    line = traceback.format_exception_only(error)[-1].strip()[:MAX_LINE_CHARS]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((_HERE, "<"))]
    of_its_own = [f for f in frames if not f.filename.startswith((sys.prefix, sys.base_prefix))]
    if where := of_its_own[-1:] or frames[-1:]:
        line += f" ({where[0].filename}, line {where[0].lineno})"
    whole = "".join(traceback.format_exception(error, limit=-20)).strip()
    return f"{line}\n{whole[-(wire.MAX_MESSAGE_CHARS - len(line) - 1) :]}"
