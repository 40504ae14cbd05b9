"""Whole studies by the real command: one that is killed and continued, one run command by command, and one that fails.

Most of the time is compilation. So the rows share their programs, the processes share a compilation cache, and LLVM
does not optimize.
"""

import csv
import hashlib
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from colorjax.data.batches import RowSource, Share
from colorjax.data.packed import write_pack
from colorjax.data.sample import open_sample

REPOSITORY = Path(__file__).resolve().parents[2]
ROWS = ("full", "no_pretraining")
STEPS = {"pretrain": 2, "joint": 3}


class Few:
    """Every n-th photo of a split."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, every: int):
        self._images, self._labels = images[::every], labels[::every]

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._images[indices], self._labels[indices]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all studies, with a pack of a few photos of the sample in it."""
    folder = tmp_path_factory.mktemp("studies")
    source = open_sample(resolution=40)
    rows = {}
    for split, every in (("train", 12), ("validation", 4), ("test", 2)):
        (batch,) = source.evaluate(split, Share(source.info.sizes[split]))
        rows[split] = Few(batch["image"], batch["label"], every=every)
    info = source.info
    sizes = {split: len(of_split) for split, of_split in rows.items()}
    few = RowSource(type(info)(info.name, info.class_names, sizes), rows)
    write_pack(few, folder / "pack", splits=("train", "validation", "test"), resolution=40, train_fraction=0.8)
    return folder


def arguments(directory: Path) -> list[str]:
    fields = {
        "data.source": "packed",
        "data.dir": directory / "pack",
        "data.resolution": 40,
        "data.image_size": 32,
        "model.patch_attention": False,
        "model.output_attention": "none",
    }
    for stage in STEPS:
        fields |= {
            f"{stage}.batch_size": 8,
            f"{stage}.steps": STEPS[stage],
            # The program does not depend on the number of steps then.
            f"{stage}.schedule": "constant",
            f"{stage}.log_every": 1,
            f"{stage}.save_every": 1,
        }
    return ["--config=configs/quickstart.py", *(f"--config.{field}={value}" for field, value in fields.items())]


def environment(directory: Path) -> dict[str, str]:
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(directory / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }


def start(directory: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "colorjax", "ablate", *arguments(directory), *more]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment(directory),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output_of(process: subprocess.Popen[str], *, code: int = 0) -> str:
    text = process.communicate(timeout=300)[0]
    assert process.returncode == code, text
    return text


def contents(path: Path) -> dict[str, tuple[str, int]]:
    """File -> digest and time of change."""
    return {
        str(file.relative_to(path)): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in path.rglob("*")
        if file.is_file()
    }


def per_photo(path: Path) -> dict[str, np.ndarray]:
    with (path / "evaluation" / "test" / "per_photo.csv").open(newline="") as f:
        lines = list(csv.DictReader(f))
    return {k: np.array([float(line[k]) for line in lines]) for k in ("index", "psnr", "ssim", "delta_e", "color_ce")}


@pytest.fixture(scope="module")
def by_commands(directory: Path) -> Path:
    """A study of one row, run by the commands that `--commands` prints."""
    folder = directory / "commands"
    script = output_of(start(directory, "--rows=no_pretraining", f"--workdir={folder}", "--commands"))
    assert not folder.exists()
    lines = [shlex.split(line) for line in script.splitlines() if line.startswith("python ")]
    assert [line[-1] for line in lines] == ["--config.stage=joint", "--report"]
    subprocess.run(["sh", "-e", "-c", script], cwd=REPOSITORY, env=environment(directory), check=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def study(directory: Path, by_commands: Path) -> Path:
    """A study that was killed in its second joint stage, and then finished."""
    folder = directory / "study"
    prior = by_commands / "prior" / "full.npz"
    flags = [f"--rows={','.join(ROWS)}", f"--workdir={folder}", f"--config.data.prior={prior}"]
    process = start(directory, *flags)
    end = time.monotonic() + 240
    try:
        while not (folder / "no_pretraining" / "seed0" / "joint" / "checkpoints" / "1").exists():
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(process.communicate()[0])
            time.sleep(0.002)
    finally:
        process.kill()
    text = process.communicate()[0]
    # The plan came first, with the speed of the timed steps.
    assert "timing 3 steps of pretrain/full/seed0" in text
    assert text.index("| no_pretraining/seed0 ") < text.index("In all ") < text.index("run 1 of 3: pretrain/full/seed0")
    assert not (folder / "no_pretraining" / "seed0" / "evaluation").exists()
    # There is a report of the runs that were done.
    with (folder / "report.csv").open(newline="") as f:
        assert {line["row"]: line["seeds_done"] for line in csv.DictReader(f)} == {"full": "1", "no_pretraining": "0"}
    before = {name: contents(folder / name) for name in ("pretrain", "full")}
    text = output_of(start(directory, *flags))
    assert "timing" not in text  # the runs have records now
    assert "run 3 of 3: no_pretraining/seed0" in text
    assert {name: contents(folder / name) for name in before} == before
    return folder


@pytest.mark.slow
def test_a_killed_study_ends_like_an_undisturbed_one(by_commands: Path, study: Path) -> None:
    for name in ("per_photo.csv", "metrics.json"):
        mine, theirs = (d / "no_pretraining" / "seed0" / "evaluation" / "test" / name for d in (study, by_commands))
        assert mine.read_bytes() == theirs.read_bytes()
    assert "1 of 1 runs are done" in (by_commands / "report.md").read_text()
    assert [p.parent.name for p in study.glob("pretrain/*/*")] == ["full"]


@pytest.mark.slow
def test_the_report_equals_the_evaluations(study: Path) -> None:
    with (study / "report.csv").open(newline="") as f:
        found = {(line["row"], line["metric"]): line for line in csv.DictReader(f)}
    measured = {row: per_photo(study / row / "seed0") for row in ROWS}
    for row in ROWS:
        assert len(measured[row]["index"]) > 10
        for metric in ("psnr", "ssim", "delta_e", "color_ce"):
            line = found[row, metric]
            assert float(line["mean"]) == pytest.approx(np.nanmean(measured[row][metric]), rel=1e-5)
            if row != "full":
                difference = measured[row][metric] - measured["full"][metric]
                assert float(line["difference"]) == pytest.approx(difference.mean(), rel=1e-3, abs=1e-6)
                assert float(line["low"]) < difference.mean() < float(line["high"])
    html = (study / "report.html").read_text()
    assert "2 of 2 runs are done" in html
    assert html.count("<img ") == len(ROWS) + 2


def test_a_study_whose_runs_fail_reports_it_and_fails(directory: Path) -> None:
    failing = directory / "failing"
    flags = ["--rows=no_pretraining", f"--workdir={failing}", f"--config.data.dir={directory}/nowhere"]
    text = output_of(start(directory, *flags), code=1)
    assert "no_pretraining/seed0 failed: FileNotFoundError: " in text
    report = (failing / "report.md").read_text()
    assert "0 of 1 runs are done: 1 row, seed 0; 1 failed." in report
    assert "nowhere" in report
