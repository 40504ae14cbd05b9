"""What the commands show on the terminal."""

import logging

import absl.logging


def log_to_terminal() -> None:
    """Shows colorjax's messages, and only the warnings of its libraries."""
    absl.logging.set_verbosity(absl.logging.WARNING)
    logging.getLogger("colorjax").setLevel(logging.INFO)
