"""The `colorjax` command: one module a subcommand, each a thin layer over the library."""

import importlib
import sys

COMMANDS = {
    "predict": "color photos and films",
    "train": "train both stages of a configuration",
    "evaluate": "measure a run on a whole split",
    "ablate": "run a study: rows of ablations, seeds, one report",
    "data": "decode a data set once, into a pack",
    "prior": "count the colors of a training split",
    "export": "write a colorizer for other programs",
    "demo": "serve a page to try a colorizer",
}
_USAGE = "usage: colorjax COMMAND …\n\n{}\n\n`colorjax COMMAND --help` says more."


def main() -> None:
    """Runs the subcommand that the command line names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    usage = _USAGE.format("\n".join(f"  {command:10}{what}" for command, what in COMMANDS.items()))
    if name in ("--help", "-h"):
        print(usage)
    elif name not in COMMANDS:
        sys.exit(f"colorjax: no command {name!r}; the commands are {', '.join(COMMANDS)}")
    else:
        # Only the module of the command is imported: each defines flags of its own.
        sys.argv = [f"colorjax {name}", *sys.argv[2:]]
        importlib.import_module(f"colorjax.cli.{name}").main()
