"""A small server that scores responses as vLLM does."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Answers with what stands first in ``answers`` (status, body), else with the length of what was asked."""

    request_queue_size = 128  # as many may connect at once

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.answers: list[tuple[int, Any]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body, dict(self.headers)))
        status, found = self.server.answers.pop(0) if self.server.answers else (200, scored(self.path, body))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def scored(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The length of what was asked as its score; of a judge, whether the last message is of even length."""
    last = body.get("messages", [{}])[-1].get("content", "")
    match path:
        case "/score":
            return {"data": [{"score": len(body["text_2"])}]}
        case "/classify":
            return {"data": [{"probs": [0.0, len(last)]}]}
        case "/v1/pooling":
            return {"data": [{"data": [[0.0], [len(body["input"])]]}]}
        case "/v1/chat/completions":
            message = {"role": "assistant", "content": "No." if len(last) % 2 else "Yes."}
            return {"choices": [{"index": 0, "message": message}]}
    raise AssertionError(path)
