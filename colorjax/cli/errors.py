"""How the commands end: a user's mistake is one line on standard error, and only a bug shows a traceback."""

import contextlib
import dis
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator

_LONGEST = 300  # characters of an error's line


class UsageError(Exception):
    """A wrong argument; the message names its flag, the value and the remedy. The command exits with status 2."""


def run_command(command: Callable[[], int | None], *, debug: bool) -> int:
    """Runs a command, and returns its exit status: 0, 1 if its work failed, 2 for wrong arguments, 130 for Ctrl-C.

    Errors that a user can cause are printed as one line. A bug, and with `debug` every error, is raised.

    Args:
        command: returns its exit status, None for 0.
        debug: whether errors are raised with their traceback.
    """
    try:
        status = command() or 0
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `colorjax … | head` has read enough
        discard_stdout()
        return 1
    except Exception as error:
        if debug or not _is_expected(error):
            raise
        print_error(one_line(error))
        return 2 if isinstance(error, UsageError) else 1
    return status


@contextlib.contextmanager
def as_usage_error(*types: type[Exception], flag: str = "") -> Iterator[None]:
    """Errors of these types, raised inside, are the fault of a flag; its name is put before their message."""
    try:
        yield
    except types as error:
        raise UsageError(f"{flag}: {one_line(error)}" if flag else one_line(error)) from error


def one_line(error: object) -> str:
    """An error's message in one line of at most 300 characters, which cannot control the terminal."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    text = printable("; ".join(line.strip() for line in text.splitlines() if line.strip()).replace(":;", ":"))
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 101]} … {text[-98:]}"
    return text or type(error).__name__


def printable(text: str) -> str:
    """The text with its control characters escaped: a file's name may hold codes that a terminal would obey."""
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c).startswith("C") else c for c in text)


def print_error(line: str) -> None:
    """Prints `error: …` on standard error, if that is still open."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(f"error: {line}", file=sys.stderr, flush=True)


def discard_stdout() -> None:
    """Lets Python end without a complaint about a standard output that was closed."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_expected(error: Exception) -> bool:
    """Whether a user can have caused the error: colorjax raised it, or it is about files, packages or memory."""
    if isinstance(error, ImportError):
        return not (error.name or "").startswith("colorjax")
    if isinstance(error, (UsageError, OSError, MemoryError)) or "RESOURCE_EXHAUSTED" in str(error):
        return True
    return isinstance(error, (ValueError, NotImplementedError, FloatingPointError)) and _is_raised_by_colorjax(error)


def _is_raised_by_colorjax(error: Exception) -> bool:
    """Whether a `raise` of the package raised it, and not a library that the package calls.

    The traceback's last frame is not enough: JAX removes its own frames, so that its errors end in ours.
    """
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    raises = last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return raises and last.tb_frame.f_globals.get("__name__", "").startswith("colorjax.")
