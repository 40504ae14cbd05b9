"""What of Gradio's server a page's visitors reach: the page's own requests, its own files, and nothing else."""

import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

# What the page shows of an upload that is refused; Gradio itself says so of a file too long.
_SAID = {507: "The server holds as many photos as it can. Please try again in half an hour."}


class Gate:
    """Lets through the requests that the page makes, and nothing else of what Gradio answers.

    Gradio also fetches addresses on a client's behalf, forwards, records, and serves code and settings. What names no
    request of the page is answered by 404; a file, by Gradio, if it lies in the page's own folder; a request that would
    have the server fetch an address is refused, and so is one too long.
    """

    _READ = frozenset(
        ["/", "/config", "/theme.css", "/favicon.ico", "/manifest.json"]
        + [f"/gradio_api/{name}" for name in ("info", "startup-events", "upload_progress", "queue/data")]
    )
    _READ_BELOW = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
    _WRITTEN = frozenset(f"/gradio_api/{name}" for name in ("upload", "queue/join", "cancel", "reset"))
    _FILE = "/gradio_api/file="
    _MARGIN = 2**16  # bytes: a request without a file, or what a form adds to one

    def __init__(self, app: Callable[..., Awaitable[None]], *, folder: Path, max_bytes: int, space: int):
        """Args:
        app: Gradio's, an ASGI application.
        folder: of the page's files.
        max_bytes: of an upload.
        space: bytes that the folder may take before uploads are refused.
        """
        self._app, self._folder, self._max_bytes, self._space = app, folder, max_bytes, space

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            status = self._refused(scope["method"], scope["path"], dict(scope["headers"]).get(b"content-length"))
            if status is None and scope["path"] == "/gradio_api/queue/join":
                body = await _whole(receive)
                if _names_address(body):
                    status = 403
                receive = _again(body, receive)
            if status is not None:
                text = (_SAID.get(status) or HTTPStatus(status).phrase).encode()
                headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text))]
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": text})
                return
        elif scope["type"] != "lifespan":
            return  # no WebSocket is used
        await self._app(scope, receive, send)

    def _refused(self, method: str, path: str, length: bytes | None) -> int | None:
        if method in ("GET", "HEAD"):
            if path in self._READ or path.startswith(self._READ_BELOW):
                return None
            if path.startswith(self._FILE):
                return None if self._owns(path.removeprefix(self._FILE)) else 403
            return 404
        if method != "POST" or path not in self._WRITTEN:
            return 404
        if length is None:
            return 411
        uploads = path == "/gradio_api/upload"
        if int(length) > self._MARGIN + (self._max_bytes if uploads else 0):
            return 413
        return 507 if uploads and self._taken() > self._space else None

    def _owns(self, path: str) -> bool:
        try:
            return Path(path).resolve().is_relative_to(self._folder)
        except (OSError, ValueError):  # no path at all
            return False

    def _taken(self) -> int:
        taken = 0
        for path in self._folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                taken += path.stat().st_size
        return taken


async def _whole(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        part = await receive()
        body += part.get("body", b"")
        more = part.get("more_body", False)
    return body


def _again(body: bytes, receive: Any) -> Callable[[], Awaitable[Any]]:
    """What gives the body that was taken, then goes on."""
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_part() -> Any:
        return parts.pop() if parts else await receive()

    return next_part


def _names_address(body: bytes) -> bool:
    """Whether a file in a JSON request lies elsewhere in the network, so that Gradio would fetch it."""
    try:
        left = [json.loads(body)]
    except ValueError:
        return False  # Gradio answers that it is no JSON
    except RecursionError:
        return True
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if "://" in str(value.get("path")):
                return True
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return False
