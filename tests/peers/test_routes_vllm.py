"""The route that draws, over HTTP: vLLM's own words for a request and its response, and a stand-in for its engine."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastgrpo.rollout.servers.client import Client, ServerError
from fastgrpo.types import Prompt, Request, Response, Sampling
from tests.rollout.servers.until import LONG_S, until

pytest.importorskip("vllm", reason="needs vLLM, in an environment of its own: `make test-full`")
pytestmark = pytest.mark.peers

SAMPLING = Sampling(group_size=1, max_response_tokens=4, temperature=0.7, stop_token_ids=(3,), seed=11)
REQUEST = Request(id=0, prompt=Prompt.of_ids(np.array([7, 8], np.int32), position=0), index=0, sampling=SAMPLING)


@dataclass
class Engine:
    """Notes what it is asked, and answers with ``outputs``; without any it draws until it is told to stop."""

    outputs: list[Any] = field(default_factory=list)
    asked: list[tuple[Any, Any]] = field(default_factory=list)
    num_stopped: int = 0
    vllm_config = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: 320))

    async def generate(self, prompt: Any, sampling_params: Any, request_id: str) -> AsyncIterator[Any]:
        self.asked.append((prompt, sampling_params))
        try:
            while not self.outputs:
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.num_stopped += 1
            raise
        yield SimpleNamespace(outputs=self.outputs)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def url(engine: Engine) -> Iterator[str]:
    """The address of a server with our routes."""
    import uvicorn
    from fastapi import FastAPI

    from fastgrpo.rollout.vllm.guard import OnlyForRuns
    from fastgrpo.rollout.vllm.plugin import Routes

    app = FastAPI()
    app.add_middleware(OnlyForRuns)
    Routes().attach_router(app)
    app.state.engine_client = engine
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(LONG_S)


def drawn(url: str, request: Request = REQUEST) -> Response:
    async def draw() -> Response:
        client = Client(url, "")
        try:
            return await client.draw(request, "salt", "run", 5)
        finally:
            await client.close()

    return asyncio.run(draw())


def output(**others: Any) -> Any:
    """Two tokens with their logprobs, and at the first place that of another token."""
    from vllm.logprobs import FlatLogprobs
    from vllm.outputs import CompletionOutput

    logprobs = FlatLogprobs()
    logprobs.append_fast([9, 1], [-1.5, -0.25], iter((2, 1)), [None, None])
    logprobs.append_fast([3], [-0.5], iter((1,)), [None])
    usual = {"index": 0, "text": "", "cumulative_logprob": None, "logprobs": logprobs, "finish_reason": "stop"}
    return CompletionOutput(token_ids=[9, 3], **usual | others)


def test_the_engine_is_asked_for_one_output_without_an_object_a_token(url, engine):
    from vllm.sampling_params import RequestOutputKind

    engine.outputs = [output()]
    drawn(url)
    ((prompt, params),) = engine.asked
    assert prompt == {"type": "token", "prompt_token_ids": [7, 8], "cache_salt": "salt"}
    assert (params.temperature, params.max_tokens, params.stop_token_ids, params.logprobs) == (0.7, 4, [3], 0)
    assert params.flat_logprobs and params.output_kind == RequestOutputKind.FINAL_ONLY


def test_a_response_is_what_the_engine_gave(url, engine):
    spans = [SimpleNamespace(version="run/3", start=0, end=1), SimpleNamespace(version="run/4", start=1, end=2)]
    engine.outputs = [output(weight_versions=spans)]
    response = drawn(url)
    assert response.response_ids.tolist() == [9, 3] and response.rollout_logprobs.tolist() == [-1.5, -0.5]
    assert (response.finish_reason, response.token_versions().tolist()) == ("stop", [3, 4])


def test_an_older_vllm_does_not_say_the_version_and_logprobs_may_be_missing(url, engine):
    older = output(logprobs=None)
    del older.weight_versions
    engine.outputs = [older]
    response = drawn(url)
    assert np.isnan(response.rollout_logprobs).all() and response.policy_version == 5


def test_a_request_that_was_aborted_before_its_first_token_is_told_as_such(url, engine):
    from vllm.logprobs import FlatLogprobs

    aborted = output(logprobs=FlatLogprobs(), finish_reason="abort")
    aborted.token_ids = []
    engine.outputs = [aborted]
    with pytest.raises(ServerError, match="it ended a request with 'abort'"):
        drawn(url)


def test_a_trainer_that_hangs_up_stops_the_engine(url, engine):
    async def hang_up() -> None:
        client = Client(url, "")
        drawing = asyncio.create_task(client.draw(REQUEST, "salt", "run", 5))
        while not engine.asked:
            await asyncio.sleep(0.005)
        drawing.cancel()
        await asyncio.wait([drawing])
        await client.close()

    asyncio.run(asyncio.wait_for(hang_up(), LONG_S))
    until(lambda: engine.num_stopped == 1)
