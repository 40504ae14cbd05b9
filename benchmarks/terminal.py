"""Draws docs/terminal.svg: what a terminal shows while `colorjax train` runs, and when it has ended.

    python -m benchmarks terminal --out=docs/terminal.svg

A short training of the quickstart runs in a pseudoterminal, in a temporary folder. The picture has the screen in the
middle of the joint stage, a line of dots, and what was on the screen below it at the end.
"""

import argparse
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

from benchmarks.measure import REPOSITORY
from colorjax.cli.arguments import Parser

_COLUMNS = 110
_FLAGS = ["--config.pretrain.steps=40", "--config.joint.steps=80", "--config.joint.eval_every=40"]
_SHOWN = re.compile(r"joint .* (4[5-9]|5\d|6\d)/80")  # the progress bar at these steps


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the picture, SVG")


def run(args: argparse.Namespace) -> None:
    """Trains, and draws the screen."""
    written, middle = "", []
    with tempfile.TemporaryDirectory() as folder:
        shown, hidden = pty.openpty()
        fcntl.ioctl(hidden, termios.TIOCSWINSZ, struct.pack("HHHH", 50, _COLUMNS, 0, 0))
        command = [sys.executable, "-m", "colorjax", "train", *_FLAGS]
        # On a busy machine XLA complains of its own slowness.
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3"}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=hidden, stderr=hidden)
        os.close(hidden)
        while True:
            try:
                written += os.read(shown, 65536).decode(errors="replace")
            except OSError:  # the process has ended
                break
            redrawn = screen(written.rpartition("\r")[0])  # what follows may be half a line
            if not middle and _SHOWN.match(redrawn[-1]):
                middle = redrawn
        os.close(shown)
    if process.wait() or not middle:
        raise RuntimeError(f"the training failed:\n{written[-2000:]}")
    lines = [f"$ colorjax train {' '.join(_FLAGS)}", *middle, " ⋮", *screen(written)[len(middle) - 1 :]]
    console = Console(record=True, width=_COLUMNS, file=io.StringIO())
    console.print(Text("\n".join(lines).rstrip()))
    # Without the font that a browser would fetch.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="colorjax"), flags=re.S)
    args.out.write_text(svg.replace("Fira Code", "DejaVu Sans Mono"))


def screen(written: str) -> list[str]:
    """The lines on a terminal: what follows a carriage return replaces what is before it."""
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written).replace("\r\n", "\n").split("\n")
    return [([part.rstrip() for part in line.split("\r") if part.strip()] or [""])[-1] for line in lines]
