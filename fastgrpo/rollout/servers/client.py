"""One vLLM server as a trainer speaks to it: token ids in and out, weights, signs of life. For one event loop."""

import json
from typing import Any

import aiohttp
import numpy as np

from fastgrpo.rollout.servers.about import About
from fastgrpo.rollout.servers.drawn import Drawn
from fastgrpo.rollout.vllm.sampling import merged_changes, sampling_of
from fastgrpo.types import Request, Response

CONNECT_S = 30.0
ANSWER_S = 30.0  # for what needs no step of the engine
ERROR_CHARACTERS = 2000
INITIAL = "default"
"""vLLM's label of the weights that a server was started with. In place of a run it stands for these."""


class ServerError(RuntimeError):
    """A server refused a request or failed in it; ``status`` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class OtherWeights(ServerError):
    """A server does not hold the weights any more that it was started with."""


class Client:
    """Speaks to one server. Raises ServerError for an answer that is none, and aiohttp.ClientError or TimeoutError
    where there is no answer."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._session = self._open()

    def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            headers=self._headers,
            # A connection for each request: vLLM closes idle ones, perhaps just as the next request is sent.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            read_bufsize=2**20,
        )

    async def about(self) -> About:
        """What the server is."""
        answer = await self._ask("GET", "/inference/fastgrpo/about", limit_s=ANSWER_S)
        try:
            return About.of_json(answer)
        except TypeError as error:
            raise ServerError(200, str(error)) from error

    async def alive(self, limit_s: float | None = None) -> str:
        """The label of the weights, when the engine has answered between two of its steps, however long that takes."""
        answer = await self._ask("GET", "/inference/fastgrpo/alive", limit_s=limit_s)
        return str(answer["version"]) if isinstance(answer, dict) and "version" in answer else ""

    async def draw(self, request: Request, salt: str, run: str, version: int) -> Response:
        """Draws a response by weights of this run, or by the ones of the server's start (`INITIAL`).

        ``salt``: keys and values that were computed under another one are not reused. ``version``: of the weights,
        where the server does not say it.
        """
        body = {
            "token_ids": request.prompt.prompt_ids.tolist(),
            "cache_salt": salt,
            "sampling_params": sampling_of(request),
        }
        answer = await self._read("POST", "/inference/fastgrpo/generate", body)
        try:
            drawn = Drawn.of_bytes(answer)
            response = response_of(drawn, run, version)
        except ValueError as error:
            raise ServerError(200, f"its answer is no response: {error}") from error
        if run == INITIAL and not drawn.spans:  # labels never go back to it, so one after the last token is enough
            version_of(await self.alive(), run)
        return response

    async def join(self, meeting: dict[str, Any]) -> None:
        """Has the server's processes meet the sender of weights."""
        await self._ask("POST", "/inference/fastgrpo/join", meeting)

    async def receive(self, number: int, label: str, with_checksums: bool, keep_cache: bool) -> None:
        """Has the server receive one sync; tokens of these weights get the label."""
        body = {"number": number, "label": label, "with_checksums": with_checksums, "keep_cache": keep_cache}
        await self._ask("POST", "/inference/fastgrpo/receive", body)

    async def close(self) -> None:
        await self._session.close()

    async def _ask(self, method: str, path: str, body: Any = None, limit_s: float | None = None) -> Any:
        answer = await self._read(method, path, body, limit_s)
        try:
            return json.loads(answer)
        except ValueError as error:
            raise ServerError(200, f"its answer is no JSON: {error}") from error

    async def _read(self, method: str, path: str, body: Any = None, limit_s: float | None = None) -> bytes:
        timeout = aiohttp.ClientTimeout(total=limit_s, sock_connect=CONNECT_S)
        async with self._session.request(method, self.url + path, json=body, timeout=timeout) as answer:
            if answer.status != 200:
                raise ServerError(answer.status, _message(await answer.text(errors="replace")))
            return await answer.read()


def label_of(run: str, version: int) -> str:
    """What a server calls the weights of a run's policy version."""
    return f"{run}/{version}"


def version_of(label: str, run: str) -> int:
    """The policy version of a label, 0 of `INITIAL`. Raises ServerError if it is not this run's, ValueError if it is
    none."""
    if run == INITIAL and label == INITIAL:
        return 0
    if run == INITIAL:
        raise OtherWeights(
            409,
            f"a trainer has written its weights (their label is {label[:60]!r}), which are not those of its model any "
            f"more: start a server that no run samples with",
        )
    of_run, _, version = label.rpartition("/")
    if of_run != run:
        raise ServerError(409, "another trainer has written its weights: a server can serve one run at a time")
    return int(version)


def response_of(drawn: Drawn, run: str, version: int) -> Response:
    """What a server drew, as a run's own response.

    Raises ServerError if it was not drawn to its end, or by weights of another run, and ValueError where labels do not
    say which weights drew it.
    """
    if drawn.finish_reason not in ("stop", "length"):
        raise ServerError(200, f"it ended a request with {drawn.finish_reason!r}")
    count = len(drawn.ids)
    if count == 0:
        raise ServerError(200, "it drew no token")
    changes = [(place, version_of(label, run)) for place, label in drawn.spans] or [(0, version)]
    if changes[0][0] != 0:
        raise ValueError(f"its first label is that of token {changes[0][0]}")
    first, later = merged_changes(changes, count)
    return Response(
        response_ids=drawn.ids,
        rollout_logprobs=np.full(count, np.nan, np.float32) if drawn.logprobs is None else drawn.logprobs,
        finish_reason="stop" if drawn.finish_reason == "stop" else "length",
        policy_version=first,
        version_changes=later,
    )


def _message(text: str) -> str:
    """What an answer says is wrong."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(value, dict):
        error = value.get("error", value.get("detail", value))
        value = error.get("message", error) if isinstance(error, dict) else error
    return str(value)[:ERROR_CHARACTERS]


def url_of(host: str, port: int) -> str:
    """The address of what listens there."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def in_words(error: BaseException) -> str:
    """An error in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
