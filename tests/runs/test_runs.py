"""train.py as it is run: both stages as processes that are killed, terminated, spread over devices and hosts, kept
from TensorFlow, and given a wrong configuration.

Everything is compared with one undisturbed run.
"""

import io
import json
import os
import random
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.color
from PIL import Image
from processes import (
    EVAL_EVERY,
    IMAGE_SIZE,
    RESOLUTION,
    SAVE_EVERY,
    STAGES,
    STEPS,
    Launcher,
    Run,
    assert_close_run,
    assert_equal,
    assert_same_run,
    digests,
    is_saving,
    newest,
    records,
    saved_steps,
    small_config,
    trained_steps,
)
from tensorboardX.proto import event_pb2

from colorjax import data
from colorjax.data.packed import write_pack
from colorjax.run.checkpoints import Checkpoints, TrainState, load_checkpoint
from colorjax.training.loop import train

FOUR_DEVICES = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=4"


def seconds_to_end() -> float:
    """How long a process may take to end after a signal: 10 s, and more where others use the processors."""
    return 10 * max(1, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample as a pack, which is read without TensorFlow."""
    directory = tmp_path_factory.mktemp("packs") / "pack"
    config = small_config().data
    write_pack(
        data.open_source(config),
        str(directory),
        splits=("train", "validation", "test"),
        resolution=RESOLUTION,
        train_fraction=config.train_fraction,
    )
    return directory


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory, pack: Path) -> Iterator[Launcher]:
    made = Launcher(tmp_path_factory.mktemp("launches"), pack)
    yield made
    made.close()


@pytest.fixture(scope="module")
def undisturbed(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run's workdir, and its output; TensorFlow cannot be imported there."""
    blocker, workdir = tmp_path_factory.mktemp("blocker"), tmp_path_factory.mktemp("undisturbed")
    for package in ("tensorflow", "tensorflow_datasets"):
        (blocker / package).mkdir()
        (blocker / package / "__init__.py").write_text(f"raise ImportError('no {package} here')\n")
    return workdir, launcher.train(workdir, environment={"PYTHONPATH": str(blocker)}).end()


def scalars(directory: Path) -> dict[str, list[int]]:
    """Tag -> steps of TensorBoard's files."""
    steps: dict[str, list[int]] = {}
    for step, value in values(directory):
        steps.setdefault(value.tag, []).append(step)
    return steps


def values(directory: Path) -> Iterator[tuple[int, Any]]:
    """Step and value of all in TensorBoard's files, which are TFRecords of Event messages."""
    for path in sorted(directory.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            event = event_pb2.Event.FromString(  # pyright: ignore[reportAttributeAccessIssue]
                content[at + 12 : at + 12 + size]
            )
            at += size + 16  # the size, its checksum, the message, its checksum
            for value in event.summary.value:
                yield event.step, value


def gray_psnr() -> float:
    """The mean PSNR of the test crops without their color, by scikit-image and numpy."""
    values = []
    for batch in data.eval_batches(small_config().data, "test", batch_size=1):
        margin = (RESOLUTION - IMAGE_SIZE) // 2
        rgb = batch["image"][0, margin:-margin, margin:-margin] / 255
        lab = skimage.color.rgb2lab(rgb)
        lab[..., 1:] = 0
        values.append(-10 * np.log10(np.mean((skimage.color.lab2rgb(lab) - rgb) ** 2)))
    return float(np.mean(values))


@pytest.mark.slow
def test_both_stages_leave_what_they_promise(undisturbed: tuple[Path, str]) -> None:
    workdir, output = undisturbed
    assert output.index("pretrain: ") < output.index(f"pretrain {STEPS['pretrain']}/") < output.index("joint: ")
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
        # Loss (1), of photos that are all in color and padding that is in no mean.
        pixels = (IMAGE_SIZE // 2) ** 2
        limit = record["class_loss"] + record["color_loss"] * pixels
        assert record["loss"] == pytest.approx(limit, rel=1e-5) or record["split"] == "train"
        assert record["class_loss"] < record["loss"] <= limit * (1 + 1e-5)

    panels = sorted((workdir / "joint" / "panels").iterdir())
    assert [panel.name for panel in panels] == ["00000008.png", "00000016.png"]
    for panel in (*panels, workdir / "evaluation" / "test" / "panel.png"):
        picture = np.asarray(Image.open(panel))
        assert picture.shape[1] == 4 + 3 * (IMAGE_SIZE + 4)  # gray, predicted, true, and the gaps
        assert picture.std() > 0
    of_tag: dict[str, list[tuple[int, np.ndarray]]] = {}
    for step, value in values(workdir / "joint"):
        if value.HasField("image"):
            picture = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
            of_tag.setdefault(value.tag, []).append((step, picture))
    assert {tag: [step for step, _ in pictures] for tag, pictures in of_tag.items()} == {
        "gray___predicted___true": [8, 16],
        "where_attention_looks_from_the_middle": [8, 16],
    }
    (_, before), (_, after) = of_tag["where_attention_looks_from_the_middle"]
    assert before.shape == (288 + 38, 5 * 296 + 8, 3)  # the photo, the output attention and three patches
    np.testing.assert_array_equal(before[:, :290], after[:, :290])
    assert (before[:, 304:] != after[:, 304:]).any()

    evaluation = json.loads((workdir / "evaluation" / "test" / "metrics.json").read_text())
    assert (evaluation["stage"], evaluation["step"]) == ("joint", STEPS["joint"])
    assert evaluation["photos"] == data.dataset_info(small_config().data).sizes["test"]
    assert evaluation["rows"]["gray"]["psnr"] == pytest.approx(gray_psnr(), rel=1e-3)


@pytest.mark.slow
def test_the_output_is_short_lines_with_what_a_person_watches(undisturbed: tuple[Path, str]) -> None:
    workdir, output = undisturbed
    lines = output.splitlines()
    steps = [line for line in lines if line.startswith(("pretrain ", "joint "))]
    assert max(map(len, steps)) < 120
    (first,) = (line for line in lines if line.startswith("joint 1/"))
    record = records(workdir, "joint", split="train")[0]
    assert f"loss {record['loss']:.4g} (sum over pixels)" in first
    assert f"color loss {record['color_loss']:.4g} (prior {record['prior_color_loss']:.4g})" in first
    assert "photos/s" in first
    assert "left" in first
    (only,) = (line for line in lines if line.startswith("pretrain 1/"))
    assert "sum over pixels" not in only
    for stage in STAGES:
        assert f"{stage} training: compiling…" in lines
        assert any(line.startswith(f"{stage} training: compiled in ") for line in lines)
    assert "I1" not in {line[:2] for line in lines}  # absl's prefix
    assert lines[-3:] == [
        f"checkpoints: {workdir / 'joint' / 'checkpoints'}",
        f"pictures: {workdir / 'evaluation' / 'test' / 'panel.png'}",
        f"next: colorjax predict PHOTO.jpg --out=colored --checkpoint={workdir}",
    ]


def test_saving_is_not_overtaken_by_the_steps_that_follow(tmp_path: Path) -> None:
    # So much to write that many steps, which overwrite the buffers donated to them, pass meanwhile.
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


@pytest.mark.slow
def test_a_run_killed_in_a_save_and_terminated_ends_as_if_it_had_not_been(
    launcher: Launcher, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    run = launcher.train(tmp_path)
    run.wait_for(lambda: is_saving(tmp_path, "pretrain", after=SAVE_EVERY))
    run.process.kill()
    run.end(-signal.SIGKILL)
    # What a kill leaves is whole at every moment.
    assert newest(tmp_path, "pretrain")[0] < STEPS["pretrain"]

    run = launcher.train(tmp_path)
    run.wait_for(lambda: trained_steps(tmp_path, "joint") > 2)
    run.process.terminate()
    output = run.end(128 + signal.SIGTERM)
    step = saved_steps(tmp_path, "joint")[-1]
    assert 2 < step < STEPS["joint"]
    assert trained_steps(tmp_path, "joint") == step
    assert f"saved at step {step} " in output or step % SAVE_EVERY == 0
    assert not (tmp_path / "evaluation").exists()

    launcher.train(tmp_path).end()
    assert_same_run(tmp_path, undisturbed[0])
    assert len(list((tmp_path / "joint" / "panels").iterdir())) == 2


@pytest.mark.slow
def test_a_disk_that_was_full_and_a_damaged_checkpoint_change_no_bit(
    launcher: Launcher, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    run = launcher.train(tmp_path)
    run.wait_for_output("pretrain 1/")
    _, hard = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (10_000, hard))
    run.wait_for_output(f"warning: the checkpoint of step {SAVE_EVERY} is not saved: ")
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    assert "The next save tries again" in run.end()
    assert_same_run(tmp_path, undisturbed[0])

    newest_file = max((tmp_path / "joint/checkpoints" / str(STEPS["joint"]) / "params").rglob("d/*"), key=file_size)
    newest_file.write_bytes(newest_file.read_bytes()[: file_size(newest_file) // 2])
    first_lost = STEPS["joint"] - SAVE_EVERY + 1
    assert f"steps {first_lost} to {STEPS['joint']} are lost" in launcher.train(tmp_path).end()
    assert_same_run(tmp_path, undisturbed[0])


def file_size(path: Path) -> int:
    return path.stat().st_size


@pytest.mark.slow
def test_four_devices_compute_what_one_computes(
    launcher: Launcher, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    run = launcher.train(tmp_path, environment={"XLA_FLAGS": FOUR_DEVICES})
    assert "on 4 × cpu" in run.end()
    assert_close_run(tmp_path, undisturbed[0])


@pytest.mark.slow
def test_another_configuration_is_refused_and_changes_nothing(undisturbed: tuple[Path, str], pack: Path) -> None:
    workdir = undisturbed[0]
    before = digests(workdir)
    config = small_config(data__source="packed", data__dir=str(pack), seed=7, augment__flip=True)
    with pytest.raises(ValueError, match="another configuration") as refused:
        train(config, workdir)
    assert "seed is 3 there and 7 now" in str(refused.value)
    assert "augment.flip is False there and True now" in str(refused.value)
    assert digests(workdir) == before


@pytest.mark.slow
def test_a_batch_that_the_devices_do_not_divide_is_refused_before_the_pretraining(
    launcher: Launcher, tmp_path: Path
) -> None:
    run = launcher.train(tmp_path / "run", joint__batch_size=6, environment={"XLA_FLAGS": FOUR_DEVICES})
    assert "joint.batch_size is 6, which 4 device(s) × joint.accumulate = 1 do not divide" in run.end(1)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_signal_at_any_moment_ends_it_in_time(
    launcher: Launcher, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    # Each run goes on where the one before was stopped. A text is one that is printed right before the moment.
    compiling = {"JAX_COMPILATION_CACHE_DIR": ""}
    # Tracing comes before XLA's compiler, in which Python handles no signal: so many seconds later it compiles.
    moments: list[tuple[Callable[[Run], bool], int, dict[str, str], float]] = [
        (lambda run: is_saving(tmp_path, "pretrain", after=0), signal.SIGTERM, {}, 0),
        (lambda run: "pretrain validation: compiling…" in run.output(), signal.SIGINT, compiling, 0.7),
        (lambda run: f"pretrain {STEPS['pretrain']}/" in run.output(), signal.SIGTERM, {}, 0),  # the last validation
        (lambda run: "counting the colors" in run.output(), signal.SIGTERM, {}, 0),
        (lambda run: "joint: " in run.output(), signal.SIGINT, {}, 0),  # between the stages
        (lambda run: "joint training: compiling…" in run.output(), signal.SIGTERM, compiling, 4),
        (lambda run: trained_steps(tmp_path, "joint") > 2, signal.SIGINT, {}, 0),
        (lambda run: is_saving(tmp_path, "joint", after=STEPS["joint"] - 1), signal.SIGTERM, {}, 0),
        (lambda run: (tmp_path / "joint" / "panels" / "00000016.png").exists(), signal.SIGINT, {}, 0),  # evaluation
    ]
    for moment, number, environment, later in moments:
        run = launcher.train(tmp_path, environment=environment)
        run.wait_for(lambda moment=moment, run=run: moment(run))
        time.sleep(later)
        run.process.send_signal(number)
        sent = time.monotonic()
        output = run.end(128 + number)
        assert time.monotonic() - sent < seconds_to_end(), output
        assert "Traceback" not in output
    launcher.train(tmp_path).end()
    assert_same_run(tmp_path, undisturbed[0])


def _reaches(run: Run, workdir: Path, *, stage: str, kind: str, step: int) -> bool:
    """Whether a process has started a stage, has shown a step of it, or is saving a later step."""
    lines = run.output().splitlines()
    if not any(line.startswith(f"{stage}: ") and "parameters, step" in line for line in lines):
        return False
    if kind == "save":
        return is_saving(workdir, stage, after=step)
    return kind == "start" or any(line.startswith(f"{stage} {step + 1}/") for line in lines)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_faults_at_random_moments_change_no_bit(
    launcher: Launcher, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    """COLORJAX_FAULTS says how many faults; 50 are the long form. With -s each is printed."""
    chance = random.Random(int(os.environ.get("COLORJAX_FAULTS_SEED", "0")))
    left = int(os.environ.get("COLORJAX_FAULTS", "8"))
    workdir, runs, faults = tmp_path / "0", 0, 0
    while left:
        # Each fault comes later in the run than what is saved, until there is nothing left to disturb.
        saved = {stage: max(saved_steps(workdir, stage), default=0) for stage in STAGES}
        stage = "pretrain" if saved["pretrain"] < STEPS["pretrain"] else "joint"
        if saved[stage] < STEPS[stage]:
            kind, step = chance.choice(["start", "step", "save"]), chance.randrange(saved[stage], STEPS[stage])
            number = chance.choice([signal.SIGKILL, signal.SIGTERM])
            run = launcher.train(workdir)
            while run.process.poll() is None and not _reaches(run, workdir, stage=stage, kind=kind, step=step):
                time.sleep(0.001)
            time.sleep({"start": 5.0, "step": 0.1, "save": 0.05}[kind] * chance.random())
            saving = any(is_saving(workdir, stage, after=0) for stage in STAGES)
            run.process.send_signal(number)
            status = run.process.wait(120)
            if status:  # else the run ended before
                assert status == (-signal.SIGKILL if number == signal.SIGKILL else 128 + signal.SIGTERM), run.output()
                left -= 1
                faults += 1
                print(faults, number.name, stage, kind, "in a save" if saving else "", flush=True)
            # What a fault leaves is whole at every moment.
            for saved_stage in STAGES:
                if saved_steps(workdir, saved_stage):
                    newest(workdir, saved_stage)
        if not left or saved["joint"] == STEPS["joint"]:
            launcher.train(workdir).end()
            assert_same_run(workdir, undisturbed[0])
            runs += 1
            print(f"run {runs} ends bit-equal to the undisturbed one", flush=True)
            workdir = tmp_path / f"{runs}"


@pytest.mark.slow
def test_stages_one_by_one_with_more_steps_later_are_both_at_once(
    launcher: Launcher, undisturbed: tuple[Path, str], tmp_path: Path, pack: Path
) -> None:
    packed = {"data__source": "packed", "data__dir": str(pack)}
    with pytest.raises(ValueError, match=r"stage=pretrain .*pretrain\.steps=0"):
        train(small_config(stage="joint", **packed), tmp_path / "run")

    # The state saved after step 8, which step 9 overwrites meanwhile, is that of a run which stops there.
    before = STEPS["pretrain"] - SAVE_EVERY
    launcher.train(tmp_path / "run", stage="pretrain", pretrain__steps=before).end()
    way = tmp_path / "way" / "pretrain" / "checkpoints"
    way.mkdir(parents=True)
    (way / str(before)).symlink_to(undisturbed[0] / "pretrain" / "checkpoints" / str(before))
    assert newest(tmp_path / "way", "pretrain")[0] == before
    assert_equal(newest(tmp_path / "way", "pretrain")[1], newest(tmp_path / "run", "pretrain")[1])

    # And given more steps it goes on as if it had never stopped, however often it reports.
    launcher.train(tmp_path / "run", stage="pretrain", pretrain__save_every=5, pretrain__eval_every=3).end()
    assert_equal(newest(tmp_path / "run", "pretrain")[1], newest(undisturbed[0], "pretrain")[1])
    # The joint stage that was refused left nothing that evaluation takes for a result.
    output = launcher.start("-m", "colorjax", "evaluate", f"--workdir={tmp_path / 'run'}").end()
    assert f"pretrain stage, step {STEPS['pretrain']}, " in output

    launcher.train(tmp_path / "run", stage="joint").end()
    assert_same_run(tmp_path / "run", undisturbed[0], ("joint",))


@pytest.mark.slow
def test_two_processes_and_then_four_devices_compute_what_one_computes(
    launcher: Launcher, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ("--distributed", f"--coordinator=127.0.0.1:{port}", "--processes=2")
    first, second = (launcher.train(tmp_path, *flags, f"--process={process}") for process in range(2))
    first.wait_for(lambda: trained_steps(tmp_path, "joint") > 2)
    # Any host may be told; all stop at one step.
    second.process.terminate()
    assert "on 2 × cpu" in first.end(128 + signal.SIGTERM)
    second.end(128 + signal.SIGTERM)
    step = saved_steps(tmp_path, "joint")[-1]
    assert 2 < step < STEPS["joint"]
    assert trained_steps(tmp_path, "joint") == step

    launcher.train(tmp_path, environment={"XLA_FLAGS": FOUR_DEVICES}).end()
    assert saved_steps(tmp_path, "joint")[-1] == STEPS["joint"]
    assert_close_run(tmp_path, undisturbed[0])


@pytest.mark.slow
def test_a_pack_trains_as_the_photos_that_it_was_made_of(
    launcher: Launcher, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    launcher.train(tmp_path, data__source="sample", data__dir="").end()
    assert_same_run(tmp_path, undisturbed[0])
    evaluations = [(d / "evaluation/test/metrics.json").read_text() for d in (tmp_path, undisturbed[0])]
    assert evaluations[0] == evaluations[1]
    panels = [(d / "evaluation/test/panel.png").read_bytes() for d in (tmp_path, undisturbed[0])]
    assert panels[0] == panels[1]
