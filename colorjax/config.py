"""The configuration beside the checkpoints: config.json, by which a run knows itself."""

import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

Config = Any
"""A locked ConfigDict of configs/paper.py's fields, or one of its sections; its fields have no static types."""


def claim(config: Config, workdir: Path) -> None:
    """Writes the configuration into the workdir, or compares it with the one that is there.

    Raises:
        ValueError: if they differ in anything but `stage`: lists the differences.
    """
    path = workdir / "config.json"
    if path.exists():
        there, now = flat(json.loads(path.read_text())), flat(json.loads(config.to_json()))
        differing = [
            f"  {key}: {there.get(key, 'absent')!r} there, {now.get(key, 'absent')!r} now"
            for key in sorted(there.keys() | now.keys())
            if key != "stage" and there.get(key) != now.get(key)
        ]
        if differing:
            raise ValueError(
                f"{workdir} belongs to a run with another configuration:\n"
                + "\n".join(differing)
                + "\nTake another --workdir, or the configuration that is there."
            )
    elif jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        save_config(config, workdir)


def save_config(config: Config, folder: Path) -> None:
    """Writes config.json into a folder, over what is there."""
    path = folder / "config.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(json.loads(config.to_json()), indent=2) + "\n")
    temporary.replace(path)


def load_config(folder: Path) -> Config:
    """The configuration that a run, or the colorizer of an exported folder, was trained with.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is damaged.
    """
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {folder} is neither the workdir of a run nor an exported folder")
    try:
        return ConfigDict(json.loads(path.read_text())).lock()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: it is no configuration in JSON ({error})") from error


def flat(tree: dict, prefix: str = "") -> dict[str, object]:
    """Nested dicts as one, keyed by dotted names."""
    fields: dict[str, object] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        fields |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return fields
