"""SIGTERM: a request to save and stop, on which all hosts agree."""

import itertools
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

Terminated = Callable[[], bool]
"""Whether SIGTERM has come. All hosts must ask equally often, and get the same answer."""


@contextmanager
def termination() -> Iterator[Terminated]:
    """Catches SIGTERM in the block, which asks whether it has come."""
    if jax.process_count() > 1:
        # The coordination service of jax.distributed catches the signal, on whichever host.
        # It names a question shortly ahead, by a number that must grow through all stages.
        asked = itertools.count()
        yield lambda: multihost_utils.reached_preemption_sync_point(next(asked))
        return
    came = False

    def note(signum: int, frame: object) -> None:
        nonlocal came
        came = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGTERM, before)
    # It came after the last step, when there was nothing left to stop here.
    if came and callable(before):
        before(signal.SIGTERM, None)
