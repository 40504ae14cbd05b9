"""`train.py` as it is run: both stages as processes that are killed, terminated, spread over devices and hosts, kept
from TensorFlow, and told nonsense.

All of it is compared with one undisturbed run. Compiling costs more than everything else, so all processes share one
compilation cache, and LLVM optimizes nothing.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.color
from PIL import Image
from tensorboardX.proto import event_pb2

from colorjax import data
from colorjax.run.checkpoints import Checkpoints, TrainState, load_checkpoint
from configs import quickstart

REPOSITORY = Path(__file__).resolve().parents[2]
STAGES = ("pretrain", "joint")
STEPS = {"pretrain": 12, "joint": 24}
LEARNING_RATE = 1e-7
EVAL_EVERY = {"pretrain": 6, "joint": 8}
RESOLUTION, IMAGE_SIZE = 40, 32
SMALL = (
    f"--config.data.resolution={RESOLUTION}",
    f"--config.data.image_size={IMAGE_SIZE}",
    "--config.model.patch_kernels=(3,3,3)",
)
BOTH = (
    *SMALL,
    *(
        f"--config.{stage}.{field}={value}"
        for stage in STAGES
        for field, value in {
            "batch_size": 8,
            "steps": STEPS[stage],
            # Adam divides by a gradient's size, and so makes rounding errors as large as the rate, and BatchNorm over
            # eight photos magnifies them further: it must be small where one device is compared with many.
            "learning_rate": LEARNING_RATE,
            "schedule": "constant",
            "log_every": 1,
            # Some saves are followed by an evaluation and some by the next step at once.
            "save_every": 4,
            "eval_every": EVAL_EVERY[stage],
        }.items()
    ),
)
SPEED = ("images_per_second", "seconds_per_step")


@dataclass
class Run:
    """A process and what it has said."""

    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, what: Callable[[], bool], *, timeout: float = 240) -> None:
        """Returns at the first moment at which `what` holds."""
        end = time.monotonic() + timeout
        while not what():
            assert self.process.poll() is None, f"the run ended before it was to be disturbed:\n{self.said()}"
            assert time.monotonic() < end, f"nothing in {timeout} s:\n{self.said()}"
            time.sleep(0.002)

    def ends(self, code: int = 0, *, timeout: float = 300) -> str:
        """Waits for the end, and returns what it said."""
        assert self.process.wait(timeout) == code, self.said()
        return self.said()


class Launcher:
    """Starts commands of the repository, all with one compilation cache, and leaves none behind."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._runs: list[Run] = []

    def start(self, *command: str | Path, **environment: str) -> Run:
        log = self._directory / f"{len(self._runs)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=REPOSITORY,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ
                | {
                    "JAX_PLATFORMS": "cpu",
                    "JAX_COMPILATION_CACHE_DIR": str(self._directory / "cache"),
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                    "XLA_FLAGS": "--xla_backend_optimization_level=0",
                }
                | environment,
            )
        self._runs.append(Run(process, log))
        return self._runs[-1]

    def train(self, workdir: Path, *flags: str, **environment: str) -> Run:
        return self.start(
            "train.py", "--config=configs/quickstart.py", f"--workdir={workdir}", *(flags or BOTH), **environment
        )

    def close(self) -> None:
        for run in self._runs:
            if run.process.poll() is None:
                run.process.kill()
                run.process.wait()


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    made = Launcher(tmp_path_factory.mktemp("launches"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def undisturbed(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run's workdir, and what the run said."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, launcher.train(workdir).ends()


def leaves(tree: Any) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def newest(workdir: Path, stage: str) -> tuple[int, dict[str, np.ndarray]]:
    """The step and all arrays of a stage's newest checkpoint."""
    step, params, stats = load_checkpoint(workdir / stage / "checkpoints")
    return step, leaves({"params": params, "stats": stats})


def saved_steps(workdir: Path, stage: str) -> list[int]:
    """The complete checkpoints; Orbax gives one its name when it is complete."""
    return sorted(int(p.name) for p in (workdir / stage / "checkpoints").glob("*") if p.name.isdigit())


def records(workdir: Path, stage: str, *, split: str | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without the speed, which no two runs share."""
    lines = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]
    assert all(isinstance(record["step"], int) for record in lines)
    return [{k: v for k, v in record.items() if k not in SPEED} for record in lines if split in (None, record["split"])]


def recorded(workdir: Path, stage: str) -> int:
    """The last step trained so far, also while the process writes."""
    path = workdir / stage / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return max((record["step"] for record in map(json.loads, lines) if record["split"] == "train"), default=0)


def in_order(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # A step's two records change places when a run resumes between them.
    return sorted(lines, key=lambda record: (record["step"], record["split"]))


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """Bit for bit, and not vacuously."""
    assert a.keys() == b.keys()
    assert len(a) > 10
    differing = [name for name in a if a[name].tobytes() != b[name].tobytes()]
    assert not differing


def assert_same_run(workdir: Path, expected: Path, stages: tuple[str, ...] = STAGES) -> None:
    """The same parameters, statistics and records, bit for bit."""
    for stage in stages:
        step, arrays = newest(workdir, stage)
        assert step == STEPS[stage]
        assert_equal(arrays, newest(expected, stage)[1])
        mine = records(workdir, stage)
        assert len({(record["step"], record["split"]) for record in mine}) == len(mine)
        assert in_order(mine) == in_order(records(expected, stage))


def files(directory: Path) -> dict[str, tuple[str, int]]:
    """Path -> digest and time of change."""
    return {
        str(path.relative_to(directory)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }


def scalars(directory: Path) -> dict[str, list[int]]:
    """Tag -> steps of TensorBoard's files, which are TFRecords of Event messages."""
    steps: dict[str, list[int]] = {}
    for path in sorted(directory.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            event = event_pb2.Event.FromString(  # pyright: ignore[reportAttributeAccessIssue]
                content[at + 12 : at + 12 + size]
            )
            at += size + 16  # the size, its checksum, the message, its checksum
            for value in event.summary.value:
                steps.setdefault(value.tag, []).append(event.step)
    return steps


def gray_psnr() -> float:
    """The mean PSNR of the test crops without their color, by scikit-image and numpy."""
    config = quickstart.get_config().unlock()
    config.data.resolution = RESOLUTION
    values = []
    for batch in data.eval_batches(config.data, "test", batch_size=1):
        margin = (RESOLUTION - IMAGE_SIZE) // 2
        rgb = batch["image"][0, margin:-margin, margin:-margin] / 255
        lab = skimage.color.rgb2lab(rgb)
        lab[..., 1:] = 0
        values.append(-10 * np.log10(np.mean((skimage.color.lab2rgb(lab) - rgb) ** 2)))
    return float(np.mean(values))


def test_both_stages_leave_what_they_promise(undisturbed: tuple[Path, str]) -> None:
    workdir, said = undisturbed
    assert said.index("pretrain: ") < said.index(f"pretrain {STEPS['pretrain']}/") < said.index("joint: ")
    config = json.loads((workdir / "config.json").read_text())
    assert config["data"]["image_size"] == IMAGE_SIZE
    assert config["joint"]["steps"] == STEPS["joint"]
    for stage in STAGES:
        assert newest(workdir, stage)[0] == STEPS[stage]
        train, validation = records(workdir, stage, split="train"), records(workdir, stage, split="validation")
        assert [record["step"] for record in train] == [*range(1, STEPS[stage] + 1)]
        assert [record["step"] for record in validation] == [
            *range(EVAL_EVERY[stage], STEPS[stage] + 1, EVAL_EVERY[stage])
        ]
        shown = scalars(workdir / stage)
        assert shown["train/loss"] == [record["step"] for record in train]
        assert shown["validation/loss"] == [record["step"] for record in validation]
        for record in train:
            assert all(np.isfinite(value) for name, value in record.items() if name != "split")
    for record in records(workdir, "joint"):
        assert record.keys() >= {"class_loss", "color_loss", "color_ce", "prior_color_ce", "accuracy"}
        # Loss (1), of photos that are all in color: the validation's last batch is padded, and so is not one.
        if record["split"] == "train":
            assert record["loss"] > record["class_loss"]

    panels = sorted((workdir / "joint" / "panels").iterdir())
    assert [panel.name for panel in panels] == ["00000008.png", "00000016.png", "00000024.png"]
    for panel in (*panels, workdir / "evaluation" / "test" / "panel.png"):
        picture = np.asarray(Image.open(panel))
        assert picture.shape[1] == 4 + 3 * (IMAGE_SIZE + 4)  # gray, predicted, true, and the gaps
        assert picture.std() > 0

    evaluation = json.loads((workdir / "evaluation" / "test" / "metrics.json").read_text())
    assert (evaluation["stage"], evaluation["step"]) == ("joint", STEPS["joint"])
    config = quickstart.get_config()
    assert evaluation["photos"] == data.dataset_info(config.data).sizes["test"]
    assert evaluation["rows"]["gray"]["psnr"] == pytest.approx(gray_psnr(), rel=1e-3)
    assert f"| PSNR (dB) ↑ | {evaluation['rows']['model']['psnr']:.4g} |" in " ".join(said.split())


def test_a_checkpoint_saved_on_the_way_is_that_of_a_run_which_stops_there(
    launcher: Launcher, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    # Step 8 is saved in the background while step 9 already overwrites the buffers, which are donated to it.
    before = STEPS["pretrain"] - 4
    shutil.copytree(undisturbed[0] / "pretrain" / "checkpoints" / str(before), tmp_path / "way" / str(before))
    launcher.train(tmp_path / "stops", *BOTH, "--config.stage=pretrain", f"--config.pretrain.steps={before}").ends()
    step, params, stats = load_checkpoint(tmp_path / "way")
    assert step == before
    assert_equal(leaves({"params": params, "stats": stats}), newest(tmp_path / "stops", "pretrain")[1])

    # And given more steps it goes on as if it had never stopped, however often it reports.
    more = ("--config.stage=pretrain", "--config.pretrain.save_every=5", "--config.pretrain.eval_every=3")
    launcher.train(tmp_path / "stops", *BOTH, *more).ends()
    assert newest(tmp_path / "stops", "pretrain")[0] == STEPS["pretrain"]
    assert_equal(newest(tmp_path / "stops", "pretrain")[1], newest(undisturbed[0], "pretrain")[1])


def test_saving_is_not_overtaken_by_the_steps_that_follow(tmp_path: Path) -> None:
    # As above, but with so much to write that many steps pass meanwhile.
    def step(state: TrainState) -> TrainState:
        return jax.tree.map(lambda x: x + 1, state)

    large = {f"{i}": jnp.full((1 << 20,), i, jnp.float32) for i in range(16)}
    state = TrainState(step=jnp.asarray(0), params=large, stats={"u": jnp.zeros(3)}, opt_state={"m": jnp.zeros(5)})
    donating = jax.jit(step, donate_argnums=0)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state = donating(state)
    checkpoints.save(state)
    for _ in range(50):
        state = donating(state)
    jax.block_until_ready(state)
    checkpoints.close()
    saved, params, stats = load_checkpoint(tmp_path / "checkpoints")
    assert saved == 1
    assert {name: np.unique(x).tolist() for name, x in params.items()} == {f"{i}": [i + 1] for i in range(16)}
    assert stats["u"].tolist() == [1, 1, 1]


def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(
    launcher: Launcher, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    chance = random.Random(0)

    def started(run: Run, stage: str) -> bool:
        return f"{stage}: " in run.said() and "parameters, step" in run.said().split(f"{stage}: ")[-1]

    def saving(stage: str, since: int) -> bool:
        names = [path.name for path in (tmp_path / stage / "checkpoints").glob("*")]
        return any(not name.isdigit() and int(name.split(".")[0]) > since for name in names)

    # What to wait for, and within how many seconds after it to kill.
    moments: list[tuple[Callable[[Run], bool], float]] = [
        (lambda run: started(run, "pretrain"), 2.0),  # while it compiles, or soon after
        (lambda run: saving("pretrain", 0), 0.0),
        (lambda run: saving("joint", 4), 0.1),
        (lambda run: recorded(tmp_path, "joint") > 12, 1.0),
        (lambda run: STEPS["joint"] in saved_steps(tmp_path, "joint"), 0.0),
    ]
    for moment, spread in moments:
        run = launcher.train(tmp_path)
        run.until(lambda moment=moment, run=run: moment(run))
        time.sleep(spread * chance.random())
        run.process.kill()
        run.ends(-signal.SIGKILL)
        # What a stop leaves is whole at every moment.
        for stage in STAGES:
            if saved_steps(tmp_path, stage):
                newest(tmp_path, stage)
    launcher.train(tmp_path).ends()
    assert_same_run(tmp_path, undisturbed[0])
    assert len(list((tmp_path / "joint" / "panels").iterdir())) == 3


def test_sigterm_saves_and_the_same_command_goes_on(
    launcher: Launcher, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    run = launcher.train(tmp_path)
    run.until(lambda: "pretrain: " in run.said())  # and now the first step compiles
    run.process.terminate()
    assert "saved at step 1 " in run.ends(128 + signal.SIGTERM)
    assert saved_steps(tmp_path, "pretrain") == [1] == [recorded(tmp_path, "pretrain")]

    refused = launcher.train(tmp_path, *BOTH, "--config.stage=joint").ends(1)
    assert f"stands at step 1 of {STEPS['pretrain']}" in refused
    assert "stage=pretrain" in refused

    run = launcher.train(tmp_path)
    run.until(lambda: recorded(tmp_path, "joint") > 2)
    run.process.terminate()
    said = run.ends(128 + signal.SIGTERM)
    step = recorded(tmp_path, "joint")
    assert 2 < step < STEPS["joint"]
    assert saved_steps(tmp_path, "joint")[-1] == step
    assert f"saved at step {step} " in said
    assert not (tmp_path / "evaluation").exists()

    launcher.train(tmp_path).ends()
    assert_same_run(tmp_path, undisturbed[0])


def assert_close_run(workdir: Path, expected: Path) -> None:
    """The same losses, gradients and evaluation, but for the order in which floats are added."""
    for stage in STAGES:
        mine, theirs = in_order(records(workdir, stage)), in_order(records(expected, stage))
        assert [(r["step"], r["split"]) for r in mine] == [(r["step"], r["split"]) for r in theirs]
        for a, b in zip(mine, theirs, strict=True):
            for name in ("loss", "class_loss", "color_loss", "color_ce", "prior_color_ce"):
                if name in b:
                    assert a[name] == pytest.approx(b[name], rel=1e-5), (stage, name, b["step"], b["split"])
            if "gradient_norm" in b:
                # BatchNorm over eight photos makes the gradient a thousand times as sensitive as the loss.
                assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-2)
        (_, a), (_, b) = newest(workdir, stage), newest(expected, stage)
        assert a.keys() == b.keys()
        for name in a:
            if a[name].dtype == np.float32:
                # A parameter whose gradient is all rounding may go the other way at every step.
                assert (
                    np.abs(a[name] - b[name]).max()
                    <= 2 * LEARNING_RATE * sum(STEPS.values()) + 1e-3 * np.abs(b[name]).max()
                )
    mine, theirs = (json.loads((d / "evaluation/test/metrics.json").read_text()) for d in (workdir, expected))
    assert mine["photos"] == theirs["photos"]
    for answer, row in theirs["rows"].items():
        assert mine["rows"][answer] == pytest.approx(row, rel=1e-3, abs=1e-3), answer


def test_four_devices_compute_what_one_computes(
    launcher: Launcher, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    run = launcher.train(
        tmp_path, XLA_FLAGS="--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=4"
    )
    assert "on 4 × cpu" in run.ends()
    assert_close_run(tmp_path, undisturbed[0])


def test_two_processes_compute_what_one_computes_and_resume(
    launcher: Launcher, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    def start() -> list[Run]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return [
            launcher.train(
                tmp_path,
                *BOTH,
                "--distributed",
                f"--coordinator=127.0.0.1:{port}",
                "--processes=2",
                f"--process={process}",
            )
            for process in range(2)
        ]

    first, second = start()
    first.until(lambda: recorded(tmp_path, "joint") > 2)
    # Any host may be told; all stop at one step.
    second.process.terminate()
    first.ends(128 + signal.SIGTERM)
    second.ends(128 + signal.SIGTERM)
    step = saved_steps(tmp_path, "joint")[-1]
    assert 2 < step < STEPS["joint"]
    assert recorded(tmp_path, "joint") == step

    first, second = start()
    assert "on 2 × cpu" in first.ends()
    second.ends()
    assert saved_steps(tmp_path, "joint")[-1] == STEPS["joint"]
    assert_close_run(tmp_path, undisturbed[0])


def test_everything_but_photo_files_works_without_tensorflow(
    launcher: Launcher, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    for package in ("tensorflow", "tensorflow_datasets"):
        (tmp_path / "blocker" / package).mkdir(parents=True)
        (tmp_path / "blocker" / package / "__init__.py").write_text(f"raise ImportError('no {package} here')\n")
    blocked = {"PYTHONPATH": str(tmp_path / "blocker")}
    assert "no tensorflow here" in launcher.start("-c", "import tensorflow", **blocked).ends(1)
    pack, workdir = tmp_path / "pack", tmp_path / "run"
    launcher.start(
        "-m", "colorjax", "data", "--config=configs/quickstart.py", *SMALL, f"--out={pack}", **blocked
    ).ends()
    launcher.train(workdir, *BOTH, "--config.data.source=packed", f"--config.data.dir={pack}", **blocked).ends()
    # The pack holds the sample's own photos, in its order.
    assert_same_run(workdir, undisturbed[0])
    evaluations = [(d / "evaluation/test/metrics.json").read_text() for d in (workdir, undisturbed[0])]
    assert evaluations[0] == evaluations[1]
    panels = [(d / "evaluation/test/panel.png").read_bytes() for d in (workdir, undisturbed[0])]
    assert panels[0] == panels[1]


def test_another_configuration_is_refused_and_changes_nothing(
    launcher: Launcher, undisturbed: tuple[Path, str]
) -> None:
    workdir = undisturbed[0]
    before = files(workdir)
    said = launcher.train(workdir, *BOTH, "--config.seed=7", "--config.augment.flip=true").ends(1)
    assert "another configuration" in said
    assert "seed: 0 there, 7 now" in said
    assert "augment.flip: False there, True now" in said
    assert files(workdir) == before


def test_stages_one_by_one_are_both_at_once(launcher: Launcher, undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    refused = launcher.train(tmp_path, *BOTH, "--config.stage=joint").ends(1)
    assert "stage=pretrain" in refused.split("ValueError")[-1]
    assert "pretrain.steps=0" in refused.split("ValueError")[-1]

    launcher.train(tmp_path, *BOTH, "--config.stage=pretrain").ends()
    assert_same_run(tmp_path, undisturbed[0], ("pretrain",))
    # The refused joint stage left nothing that evaluation takes for a result.
    said = launcher.start("-m", "colorjax", "evaluate", f"--workdir={tmp_path}").ends()
    assert f"pretrain, step {STEPS['pretrain']}, " in said

    launcher.train(tmp_path, *BOTH, "--config.stage=joint").ends()
    assert_same_run(tmp_path, undisturbed[0])


def test_accumulation_changes_nothing_where_photos_are_normalised_alone(launcher: Launcher, tmp_path: Path) -> None:
    # Adadelta, since Adam divides a gradient that is all rounding by its own size.
    flags = (
        *SMALL,
        "--config.model.norm=group",
        "--config.model.patch_attention=false",
        # Spectral normalization takes a step of its own with each microbatch.
        "--config.model.output_attention=none",
        "--config.pretrain.steps=0",
        "--config.joint.batch_size=8",
        "--config.joint.steps=3",
        "--config.joint.optimizer=adadelta",
        "--config.joint.learning_rate=0.01",
        "--config.joint.schedule=constant",
        "--config.joint.log_every=1",
    )
    for accumulate in (1, 4):
        launcher.train(tmp_path / f"{accumulate}", *flags, f"--config.joint.accumulate={accumulate}").ends()
    whole, parts = (records(tmp_path / name, "joint", split="train") for name in ("1", "4"))
    for a, b in zip(parts, whole, strict=True):
        for name in ("loss", "class_loss", "color_loss", "color_ce"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), (name, b["step"])
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-3)
    assert whole[0]["loss"] != pytest.approx(whole[2]["loss"], rel=1e-3)
    (_, a), (_, b) = (newest(tmp_path / name, "joint") for name in ("4", "1"))
    assert a.keys() == b.keys()
    # Adadelta's first steps move a parameter by some 1e-5 each; a few with hardly a gradient go by rounding.
    difference = np.concatenate([(a[name] - b[name]).ravel() for name in b])
    assert np.sqrt(np.mean(difference**2)) < 5e-7
    assert np.mean(np.abs(difference) < 1e-6) > 0.99


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(launcher: Launcher, tmp_path: Path) -> None:
    run = launcher.train(
        tmp_path,
        *BOTH,
        "--config.stage=pretrain",
        "--config.pretrain.learning_rate=1e30",
        "--config.pretrain.save_every=1",
    )
    said = run.ends(1)
    assert "FloatingPointError: pretrain: the loss of step 2 is nan" in said
    assert "pretrain.learning_rate" in said
    assert saved_steps(tmp_path, "pretrain") == [1]
    step, arrays = newest(tmp_path, "pretrain")
    assert step == 1
    assert all(np.isfinite(x).all() for x in arrays.values())
