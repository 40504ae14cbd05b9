"""Where a colorizer is: the workdir of a run, an exported folder, or weights that ship with the package.

A name of shipped weights, such as `food101`, always means those weights, wherever the command is run. A folder of the
same name is written `./food101`.
"""

import logging
from pathlib import Path

import colorjax
from colorjax.run.config import STAGES
from colorjax.run.workdir import config_file, local_path

_log = logging.getLogger(__name__)

SHIPPED = Path(colorjax.__file__).parent / "weights"
"""The folder of the weights that ship: one exported folder for each name."""

DEFAULT = "food101"
"""The name of the weights that are used where none are named."""


def shipped_weights() -> dict[str, Path]:
    """The weights that ship, by name: their exported folders."""
    return {path.parent.name: path.parent for path in sorted(SHIPPED.glob("*/config.json"))}


def locate(checkpoint: str | Path | None = None) -> Path:
    """The folder of a colorizer.

    Args:
        checkpoint: the name of shipped weights, the workdir of a run, or an exported folder; None is `DEFAULT`. Text
            that is such a name means the shipped weights, even where there is a folder of that name: that folder is
            "./food101", or Path("food101").

    Raises:
        FileNotFoundError: if there is neither such a name nor such a folder.
        ValueError: for a URL, or a folder inside a run.
    """
    shipped = shipped_weights()
    known = f"shipped weights are {', '.join(shipped)}" if shipped else f"no weights are shipped in {SHIPPED}"
    if checkpoint is None:
        if DEFAULT not in shipped:
            raise FileNotFoundError(f"{known}: name a run's workdir or an exported folder")
        return shipped[DEFAULT]
    if isinstance(checkpoint, str) and checkpoint in shipped:
        if config_file(Path(checkpoint)).is_file():
            _log.warning("%s is the weights that ship; the folder of that name is ./%s", checkpoint, checkpoint)
        return shipped[checkpoint]
    path = local_path(checkpoint)
    run = run_around(path)
    if path.is_dir():
        if run:
            raise ValueError(f"{checkpoint} is inside a run: did you mean the folder above, {run}?")
        return path
    if run:
        raise FileNotFoundError(f"{checkpoint} does not exist: did you mean the folder above, {run}?")
    raise FileNotFoundError(f"{checkpoint} is neither a folder nor the name of shipped weights ({known})")


def run_around(path: Path) -> Path | None:
    """The workdir of the run that a path is inside of, as RUN/joint/checkpoints/400 is; None if it is in none."""
    path = path.absolute()
    for inside, run in zip((path, *path.parents), path.parents, strict=False):
        if inside.name in STAGES and config_file(run).is_file() and not config_file(path).is_file():
            return run
    return None
