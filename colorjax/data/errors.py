"""Text from outside in error messages."""

from collections.abc import Sequence


def one_line(text: object, *, limit: int = 120) -> str:
    """An exception, or other text that holds what a file says, in one short line that any terminal can show."""
    line = " ".join(str(text).split())
    if isinstance(text, Exception):
        line = f"{type(text).__name__}: {line}"
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def first_few(items: Sequence[str]) -> str:
    """Up to two items, and how many more there are."""
    shown = ", ".join(one_line(item, limit=80) for item in items[:2]) or "none"
    return f"{shown} and {len(items) - 2} more" if len(items) > 2 else shown
