"""A client of OpenAI's chat protocol, which vLLM's server and others have too."""

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
"""Waiting times before further tries of a request that timed out or was answered with a temporary status."""
TEMPORARY_STATUSES = (408, 409, 425, 429, 500, 502, 503, 504)
WRONG_SETTING_STATUSES = (301, 302, 303, 307, 308, 401, 403, 404, 405)
"""The address, the model or the key that the user gave is wrong: every request would fail."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key is meant for the named server alone."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Refusal(str):
    """The reason why the server gave no reply to this prompt."""


@dataclass(frozen=True)
class ChatServer:
    """A server, and the model there that is asked."""

    url: str  # such as http://localhost:8000/v1
    model: str
    key: str
    timeout_s: float

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The server of the settings. Raises ValueError if the address is no URL or the key's file cannot be read."""
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

    def chat(self, prompt: str, temperature: float, seed: int) -> "str | Refusal":
        """The reply to one user message; a Refusal if the server does not take this message, which may be too long.

        Raises ValueError if the server does not know the path, the model or the key; ConnectionError if no try is
        answered in time.
        """
        last = ""
        for wait_s in (0.0, *RETRY_AFTER_S):
            time.sleep(wait_s)
            try:
                return _content(self._post(prompt, temperature, seed))
            except urllib.error.HTTPError as error:
                body = error.read().decode("utf-8", "replace")[:500]
                if error.code in WRONG_SETTING_STATUSES:
                    raise ValueError(f"{self.url} answers {error.code} to the model {self.model!r}: {body}") from error
                if error.code not in TEMPORARY_STATUSES:
                    return Refusal(f"{error.code}: {body}")
                last = f"{error.code}: {body}"
            except (OSError, HTTPException, ValueError) as error:  # a timeout, a closed connection, half a reply
                last = f"{type(error).__name__}: {error}"
        raise ConnectionError(f"{self.url} gave no reply in {1 + len(RETRY_AFTER_S)} tries ({last})")

    def _post(self, prompt: str, temperature: float, seed: int) -> Any:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "seed": seed,
            "max_tokens": MAX_REPLY_TOKENS,
        }
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=self.timeout_s) as reply:
            return json.load(reply)


def _content(reply: Any) -> str:
    """The text of a reply. Raises ValueError for what is no reply of this protocol."""
    try:
        content = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"no chat completion: {json.dumps(reply)[:200]}") from error
    if content is not None and not isinstance(content, str):
        raise ValueError(f"no text in the reply: {json.dumps(content)[:200]}")
    return content or ""  # null where a server separates thinking from the answer, and no answer came
