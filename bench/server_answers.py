"""What a trainer pays for the answers of its servers: bytes a token on the wire, and the time of a core that asks."""

import argparse
import asyncio
import multiprocessing
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from aiohttp import web

from bench.harness import Row, print_table, write_results
from fastgrpo.rollout.servers.client import Client
from fastgrpo.rollout.servers.drawn import Drawn
from fastgrpo.types import Prompt, Request, Sampling

LENGTHS = (256, 1024, 4096, 16384)
PROMPT_TOKENS, AT_ONCE, TOKENS, QUICK_TOKENS, ROUNDS = 200, 64, 2**21, 2**15, 3


def main(argv: Sequence[str]) -> int:
    """Draws from a server that answers at once, in a process of its own. Returns 0."""
    parser = argparse.ArgumentParser("python -m bench server_answers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few tokens, no result is kept")
    quick = parser.parse_args(argv).quick
    with answering() as url:
        rows = [measure(url, n, QUICK_TOKENS if quick else TOKENS, 1 if quick else ROUNDS) for n in LENGTHS]
    columns = ["tokens an answer", "bytes a token", "us an answer", "us a token", "million tokens/s of a core"]
    table = [[r["name"], r["token_bytes"], 1e6 * r["answer_s"], 1e6 * r["token_s"], 1e-6 / r["token_s"]] for r in rows]
    print_table("Answers that one core of a trainer asks for and reads", columns, table)
    if not quick:
        what = "asking for answers of {} tokens, one core"
        headline = [[what.format(r["name"]), f"{1e-6 / r['token_s']:.2f} million tokens/s", "-"] for r in rows]
        write_results("server_answers", torch.device("cpu"), headline, rows)
    return 0


def measure(url: str, length: int, tokens: int, rounds: int) -> Row:
    """The least time of this process in so many rounds, in each of which it draws all these tokens."""
    count = max(AT_ONCE, tokens // length)
    spent = min(asyncio.run(_draw(url, length, count)) for _ in range(rounds))
    return {
        "name": f"{length:,}",
        "token_bytes": len(_answer(length)) / length,
        "answer_s": spent / count,
        "token_s": spent / count / length,
    }


async def _draw(url: str, length: int, count: int) -> float:
    """Seconds of this process for so many answers."""
    client, prompt = Client(url, ""), Prompt.of_ids(np.arange(PROMPT_TOKENS, dtype=np.int32), position=0)
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(index: int) -> None:
        async with turns:
            sampling = Sampling(group_size=1, max_response_tokens=length)
            response = await client.draw(Request(id=index, prompt=prompt, index=0, sampling=sampling), "salt", "run", 0)
        assert len(response) == length

    await one(0)
    start = time.process_time()
    await asyncio.gather(*map(one, range(count)))
    spent = time.process_time() - start
    await client.close()
    return spent


@contextmanager
def answering() -> Iterator[str]:
    """The address of a server that answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = multiprocessing.get_context("spawn").Process(target=_serve, args=(listener,), daemon=True)
        process.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.join()


def _serve(listener: socket.socket) -> None:
    answers = {length: _answer(length) for length in LENGTHS}

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=answers[(await request.json())["sampling_params"]["max_tokens"]])

    app = web.Application()
    app.router.add_post("/inference/fastgrpo/generate", answer)
    web.run_app(app, sock=listener, print=lambda text: None, access_log=None)


def _answer(length: int) -> bytes:
    noise = np.random.default_rng(0)
    ids, logprobs = noise.integers(0, 2**17, length), -noise.exponential(size=length)
    return Drawn("length", ids, logprobs, ((0, "run/1000"),)).to_bytes()
