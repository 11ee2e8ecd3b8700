"""A reward model that a server holds, such as ``vllm serve MODEL --runner pooling``."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

ATTEMPTS = 4
FIRST_PAUSE_S = 0.25
BUSY = (408, 425, 429, 500, 502, 503, 504)


class NoScore(RuntimeError):
    """The server has no score for a response; the message says what it answered."""


class RewardModel:
    """The score of prompt and response by a server, as an async reward; see `reward_model`."""

    def __init__(
        self, url: str, model: str | None, chat: bool, headers: dict[str, str], fields: dict[str, Any]
    ) -> None:
        self.url, self.model, self.chat, self.headers, self.fields = url, model, chat, headers, fields
        self.style = urlsplit(url).path.rstrip("/").rpartition("/")[2]
        if self.style not in ("score", "classify", "pooling"):
            raise ValueError(f"reward_model asks a server's /score, /classify or /pooling, got the address {url!r}")
        self._client: Any = None

    async def __call__(self, response: str, answer: str, *, prompt: str) -> float:
        http = _http()
        if self._client is None:  # in the process and on the loop that asks
            self._client = http.AsyncClient(headers=self.headers, timeout=None)  # --reward.timeout_s is the limit
        body = {**({"model": self.model} if self.model else {}), **self._question(prompt, response), **self.fields}
        for attempt in range(ATTEMPTS):
            is_last = attempt == ATTEMPTS - 1
            try:
                reply = await self._client.post(self.url, json=body)
            except http.TransportError as error:
                if is_last:
                    raise NoScore(f"{self.url} cannot be reached: {type(error).__name__}: {error}") from error
            else:
                if reply.status_code == 200:
                    return self._score(reply.json())
                if is_last or reply.status_code not in BUSY:
                    raise NoScore(f"{self.url} answered {reply.status_code}: {reply.text[:500]}")
            await asyncio.sleep(FIRST_PAUSE_S * 2**attempt)
        raise AssertionError

    def _question(self, prompt: str, response: str) -> dict[str, Any]:
        if self.style == "score":
            return {"text_1": prompt, "text_2": response}
        if self.chat:
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            return {"messages": messages}
        return {"input": prompt + response}

    def _score(self, found: Any) -> float:
        try:
            value = found["data"][0][{"score": "score", "classify": "probs", "pooling": "data"}[self.style]]
            while isinstance(value, list):
                value = value[-1]
            return float(value)
        except (LookupError, TypeError, ValueError):
            raise NoScore(f"{self.url} answered without a score: {str(found)[:500]}") from None


def reward_model(
    url: str,
    *,
    model: str | None = None,
    chat: bool = True,
    headers: dict[str, str] | None = None,
    **fields: Any,
) -> RewardModel:
    """An async reward: the score that a server of a reward model gives to prompt and response.

    The end of ``url`` says how it is asked, in vLLM's way. ``/score``: with ``text_1`` (the prompt) and ``text_2`` (the
    response), for ``data[0].score``. ``/classify``: for the last of ``data[0].probs``. ``/pooling``: for the last
    number of ``data[0].data``. These two are asked with ``messages``, a user's and an assistant's turn, or without
    ``chat`` with ``input``, prompt and response in one text. ``model`` and further ``fields`` are added to the request,
    such as ``use_activation=False``. A server that cannot be reached or is busy is asked four times; what fails then
    counts in ``verifier_failures``.
    """
    return RewardModel(url, model, chat, headers or {}, fields)


def _http() -> Any:
    """The HTTP client that comes with huggingface_hub: httpx2 since its version 2, httpx before."""
    try:
        import httpx2
    except ModuleNotFoundError:
        import httpx

        return httpx
    return httpx2
