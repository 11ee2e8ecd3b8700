"""Groups of other ranks: drawn and kept there, told here without their tokens."""

import asyncio
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from types import SimpleNamespace

import aiohttp
import numpy as np
import pytest

from fastgrpo.rollout.servers.client import Client, ServerError
from fastgrpo.rollout.servers.home import Home, HomeFailure, Homes, home_of
from fastgrpo.types import Prompt, Request, Response, ResponseElsewhere, Sampling
from tests.rollout.servers.fake_server import GENERATE, FakeServer, drawn_of, refusal
from tests.rollout.servers.until import until

SAMPLING = Sampling(group_size=2, max_response_tokens=4, stop_token_ids=(7,), seed=2**32 + 1)
OTHER = Sampling(group_size=1, max_response_tokens=4, temperature=0.0)


def prompt_at(position: int) -> Prompt:
    return Prompt(row=0, text="", answer="", prompt_ids=np.full(3, position, np.int32), position=position)


def request(position: int, index: int = 0, sampling: Sampling = SAMPLING) -> Request:
    return Request(99, prompt_at(position), index, sampling)


@pytest.fixture
def server():
    with FakeServer("sesame") as server:
        yield server


@pytest.fixture
def home():
    home = Home("127.0.0.1", "token", "sesame", prompt_at)
    home.training, home.told = SAMPLING, []
    home.judging = SimpleNamespace(begin=lambda request, response: home.told.append((request, response)))
    yield home
    home.close()


def drawn(home: Home, server: FakeServer, *requests: Request, token: str = "token"):
    """What the first of two ranks is told, one after the other."""

    async def draw():
        homes, client = Homes([home.url], token), Client(server.url, "sesame")
        try:
            return [await homes.draw(client, r, "salt", "run", 4) for r in requests]
        finally:
            await homes.close()
            await client.close()

    return asyncio.run(draw())


@asynccontextmanager
async def drawing(home: Home, server: FakeServer):
    """The ranks, and a draw at this home whose request the server has."""
    homes, client = Homes([home.url], "token"), Client(server.url, "sesame")
    task = asyncio.create_task(homes.draw(client, request(1), "salt", "run", 4))
    await when_asked(server)
    try:
        yield homes, task
    finally:
        await homes.close()
        await client.close()


async def when_asked(server: FakeServer) -> None:
    await asyncio.to_thread(until, lambda: bool(server.of(GENERATE)))


def test_a_group_belongs_to_a_rank_by_its_position():
    assert [home_of(position, 3) for position in range(5)] == [0, 1, 2, 0, 1]


def test_the_first_rank_draws_its_own_groups_and_is_told_of_the_others(home, server):
    server.drawn = drawn_of([5, 6, 7], [-0.5, -1.0, -2.0], finish_reason="stop", spans=((0, "run/3"), (1, "run/4")))
    mine, theirs, last = drawn(home, server, request(2), request(3), request(3, 1))
    assert isinstance(mine, Response) and mine.response_ids.tolist() == [5, 6, 7]
    assert theirs == last == ResponseElsewhere(3, 3, "stop", ((3, 1), (4, 2)), None)
    assert [asked.body["cache_salt"] for asked in server.of(GENERATE)] == ["salt"] * 3
    assert server.of(GENERATE)[1].body["token_ids"] == [3, 3, 3]
    responses = home.take(3, SAMPLING)
    assert [r.response_ids.tolist() for r in responses] == [[5, 6, 7]] * 2
    assert [(r.index, r.prompt.position) for r, _ in home.told] == [(0, 3), (1, 3)]
    assert home.told[0][1] is responses[0]  # judged is what is trained on
    with pytest.raises(KeyError):
        home.take(3, SAMPLING)


def test_seeds_are_those_that_the_first_rank_would_have_used(home, server):
    drawn(home, server, request(1), Request(3, prompt_at(1), 0, SAMPLING))
    asyncio.run(drawn_at_once(server, request(1)))
    bodies = [asked.body for asked in server.of(GENERATE)]
    assert bodies[0] == bodies[1] == bodies[2]


async def drawn_at_once(server: FakeServer, request: Request) -> Response:
    client = Client(server.url, "sesame")
    try:
        return await client.draw(request, "salt", "run", 4)
    finally:
        await client.close()


