"""`colorjax demo`: serves a page to try a colorizer."""

import logging
import signal
import sys
import threading

import numpy as np
from absl import app, flags

from colorjax.cli.terminal import log_to_terminal
from colorjax.photos.predictor import Predictor
from colorjax.run.compilation import keep_compiled_programs
from colorjax.web.page import serving

_log = logging.getLogger(__name__)


def main() -> None:
    """Runs the command."""
    flags.DEFINE_string("checkpoint", None, "The --workdir of train.py, or an exported folder.", required=True)
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on. 0.0.0.0: reached from other machines too.")
    flags.DEFINE_integer("port", 7860, "Port to listen on.", lower_bound=1, upper_bound=65535)
    flags.DEFINE_integer("max_megabytes", 25, "Longest upload, in units of 2**20 bytes.", lower_bound=1)
    flags.DEFINE_integer("max_megapixels", 50, "Largest photo, in units of 10**6 pixels.", lower_bound=1)
    app.run(_main)


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; see --help")
    log_to_terminal()
    keep_compiled_programs()
    given = flags.FLAGS
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that its folder is removed
    try:
        predictor = Predictor(given.checkpoint)
        predictor.colorize([np.zeros((1, 1, 3), np.uint8)])  # compiles, so that the first visitor does not wait for it
        limits = {"max_megabytes": given.max_megabytes, "max_megapixels": given.max_megapixels}
        with serving(predictor, host=given.host, port=given.port, **limits) as url:
            _log.info("The page is at %s; Ctrl-C ends it.", url)
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
    except (ImportError, OSError) as e:
        sys.exit(f"error: {e}")
