"""Where a colorizer is: the workdir of a run, an exported folder, or weights that ship with the package."""

from pathlib import Path

import colorjax
from colorjax.run.config import STAGES
from colorjax.run.workdir import config_file, local_path

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
        checkpoint: the workdir of a run, an exported folder, or the name of shipped weights; None is `DEFAULT`. A
            folder that exists goes before a name.

    Raises:
        FileNotFoundError: if there is neither such a folder nor such a name.
        ValueError: for a URL, or a folder inside a run.
    """
    name = DEFAULT if checkpoint is None else str(checkpoint)
    path = local_path(name)
    if checkpoint is not None and path.is_dir():
        if run := run_around(path):
            raise ValueError(f"{checkpoint} is inside a run: did you mean the folder above, {run}?")
        return path
    shipped = shipped_weights()
    if name in shipped:
        return shipped[name]
    known = f"shipped weights are {', '.join(shipped)}" if shipped else f"no weights are shipped in {SHIPPED}"
    if checkpoint is None:
        raise FileNotFoundError(f"{known}: name a run's workdir or an exported folder")
    if run := run_around(path):
        raise FileNotFoundError(f"{checkpoint} does not exist: did you mean the folder above, {run}?")
    raise FileNotFoundError(f"{checkpoint} is neither a folder nor the name of shipped weights ({known})")


def run_around(path: Path) -> Path | None:
    """The workdir of the run that a path is inside of, as RUN/joint/checkpoints/400 is; None if it is in none."""
    path = path.absolute()
    for inside, run in zip((path, *path.parents), path.parents, strict=False):
        if inside.name in STAGES and config_file(run).is_file() and not config_file(path).is_file():
            return run
    return None
