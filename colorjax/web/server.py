"""Serves the page.

No visitor is trusted: only the page's own requests are answered (web/access.py), files outside its folder cannot be
read, nothing is fetched from elsewhere, and uploads, pixels, sessions and the queue have limits. A photo is deleted
half an hour after its last use.
"""

import contextlib
import ipaddress
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from colorjax.photos.predictor import Predictor
from colorjax.web import page as web_page
from colorjax.web.access import AccessControl

_log = logging.getLogger(__name__)

_SESSIONS = 32  # with a prediction in memory, some 20 MB each; the one longest unused makes room
_SPACE = 4 * 2**30  # bytes of files that are kept; no more are taken until some are deleted


@contextlib.contextmanager
def serving(
    predictor: Predictor,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_megabytes: int = 25,
    max_megapixels: int = 50,
    provenance: bool = True,
) -> Iterator[str]:
    """Serves the page while the context lasts.

    Args:
        predictor: colors the photos, one at a time.
        host: address to listen on; 127.0.0.1 is reached only from this machine.
        port: a free one.
        max_megabytes: of an uploaded file, 2**20 bytes each.
        max_megapixels: of a photo, 10**6 pixels each.
        provenance: whether a download's XMP records that the colorizer made its colors.

    Yields:
        The page's address.

    A process can serve one page at a time, since Gradio takes its folder from the environment.

    Raises:
        ImportError: if Gradio is not installed.
        OSError: if the port is taken.
    """
    if not _is_loopback(host):
        _log.warning(
            "The page listens on %s: anyone who reaches port %d of this machine can use it, without a password. "
            "--host=127.0.0.1 restricts it to this machine.",
            host,
            port,
        )
    max_bytes = max_megabytes * 2**20
    with tempfile.TemporaryDirectory(prefix="colorjax-") as name, _environment(folder := Path(name).resolve()):
        limits = {"max_bytes": max_bytes, "max_pixels": max_megapixels * 10**6}
        page = web_page.make_page(predictor, folder, **limits, provenance=provenance)
        from starlette.middleware import Middleware

        access = Middleware(AccessControl, folder=folder, functions=page.fns, max_bytes=max_bytes, space=_SPACE)
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                allowed_paths=[],
                max_file_size=max_bytes,
                state_session_capacity=_SESSIONS,
                enable_monitoring=False,
                run_history=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                footer_links=[],
                show_error=False,
                head=web_page.STYLE,
                theme=web_page.theme(),
                app_kwargs={"middleware": [access]},
            )
        except OSError as e:
            raise OSError(
                f"the page cannot be served on {host}, port {port}, which may be taken: give another --port ({e})"
            ) from e
        stop = threading.Event()
        threading.Thread(target=_delete_unused_files, args=(folder, stop), daemon=True).start()
        try:
            yield url
        finally:
            stop.set()
            page.close(verbose=False)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Sets the environment variables that keep Gradio from sending data, and from serving any other folder."""
    told = {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "GRADIO_ALLOWED_PATHS": "",
        "GRADIO_TEMP_DIR": str(folder),
    }
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _delete_unused_files(folder: Path, stop: threading.Event) -> None:
    """Deletes what was not used for `web_page.KEPT` seconds, until it is told to stop."""
    while not stop.wait(min(60, web_page.KEPT)):
        for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder comes before it
            with contextlib.suppress(OSError):  # used or deleted meanwhile
                if time.time() - path.lstat().st_mtime > web_page.KEPT:
                    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
