"""What a server that samples for a run answers."""

import asyncio

import pytest

from fastgrpo.rollout.vllm.guard import OnlyForRuns


async def app(scope, receive, send):
    await send({"type": "reached"})


def sent(scope: dict) -> list[dict]:
    found: list[dict] = []

    async def send(message: dict) -> None:
        found.append(message)

    asyncio.run(OnlyForRuns(app)(scope, None, send))
    return found


@pytest.mark.parametrize("path", ["/health", "/inference/v1/generate", "/inference/fastgrpo/receive"])
def test_what_a_run_asks_is_reached(path):
    assert sent({"type": "http", "path": path}) == [{"type": "reached"}]
    assert sent({"type": "lifespan"}) == [{"type": "reached"}]


@pytest.mark.parametrize("path", ["/invocations", "/v1/completions", "/health/x", "/collective_rpc", "/inference", "/"])
def test_nothing_else_is(path):
    assert sent({"type": "http", "path": path})[0]["status"] == 404
    assert sent({"type": "websocket", "path": path}) == [{"type": "websocket.close"}]
