"""SIGTERM and SIGINT, in processes that do what a training does."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from colorjax.training.termination import GRACE, termination

# `blocked` never returns from C, where Python handles no signal, as in XLA's compiler.
_SCRIPT = """
import ctypes, signal, sys, threading, time
from colorjax.training.termination import termination

def ready():
    print("ready", flush=True)

def blocked():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)

def python():
    ready()
    time.sleep(100)

def compiler():
    ready()
    blocked()

def background_save():
    saved = threading.Event()
    threading.Thread(target=lambda: (time.sleep(SAVE), print("saved", flush=True), saved.set()), daemon=True).start()
    stop.saving = lambda: not saved.is_set()
    ready()
    blocked()

def steps():
    stop.hold()
    ready()
    while not stop.requested():
        time.sleep(0.01)
    time.sleep(SAVE)
    print("saved", flush=True)
    stop.release()
    print("not reached", flush=True)

def nested():
    with termination(signal.SIGTERM) as inner:
        assert inner is stop
    ready()
    time.sleep(100)

SAVE = float(sys.argv[2])
with termination(signal.SIGTERM, signal.SIGINT) as stop:
    globals()[sys.argv[1]]()
"""


@dataclass
class _Case:
    """What a process does, the signals that it gets, and how it must end.

    Attributes:
        doing: a function of the script.
        signals: sent one after the other.
        status: the exit status.
        within: seconds from the last signal.
        printed: after "ready".
    """

    doing: str
    signals: tuple[int, ...]
    status: int
    within: float
    printed: str = ""


_SAVE = GRACE + 2
_SLACK = 4  # seconds, on a busy machine
_CASES = [
    _Case("python", (signal.SIGTERM,), 143, _SLACK),
    _Case("python", (signal.SIGINT,), 130, _SLACK),
    _Case("nested", (signal.SIGTERM,), 143, _SLACK),
    _Case("compiler", (signal.SIGTERM,), 143, GRACE + _SLACK),
    _Case("compiler", (signal.SIGINT, signal.SIGINT), 130, _SLACK),
    _Case("background_save", (signal.SIGTERM,), 143, _SAVE + GRACE + _SLACK, "saved\n"),
    _Case("steps", (signal.SIGTERM,), 143, _SAVE + _SLACK, "saved\n"),
    _Case("steps", (signal.SIGINT, signal.SIGINT), 130, _SLACK),
]


def _run(case: _Case) -> tuple[int, str, str, float]:
    """The exit status, the output, the errors, and the seconds from the last signal to the end."""
    # A shell's background job ignores SIGINT, and so would its children.
    command = ["env", "--default-signal=INT", sys.executable, "-c", _SCRIPT, case.doing, str(_SAVE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for number in case.signals:
            time.sleep(0.2)  # two of a kind at once are one
            process.send_signal(number)
        sent = time.monotonic()
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        return process.returncode, out, err, time.monotonic() - sent


@pytest.mark.slow
def test_a_signal_ends_the_process_in_time_and_after_its_save() -> None:
    """All cases at once, since they mostly wait."""
    with ThreadPoolExecutor(len(_CASES)) as threads:
        for case, (status, out, err, seconds) in zip(_CASES, threads.map(_run, _CASES), strict=True):
            assert status == case.status, (case, err)
            assert out == case.printed, case
            assert seconds < case.within, case


def test_a_block_restores_the_handlers() -> None:
    def handlers() -> tuple[object, ...]:
        wakeup = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakeup)
        return wakeup, signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    before = handlers()
    with termination(signal.SIGTERM) as stop:
        assert signal.getsignal(signal.SIGINT) == before[2]
        stop.hold()
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested()
        with pytest.raises(SystemExit) as ended:
            stop.release()
    assert ended.value.code == 143
    assert handlers() == before


def test_a_signal_in_a_callback_ends_the_process_without_a_traceback() -> None:
    """Python drops an exception that a callback of the garbage collector raises."""
    script = (
        "import gc, os, signal, time\n"
        "from colorjax.training.termination import termination\n"
        "def callback(phase, info):\n"
        "    gc.callbacks.remove(callback)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "with termination(signal.SIGTERM):\n"
        "    gc.callbacks.append(callback)\n"
        "    gc.collect()\n"
        "    time.sleep(100)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in done.stderr
