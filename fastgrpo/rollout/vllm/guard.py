"""Closes all of a server but what a run asks it: vLLM's own key guards only some of its routes."""

from collections.abc import Awaitable, Callable
from typing import Any

OPEN = ("/health",)
GUARDED = "/inference/"  # by vLLM, with the key

Scope = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Any, Send], Awaitable[None]]


class OnlyForRuns:
    """ASGI middleware, for vLLM's ``--middleware``: any other path is not found, as `/invocations`, which draws tokens
    for everybody."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        path = str(scope.get("path", ""))
        if scope["type"] == "lifespan" or path in OPEN or (scope["type"] == "http" and path.startswith(GUARDED)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close"})
