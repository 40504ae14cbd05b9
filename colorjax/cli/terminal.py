"""What the commands show on the terminal."""

import logging
import sys

import absl.logging
from tqdm import tqdm


class _Lines(logging.Handler):
    """Prints messages on standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + self.format(record), file=sys.stderr)


def log_to_terminal() -> None:
    """Shows colorjax's messages without a prefix, and only the warnings of its libraries."""
    absl.logging.set_verbosity(absl.logging.WARNING)
    logging.getLogger("colorjax").setLevel(logging.INFO)
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:  # importing Orbax leaves one, and each message would come twice
            root.removeHandler(handler)
    if not any(isinstance(handler, _Lines) for handler in root.handlers):
        root.addHandler(_Lines())
