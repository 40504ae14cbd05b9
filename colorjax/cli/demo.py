"""`colorjax demo`: serves a web page that colors photos."""

import argparse
import logging
import signal
import threading

from colorjax.cli.arguments import CHECKPOINT, Parser, number
from colorjax.cli.errors import as_usage_error

DESCRIPTION = """Serves a web page: drop a photo, see it gray and in color under a slider, download it at full size.

The page is reached only from this machine, unless --host says otherwise. It has no password. Photos stay on this
machine and are deleted after half an hour without use. It needs Gradio: `pip install gradio`."""

EXAMPLES = """
colorjax demo
colorjax demo --checkpoint=runs/paper --port=8000
colorjax demo --checkpoint=runs/paper --host=0.0.0.0 --max-megabytes=10
"""

_log = logging.getLogger(__name__)


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("--checkpoint", metavar="PATH", help=f"the colorizer: {CHECKPOINT}; by default food101")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is reached from other machines too")
    add("--port", type=number(int, 1, 65535), default=7860, help="port to listen on")
    add("--max-megabytes", type=number(int, 1), default=25, metavar="N", help="largest upload, in 2^20 bytes")
    add("--max-megapixels", type=number(int, 1), default=50, metavar="N", help="largest photo, in 10^6 pixels")
    add("--no-provenance", action="store_true", help="do not record in a download's XMP that a network made the colors")


def run(args: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C or SIGTERM."""
    import numpy as np

    from colorjax.cli.terminal import log_to_terminal
    from colorjax.photos.predictor import Predictor
    from colorjax.run.compilation import keep_compiled_programs
    from colorjax.run.locate import locate
    from colorjax.web.page import import_gradio
    from colorjax.web.server import serving

    log_to_terminal()
    keep_compiled_programs()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the page's folder is removed
    with as_usage_error(FileNotFoundError, ValueError, flag="--checkpoint"):
        folder = locate(args.checkpoint)
    import_gradio()  # an error before the colorizer is compiled
    try:
        predictor = Predictor(folder)
        _log.info("Compiling the colorizer…")
        predictor.colorize([np.zeros((1, 1, 3), np.uint8)])  # so that the first visitor does not wait for it
        limits = {"max_megabytes": args.max_megabytes, "max_megapixels": args.max_megapixels}
        provenance = not args.no_provenance
        with serving(predictor, host=args.host, port=args.port, **limits, provenance=provenance) as url:
            _log.info("The page is at %s; Ctrl-C ends it.", url)
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
