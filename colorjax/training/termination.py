"""SIGTERM and SIGINT: the process saves what is unsaved, and ends."""

import itertools
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

GRACE = 5.0
"""Seconds that a process without unsaved work may take to end by itself before it is ended."""


class Termination:
    """A signal's way to the end of the process.

    With nothing unsaved a signal raises SystemExit in the main thread, or ends the process after GRACE if the main
    thread does not react, since Python handles no signal while XLA compiles. Between `hold` and `release` it does
    neither: the training loop asks `requested` after each step, saves, and calls `exit`.

    With several hosts jax.distributed catches SIGTERM, and all hosts stop at the same step.

    Attributes:
        saving: whether a save is running in the background; the process is not ended meanwhile.
    """

    def __init__(self) -> None:
        self.saving: Callable[[], bool] = lambda: False
        self._signal: int | None = None
        self._held = False
        # The coordination service agrees on a question by its number, which must grow through all stages.
        self._questions = itertools.count()

    def hold(self) -> None:
        """From here on there is unsaved work."""
        self._held = True

    def release(self) -> None:
        """From here on there is none.

        Raises:
            SystemExit: if a signal has come meanwhile.
        """
        self._held = False
        if self._signal is not None:
            self.exit()

    def requested(self) -> bool:
        """Whether the process is to end. All hosts must ask equally often, and get the same answer."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(next(self._questions))
        return self._signal is not None

    def exit(self) -> NoReturn:
        """Ends the process by SystemExit with the signal's exit code, 143 or 130."""
        self._held = False
        raise SystemExit(128 + (self._signal or signal.SIGTERM))

    def _handle(self, signum: int, frame: object) -> None:
        first, self._signal = self._signal is None, self._signal or signum
        if first and not self._held:
            self.exit()

    def _watch(self, received: socket.socket, signals: tuple[int, ...]) -> None:
        """Ends the process where the main thread does not; runs in a thread, until nothing more can be received."""
        first, deadline = 0, math.inf
        while time.monotonic() < deadline:
            if select.select([received], [], [], 0.1 if first else None)[0]:
                number = int.from_bytes(received.recv(1))
                if number == 0:
                    return
                if number in signals:
                    if first and number == signal.SIGINT:
                        break
                    first = first or number
            if first and (deadline == math.inf or self._held or self.saving()):
                deadline = time.monotonic() + GRACE
        # Not by logging, whose locks the main thread may hold.
        os.write(2, b"stopped; the same command goes on from the newest checkpoint\n")
        os._exit(128 + first)


_active: Termination | None = None


@contextmanager
def termination(*signals: int) -> Iterator[Termination]:
    """Handles signals in the block; a block inside another one takes part in the outer one.

    Args:
        signals: SIGTERM, SIGINT or both. A second SIGINT ends the process at once.
    """
    global _active
    if _active or jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield _active or Termination()
        return
    _active = current = Termination()
    received, sent = socket.socketpair()
    sent.setblocking(False)
    # A shell's background job ignores SIGINT, and goes on to.
    handled = tuple(number for number in signals if signal.getsignal(number) != signal.SIG_IGN)
    # Python writes a signal's number there as it comes, whatever the main thread does.
    wakeup = signal.set_wakeup_fd(sent.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, current._handle) for number in handled}
    report = sys.unraisablehook

    def report_others(error: Any) -> None:
        # SystemExit goes no further than a callback of the garbage collector. The watcher ends the process then.
        if error.exc_type is not SystemExit:
            report(error)

    sys.unraisablehook = report_others
    watcher = threading.Thread(target=current._watch, args=(received, handled), daemon=True)
    watcher.start()
    try:
        yield current
    finally:
        _active = None
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        sent.close()
        watcher.join()
        received.close()
