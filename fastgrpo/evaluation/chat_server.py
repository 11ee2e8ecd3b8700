"""A client of OpenAI's chat protocol, as vLLM's server and others speak it."""

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self

from fastgrpo.evaluation.settings import Settings

MAX_REPLY_TOKENS = 2048
RETRY_AFTER_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Waits before further tries of a request that timed out, or was answered with one of PASSING."""
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
OUR_MISTAKE = (301, 302, 303, 307, 308, 401, 403, 404, 405)


class _StayHere(urllib.request.HTTPRedirectHandler):
    """The key is for the server that was named, and for no other that it points to."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Refusal(str):
    """Why there is no reply to these words."""


@dataclass(frozen=True)
class ChatServer:
    url: str  # as http://localhost:8000/v1
    model: str
    key: str
    timeout_s: float

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Raises ValueError if the address is none, or the key's file cannot be read."""
        if not settings.behaviours.startswith(("http://", "https://")):
            raise ValueError(f"--behaviours must be like http://localhost:8000/v1, got {settings.behaviours!r}")
        key = ""
        if settings.behaviours_key_file:
            try:
                key = Path(settings.behaviours_key_file).read_text().strip()
            except OSError as error:
                raise ValueError(f"--behaviours_key_file cannot be read: {error}") from error
            if not (key.isascii() and key.isprintable()):
                raise ValueError("--behaviours_key_file must hold one line of printable ASCII")
        return cls(settings.behaviours.rstrip("/"), settings.behaviours_model, key, settings.behaviours_timeout_s)

    def chat(self, words: str, temperature: float, seed: int) -> "str | Refusal":
        """The reply to one user message; a Refusal if these words are not taken, as those that are too long.

        Raises ValueError if the server knows neither the path, nor the model, nor the key; ConnectionError if it does
        not answer in time, however often it is asked.
        """
        last = ""
        for wait_s in (0.0, *RETRY_AFTER_S):
            time.sleep(wait_s)
            try:
                return _content(self._post(words, temperature, seed))
            except urllib.error.HTTPError as error:
                said = error.read().decode("utf-8", "replace")[:500]
                if error.code in OUR_MISTAKE:
                    raise ValueError(f"{self.url} answers {error.code} to the model {self.model!r}: {said}") from error
                if error.code not in PASSING:
                    return Refusal(f"{error.code}: {said}")
                last = f"{error.code}: {said}"
            except (OSError, HTTPException, ValueError) as error:  # a timeout, a closed connection, half a reply
                last = f"{type(error).__name__}: {error}"
        raise ConnectionError(f"{self.url} gave no reply in {1 + len(RETRY_AFTER_S)} tries ({last})")

    def _post(self, words: str, temperature: float, seed: int) -> Any:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": words}],
            "temperature": temperature,
            "seed": seed,
            "max_tokens": MAX_REPLY_TOKENS,
        }
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.build_opener(_StayHere).open(request, timeout=self.timeout_s) as reply:
            return json.load(reply)


def _content(reply: Any) -> str:
    """Raises ValueError for what is no reply of this protocol."""
    try:
        content = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"no chat completion: {json.dumps(reply)[:200]}") from error
    if content is not None and not isinstance(content, str):
        raise ValueError(f"no text in the reply: {json.dumps(content)[:200]}")
    return content or ""  # null where a server parts the thinking from an answer that did not come