def test_prompts_beside_the_trainings_are_known_when_they_were_announced(home, server):
    told = []
    other = Prompt(row=9, text="held out", answer="", prompt_ids=np.full(2, 77, np.int32), position=1)
    home.expect([other], OTHER, SimpleNamespace(begin=lambda request, response: told.append(request)))
    drawn(home, server, request(1, sampling=OTHER), request(1, 1))
    assert [asked.body["token_ids"] for asked in server.of(GENERATE)] == [[77, 77], [1, 1, 1]]
    assert [r.prompt.text for r in told] == ["held out"] and len(home.told) == 1
    assert len(home.take(1, OTHER)) == 1
    home.expect([other], OTHER, None)  # as a probe, which nobody judges
    drawn(home, server, request(1, sampling=OTHER))
    assert len(told) == len(home.told) == 1 and len(home.take(1, OTHER)) == 1


def test_what_a_server_refuses_the_first_rank_hears_as_if_it_had_asked_itself(home, server):
    server.refusals[GENERATE] = refusal(400, "the prompt is too long")
    with pytest.raises(ServerError, match="the prompt is too long") as caught:
        drawn(home, server, request(1))
    assert caught.value.status == 400 and not home.told
    server.die()
    with pytest.raises(aiohttp.ClientError, match=r"127\.0\.0\.1"):
        drawn(home, server, request(1))


def test_a_request_that_is_taken_back_is_taken_back_from_the_server(home, server):
    server.hold(GENERATE)

    async def draw_and_cancel():
        async with drawing(home, server) as (_, task):
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(draw_and_cancel())
    until(lambda: server.of(GENERATE)[0].hung_up)
    assert not home.told


def test_what_comes_of_a_group_that_was_forgotten_is_dropped(home, server):
    server.hold(GENERATE)

    async def draw_and_forget():
        async with drawing(home, server) as (_, task):
            home.forget([1], SAMPLING)
            server.release(GENERATE)
            await task

    asyncio.run(draw_and_forget())
    assert not home.told
    with pytest.raises(KeyError):
        home.of(1, [0], SAMPLING)
    drawn(home, server, request(1), request(1, 1))  # put back, and drawn again
    assert len(home.take(1, SAMPLING)) == len(home.told) == 2


def test_of_two_draws_of_one_response_the_later_counts_whichever_ends_first(home, server):
    server.hold(GENERATE)
    server.drawn = drawn_of([1, 1])

    async def draw_twice():
        async with drawing(home, server) as (homes, first):
            with FakeServer("sesame") as another:
                another.drawn = drawn_of([2, 2])
                second = Client(another.url, "sesame")
                await homes.draw(second, request(1), "salt", "run", 4)
                await second.close()
                server.release(GENERATE)
                await first

    asyncio.run(draw_twice())
    assert home.of(1, [0], SAMPLING)[0].response_ids.tolist() == [2, 2] and len(home.told) == 1


def test_responses_of_a_resumed_run_are_kept_as_if_they_had_been_drawn(home, server):
    drawn(home, server, request(1, 1))
    before = Response(np.array([9], np.int32), np.array([-1.0], np.float32), "stop", 2)
    home.put(1, {0: before}, SAMPLING)
    assert home.of(1, [0], SAMPLING) == {0: before}
    assert home.take(1, SAMPLING)[0] is before


def test_a_draw_that_nobody_expects_any_more_is_no_fault_of_the_server(home, server):
    with pytest.raises(HomeFailure, match=r"trainer rank 1 did not answer the first one at http://.*: 500"):
        drawn(home, server, request(1, sampling=OTHER))
    assert not server.asked


def test_a_server_that_a_rank_cannot_reach_is_told_with_the_rank(home, server):
    async def why():
        homes = Homes([home.url], "token")
        try:
            return await homes.why_out_of_reach(server.url)
        finally:
            await homes.close()

    assert asyncio.run(why()) == ""
    server.die()
    assert asyncio.run(why()).startswith("trainer rank 1 cannot ask it: Cannot connect to host 127.0.0.1")


def test_a_home_ends_at_once_also_while_it_draws(server):
    home = Home("127.0.0.1", "token", "sesame", prompt_at)
    home.training = SAMPLING
    server.hold(GENERATE)

    async def draw_until_it_ends():
        async with drawing(home, server) as (_, task):
            await asyncio.to_thread(home.close)
            with pytest.raises(HomeFailure):
                await task

    asyncio.run(draw_until_it_ends())
    assert not home._thread.is_alive()


def test_nobody_else_is_answered(home, server):
    with pytest.raises(HomeFailure, match="401"):
        drawn(home, server, request(1), token="guess")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(home.url + "/kept")
    assert not server.asked
