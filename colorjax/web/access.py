"""Which of Gradio's requests a page's visitors can make: those of the page itself, for its own files, and no others."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

# What the page shows when it refuses an upload. Gradio has a message of its own for a file that is too long.
_MESSAGES = {
    503: "The server is busy with other uploads. Please try again in a minute.",
    507: "The server holds as many photos as it can. Please try again in half an hour.",
}


class AccessControl:
    """Passes the requests that the page makes on to Gradio, and answers all others itself.

    Gradio also fetches addresses on a client's behalf, forwards, records, and serves code and settings. What is not a
    request of the page is answered with 404, a file outside the page's folder with 403, a request that would make
    the server fetch an address with 403, one for a function that the page does not have with 400, and one that is too
    long with 413. A request is passed on only when all of it has arrived, so that a connection that is dropped leaves
    nothing behind.
    """

    _READ = frozenset(
        ["/", "/config", "/theme.css", "/favicon.ico", "/manifest.json"]
        + [f"/gradio_api/{name}" for name in ("info", "startup-events", "upload_progress", "queue/data")]
    )
    _READ_BELOW = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
    _WRITTEN = frozenset(f"/gradio_api/{name}" for name in ("upload", "queue/join", "cancel", "reset"))
    _FILE = "/gradio_api/file="
    _MARGIN = 2**16  # bytes: a request without a file, or what a form adds to one
    _SECONDS = 300  # in which a request has to arrive
    _ARRIVING = 16  # of the longest uploads; more bytes are not held in memory at once

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        *,
        folder: Path,
        functions: Collection[int],
        max_bytes: int,
        space: int,
    ):
        """Args:
        app: Gradio's ASGI application.
        folder: of the page's files.
        functions: the indices of the page's functions.
        max_bytes: of an upload.
        space: bytes that the folder may take before uploads are refused.
        """
        self._app, self._folder, self._functions = app, folder, functions
        self._max_bytes, self._space = max_bytes, space
        self._arriving = 0  # bytes of requests that have not arrived yet

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":  # no WebSocket is used
            length = dict(scope["headers"]).get(b"content-length")
            status = self._refusal(scope["method"], scope["path"], length)
            if status is None and scope["method"] == "POST":
                body = await self._body(receive, int(length or 0))
                if body is None:
                    return  # the visitor is gone
                if scope["path"] == "/gradio_api/queue/join":
                    status = self._refusal_of_call(body)
                receive = _replayed(body, receive)
            if status is None:
                await self._app(scope, receive, send)
            else:
                await _answer(send, status)

    def _refusal(self, method: str, path: str, length: bytes | None) -> int | None:
        """The status that a request is refused with, by its head alone; None if it is not."""
        if method in ("GET", "HEAD"):
            if path in self._READ or path.startswith(self._READ_BELOW):
                return None
            if path.startswith(self._FILE):
                return None if self._is_in_folder(path.removeprefix(self._FILE)) else 403
            return 404
        if method != "POST" or path not in self._WRITTEN:
            return 404
        if length is None:
            return 411
        is_upload = path == "/gradio_api/upload"
        if int(length) > self._MARGIN + (self._max_bytes if is_upload else 0):
            return 413
        if self._arriving + int(length) > self._ARRIVING * (self._MARGIN + self._max_bytes):
            return 503
        return 507 if is_upload and self._bytes_in_folder() > self._space else None

    def _refusal_of_call(self, body: bytes) -> int | None:
        """The status that a call of a function is refused with; None if it is not."""
        try:
            call = json.loads(body)
        except ValueError:
            return None  # Gradio answers that it is not JSON
        except RecursionError:
            return 403
        if _names_address(call):
            return 403
        index = call.get("fn_index") if isinstance(call, dict) else None
        return None if type(index) is int and index in self._functions else 400

    async def _body(self, receive: Any, length: int) -> bytes | None:
        """All of a request's body; None if the visitor leaves before it has arrived, or takes too long."""
        body, more = bytearray(), True
        self._arriving += length
        try:
            async with asyncio.timeout(self._SECONDS):
                while more:
                    part = await receive()
                    if part["type"] == "http.disconnect":
                        return None
                    body += part.get("body", b"")
                    more = part.get("more_body", False)
        except TimeoutError:
            return None
        finally:
            self._arriving -= length
        return bytes(body)

    def _is_in_folder(self, path: str) -> bool:
        try:
            return Path(path).resolve().is_relative_to(self._folder)
        except (OSError, ValueError, RuntimeError):  # not a path, or a loop of links
            return False

    def _bytes_in_folder(self) -> int:
        total = 0
        for path in self._folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                total += path.stat().st_size
        return total


async def _answer(send: Any, status: int) -> None:
    text = (_MESSAGES.get(status) or HTTPStatus(status).phrase).encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def _replayed(body: bytes, receive: Any) -> Callable[[], Awaitable[Any]]:
    """A `receive` that gives a body which was received already, then continues with the given one."""
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_part() -> Any:
        return parts.pop() if parts else await receive()

    return next_part


def _names_address(call: Any) -> bool:
    """Whether a file in a call is an address, which Gradio would fetch."""
    left = [call]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if "://" in str(value.get("path")):
                return True
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return False
