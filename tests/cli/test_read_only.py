"""A folder that cannot be written to, as on a read-only disk: refused in one line, before the work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from colorjax.run.workdir import save_config
from configs import quickstart

REPOSITORY = Path(__file__).resolve().parents[2]
# Permissions bind root, as which the tests may run, only without these.
_LIKE_A_USER = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
_RUN = """
import os, sys
from colorjax.cli import main
for command in ("train", "predict", "evaluate", "export"):
    try:
        main([command, *os.environ[command].split()])
    except SystemExit as end:
        print(f"{command} ends with {end.code}", file=sys.stderr, flush=True)
"""


def _content(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(exists: bool, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    save_config(quickstart.get_config(), closed)
    (closed / ".lock").touch()
    out = closed if exists else closed / "new" / "folder"
    arguments = {
        "train": f"--config=configs/quickstart.py --workdir={out}",
        "predict": f"docs/gallery/coffee.jpg --out={out}",
        "evaluate": f"--out={out}",
        "export": f"--format=npz --out={closed / 'new'}",
    }
    closed.chmod(0o555)
    before = _content(tmp_path)
    done = subprocess.run(
        [*_LIKE_A_USER, sys.executable, "-c", _RUN],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | arguments,
        capture_output=True,
        text=True,
        check=False,
    )
    closed.chmod(0o755)  # else pytest could not remove it
    refused = f"error: {closed} cannot be written to, since its disk is read-only or permissions forbid it; choose "
    expected = [f"training configs/quickstart.py in {out}"]
    for command in arguments:
        expected += [f"{refused}another folder", f"{command} ends with 1"]
    assert (done.stdout + done.stderr).splitlines() == expected
    assert _content(tmp_path) == before
