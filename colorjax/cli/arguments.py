"""What the commands' arguments share: the parser, and the types of values."""

import argparse
import difflib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from colorjax.cli.errors import UsageError

CHECKPOINT = "a run's workdir, an exported folder, or the name of weights that ship (`colorjax weights`)"
"""What --checkpoint takes, in words."""


class Parser(argparse.ArgumentParser):
    """Parses a command's arguments; a mistake is a UsageError.

    `--batch_size` is taken for `--batch-size`. Where there is a flag `--config`, the `--config.FIELD=VALUE` are
    collected in `overrides`, a dict of text by field.
    """

    def __init__(self, command: str, *, description: str, examples: str):
        """Args:
        command: "colorjax train".
        description: what it does.
        examples: command lines, one a line.
        """
        super().__init__(
            command,
            description=description,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines()),
            formatter_class=_Help,
            allow_abbrev=False,
        )
        self._optionals.title = "flags"

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments, and `overrides`.

        Raises:
            UsageError: for a flag that does not exist, lacks its value, or has one that it does not take.
        """
        arguments, overrides = [], {}
        rest = list(argv)
        has_config = "--config" in self._option_string_actions
        while rest:
            argument = rest.pop(0)
            if argument == "--":
                arguments += [argument, *rest]
                break
            name, equals, value = argument.partition("=")
            if has_config and name.startswith("--config."):
                if not equals:
                    value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
                overrides[name.removeprefix("--config.")] = value
            elif name.startswith("--"):
                arguments.append(name.replace("_", "-") + equals + value)
            else:
                arguments.append(argument)
        args, unknown = self.parse_known_args(arguments)
        if unknown:
            flag = unknown[0].partition("=")[0]
            close = did_you_mean(flag, self._option_string_actions)
            raise UsageError(f"{flag} is not an argument of {self.prog}{close or f'; {self.prog} --help lists them'}")
        args.overrides = overrides
        return args

    def error(self, message: str) -> Any:
        """Raises the message as a UsageError."""
        message = re.sub(r"^argument (--[\w-]+)(/\S+)?:", r"\1:", message)
        raise UsageError(f"{message} ({self.prog} --help)")


class _Help(argparse.HelpFormatter):
    """Keeps paragraphs and examples, and adds the default value to a flag's help, if there is one."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(p if "\n  " in p else fill(p, width, indent) for p in text.split("\n\n"))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        if text and action.option_strings and action.default not in (None, False, argparse.SUPPRESS):
            text += " (default: %(default)s)"
        return text


def did_you_mean(given: str, known: Any) -> str:
    """ "; did you mean X?" for the most similar name, or "" if none is similar."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def number(kind: type, least: float, most: float = math.inf, *, multiple: int = 1) -> Callable[[str], Any]:
    """An argparse type: an int or float from `least` to `most`, a multiple of `multiple`."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (least <= value <= most and math.isfinite(value)) or (kind is int and value % multiple):
            what = f"multiple of {multiple}" if multiple > 1 else "whole number" if kind is int else "number"
            ends = f"of {least} or more" if most == math.inf else f"between {least} and {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a {what} {ends}")
        return value

    return parse


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """An argparse type: values of another type, separated by commas."""
    return lambda text: [kind(part.strip()) for part in text.split(",") if part.strip()]


def folder(text: str) -> Path:
    """An argparse type: a folder that exists or can be made.

    Raises:
        argparse.ArgumentTypeError: for a URL, or where there is a file of this name or of one of its parents'.
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is a URL; give a folder of this machine")
    path = Path(text).expanduser()
    try:
        if file := next((str(x) for x in (path, *path.parents) if x.exists() and not x.is_dir()), ""):
            raise argparse.ArgumentTypeError(f"{file!r} is a file; give a folder")
    except OSError as error:  # a name that is too long, a folder without permission
        raise argparse.ArgumentTypeError(f"{text!r}: {error.strerror}") from error
    return path


def workdir(text: str) -> Path:
    """An argparse type: the workdir of a run, which may not exist yet.

    Raises:
        argparse.ArgumentTypeError: as `folder`, and for a folder inside another run.
    """
    from colorjax.run.locate import run_around

    path = folder(text)
    if run := run_around(path):
        raise argparse.ArgumentTypeError(f"{text!r} lies inside a run; did you mean the folder above, {str(run)!r}?")
    return path


def existing_run(text: str) -> Path:
    """An argparse type: the workdir of a run, an exported folder, or the name of weights that ship.

    Raises:
        argparse.ArgumentTypeError: as `workdir`, and if there is no such folder.
    """
    from colorjax.run.locate import shipped_weights

    if text in (shipped := shipped_weights()):
        return shipped[text]
    path = workdir(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} does not exist; give the --workdir of a run")
    return path
