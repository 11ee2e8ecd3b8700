"""What goes to a server over HTTP, and what comes of its answers."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import numpy as np
import pytest

from fastgrpo.rollout.sampling_noise import response_seed
from fastgrpo.rollout.servers import client as module
from fastgrpo.rollout.servers.client import INITIAL, Client, OtherWeights, ServerError, response_of, url_of
from fastgrpo.types import Prompt, Request, Response, Sampling
from tests.rollout.servers.accounts import about
from tests.rollout.servers.fake_server import (
    ABOUT,
    ALIVE,
    GENERATE,
    JOIN,
    RECEIVE,
    FakeServer,
    drawn_of,
    refusal,
)
from tests.rollout.servers.until import until

SAMPLING = Sampling(group_size=2, max_response_tokens=4, temperature=0.7, stop_token_ids=(3, 9), seed=11)
PROMPT = Prompt.of_ids(np.array([7, 8, 9], np.int32), position=5)
REQUEST = Request(id=4, prompt=PROMPT, index=1, sampling=SAMPLING)


@pytest.fixture
def server():
    with FakeServer() as server:
        yield server


def told(server: FakeServer, *calls: Callable[[Client], Awaitable[Any]], key: str = "") -> list[Any]:
    """What these calls of one client return, one after the other."""

    async def ask() -> list[Any]:
        client = Client(server.url, key)
        try:
            return [await call(client) for call in calls]
        finally:
            await client.close()

    return asyncio.run(ask())


def draw(client: Client) -> Awaitable[Response]:
    return client.draw(REQUEST, "salt", "", 3)


def test_a_request_says_all_that_makes_a_response(server):
    told(server, draw)
    ((body),) = [asked.body for asked in server.of(GENERATE)]
    assert body == {
        "token_ids": [7, 8, 9],
        "cache_salt": "salt",
        "sampling_params": {
            "temperature": 0.7, "top_p": 1.0, "seed": response_seed(11, 5, 1), "max_tokens": 4,
            "stop_token_ids": [3, 9], "ignore_eos": True, "logprobs": 0, "detokenize": False,
        },
    }  # fmt: skip


def test_a_response_is_what_was_drawn(server):
    server.drawn = drawn_of([5, 3], [-0.5, -9999.0], finish_reason="stop", spans=((0, "17"),))
    (response,) = told(server, draw)
    assert response.response_ids.tolist() == [5, 3] and response.response_ids.dtype == np.int32
    assert response.rollout_logprobs.tolist() == [-0.5, -9999.0] and response.rollout_logprobs.dtype == np.float32
    assert (response.finish_reason, response.policy_version, response.version_changes) == ("stop", 17, ())


def test_spans_of_several_versions_become_the_first_and_where_it_changed():
    spans = ((0, "17"), (2, "18"), (2, "19"), (5, "19"), (6, "21"))
    response = response_of(drawn_of(list(range(7)), spans=spans), "", 3)
    assert response.policy_version == 17 and response.version_changes == ((2, 19), (6, 21))
    assert response.token_versions().tolist() == [17, 17, 19, 19, 19, 19, 21]


def test_where_the_server_does_not_say_the_version_it_is_that_of_the_last_sync():
    response = response_of(drawn_of([1, 2]), "", 3)
    assert (response.policy_version, response.version_changes) == (3, ())


def test_without_logprobs_they_are_unknown(server):
    server.drawn = replace(drawn_of([1, 2]), logprobs=None)
    (response,) = told(server, draw)
    assert np.isnan(response.rollout_logprobs).all() and len(response.rollout_logprobs) == 2
    assert response.rollout_logprobs.dtype == np.float32


def test_a_label_of_another_run_is_an_error():
    assert response_of(drawn_of([1, 2], spans=((0, "mine/4"),)), "mine", 3).policy_version == 4
    for label in ("theirs/4", "4", "default"):
        with pytest.raises(ServerError, match="another trainer has written its weights"):
            response_of(drawn_of([1, 2], spans=((0, label),)), "mine", 3)


def test_weights_of_the_servers_start_have_no_run_and_no_trainer_may_write_them(server):
    assert response_of(drawn_of([1, 2], spans=((0, INITIAL),)), INITIAL, 0).policy_version == 0
    for spans in (((0, "theirs/4"),), ((0, INITIAL), (1, "theirs/4"))):
        with pytest.raises(OtherWeights, match="a trainer has written its weights"):
            response_of(drawn_of([1, 2], spans=spans), INITIAL, 0)
    server.label = "theirs/4"  # and where spans do not say it, the server does
    with pytest.raises(OtherWeights):
        told(server, lambda client: client.draw(REQUEST, "salt", INITIAL, 0))


def test_a_response_without_a_token_is_an_error():
    with pytest.raises(ServerError, match="it drew no token"):
        response_of(drawn_of([]), "", 3)


@pytest.mark.parametrize("spans", [((0, "latest"),), ((1, "17"),)])
def test_spans_that_leave_a_version_open_are_an_error(server, spans):
    server.drawn = drawn_of([1, 2], spans=spans)
    with pytest.raises(ServerError, match="its answer is no response: "):
        told(server, draw)


@pytest.mark.parametrize("reason", ["abort", "error", None])
def test_a_response_that_was_not_drawn_to_its_end_is_an_error(server, reason):
    server.drawn = drawn_of([5], finish_reason=reason)
    with pytest.raises(ServerError, match=f"it ended a request with {reason!r}"):
        told(server, draw)


def test_the_key_is_in_the_header_of_every_request(server):
    server.key = "sesame"
    calls = (
        lambda c: c.about(), lambda c: c.alive(), draw, lambda c: c.join({}),
        lambda c: c.receive(0, "run/1", False, False),
    )  # fmt: skip
    told(server, *calls, key="sesame")
    assert [asked.path for asked in server.asked] == [ABOUT, ALIVE, GENERATE, JOIN, RECEIVE]
    assert {asked.headers["Authorization"] for asked in server.asked} == {"Bearer sesame"}
    for call in calls:
        with pytest.raises(ServerError, match="Unauthorized") as caught:
            told(server, call)
        assert caught.value.status == 401


def test_a_sync_says_what_the_server_needs_for_it(server):
    told(server, lambda c: c.join({"port": 7}), lambda c: c.receive(5, "run/17", True, False))
    assert [server.of(path)[0].body for path in (JOIN, RECEIVE)] == [
        {"port": 7}, {"number": 5, "label": "run/17", "with_checksums": True, "keep_cache": False},
    ]  # fmt: skip


def test_a_servers_account_is_read(server):
    account = about(tensor_parallel=2)
    server.about = account.to_json()
    assert told(server, lambda c: c.about()) == [account]


@pytest.mark.parametrize("account", [{"vllm": "0.32.0"}, {**about().to_json(), "colour": "red"}, [], 7])
def test_an_account_of_another_kind_is_an_error(server, account):
    server.about = account
    with pytest.raises(ServerError) as caught:
        told(server, lambda c: c.about())
    assert caught.value.status == 200


@pytest.mark.parametrize(
    "answer, message",
    [
        (refusal(500, "EngineCore encountered an issue"), "EngineCore encountered an issue"),
        ((404, {"detail": "Not Found"}), "Not Found"),
        ((401, {"error": "Unauthorized"}), "Unauthorized"),
        ((503, "a proxy's page"), "a proxy's page"),
        ((500, {"error": "x" * 5000}), "x" * 2000),
        (
            (200, b"\0\0"),
            "its answer is no response: it has no header: Expecting value: line 1 column 1 (char 0)",
        ),
    ],
)
def test_a_refusal_is_told_in_the_servers_words(server, answer, message):
    server.refusals[GENERATE] = answer
    with pytest.raises(ServerError) as caught:
        told(server, draw)
    assert (caught.value.status, str(caught.value)) == (answer[0], message)


def test_an_answer_that_is_no_json_is_an_error(server):
    server.refusals[ALIVE] = 200, b'{"version":'
    with pytest.raises(ServerError, match="its answer is no JSON: Expecting value: line 1 column 12"):
        told(server, lambda c: c.alive())


def test_where_nobody_listens_it_is_an_error_of_connections(server):
    server.die()
    for call in (draw, lambda c: c.alive(), lambda c: c.about()):
        with pytest.raises(aiohttp.ClientConnectorError):
            told(server, call)


def test_an_account_that_does_not_come_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(module, "ANSWER_S", 0.1)
    server.hold(ABOUT)
    with pytest.raises(TimeoutError):
        told(server, lambda c: c.about())


def test_as_many_requests_as_there_are_go_out_at_once(server):
    server.hold(GENERATE)

    async def ask(client: Client) -> None:
        drawing = asyncio.gather(*(draw(client) for _ in range(150)))  # more than a session allows by default
        while len(server.of(GENERATE)) < 150:
            await asyncio.sleep(0.005)
        server.release(GENERATE)
        await drawing

    told(server, lambda c: asyncio.wait_for(ask(c), 15))


def test_every_request_has_a_connection_of_its_own_and_leaves_none(server):
    """A server ends idle ones when it likes."""
    told(server, draw, draw, lambda c: c.alive())
    until(lambda: server.num_connections == 0)
    assert {asked.headers.get("Connection") for asked in server.asked} == {"close"}


def test_an_address_of_ipv6_has_brackets():
    assert url_of("10.0.0.7", 8000) == "http://10.0.0.7:8000"
    assert url_of("fd00::7", 8000) == "http://[fd00::7]:8000"
