"""A training on several hosts: one of two is told to stop, or is killed, and both go on as if nothing had been; and
their number changes.
"""

import itertools
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import (
    STEPS,
    Launcher,
    Run,
    assert_equal,
    in_order,
    newest,
    records,
    saved_steps,
    small_config,
    trained_steps,
)

from colorjax import data
from colorjax.data.packed import write_pack

# Seconds in which the other hosts end: JAX's, in which a host that is silent counts as gone, and some for the work.
END = 120


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    config = small_config().data
    write_pack(
        data.open_source(config),
        str(tmp_path / "pack"),
        splits=("train", "validation", "test"),
        resolution=config.resolution,
        train_fraction=config.train_fraction,
    )
    made = Launcher(tmp_path, tmp_path / "pack")
    yield made
    made.close()


def _hosts(number: int, launcher: Launcher, workdir: Path, **fields: Any) -> list[Run]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ("--distributed", f"--coordinator=127.0.0.1:{port}", f"--processes={number}")
    # Without patches the program compiles in seconds; the other hosts find none of their programs in the cache.
    fields = {"stage": "pretrain", "model__patch_attention": False} | fields
    return [launcher.train(workdir, *flags, f"--process={process}", **fields) for process in range(number)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hosts_that_are_stopped_or_killed_go_on_and_change_no_bit(launcher: Launcher, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for host in _hosts(2, launcher, tmp_path / "undisturbed"):
        host.end()

    # A signal that comes while the programs compile is obeyed by both after the first steps.
    first, second = _hosts(2, launcher, run)
    second.wait_for_output("pretrain training: compiling…")
    second.process.terminate()
    for host in (first, second):
        assert "Traceback" not in host.end(128 + signal.SIGTERM)
    (step,) = saved_steps(run, "pretrain")
    assert 0 < step == trained_steps(run, "pretrain") < STEPS["pretrain"]

    # One is killed: the other one says why it ends, and how to go on. The first host is the coordinator.
    for killed in (1, 0):
        hosts = _hosts(2, launcher, run)
        other, before = hosts[1 - killed], saved_steps(run, "pretrain")[-1]
        other.wait_for_output(f"pretrain {before + 2}/")
        hosts[killed].process.kill()
        hosts[killed].end(-signal.SIGKILL)
        began = time.monotonic()
        lines = other.end(1, timeout=END).splitlines()
        assert time.monotonic() - began < END
        (error,) = (line for line in lines if line.startswith("error: "))
        assert error.startswith("error: another host has ended or cannot be reached. The same command on every ")
        assert len(error) <= len("error: ") + 300
        assert "Traceback" not in "\n".join(lines)
        assert newest(run, "pretrain")[0] < STEPS["pretrain"]

    for host in _hosts(2, launcher, run):
        host.end()
    assert_equal(newest(run, "pretrain")[1], newest(tmp_path / "undisturbed", "pretrain")[1])
    mine, theirs = (in_order(records(workdir, "pretrain")) for workdir in (run, tmp_path / "undisturbed"))
    assert mine == theirs


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("told", [(0,), (0, 1)])
def test_a_signal_to_one_or_to_both_stops_them_at_one_step(
    launcher: Launcher, tmp_path: Path, told: tuple[int, ...]
) -> None:
    """With -s it prints the seconds."""
    run = tmp_path / "run"
    hosts = _hosts(2, launcher, run, pretrain__steps=1000, pretrain__save_every=500, pretrain__eval_every=1000)
    hosts[1].wait_for_output("pretrain 3/")
    began = time.monotonic()
    for i in told:
        hosts[i].process.terminate()
    for host in hosts:
        assert "Traceback" not in host.end(128 + signal.SIGTERM, timeout=END)
    (step,) = saved_steps(run, "pretrain")
    assert 3 <= step == trained_steps(run, "pretrain")
    print(f"told {told} in step 3: saved at step {step}, both ended after {time.monotonic() - began:.1f} s")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hosts_then_four_and_then_one_compute_what_one_computes(launcher: Launcher, tmp_path: Path) -> None:
    one, changing = tmp_path / "one", tmp_path / "changing"
    steps = {2: 2, 4: 4, 6: 1}  # up to this step by as many hosts
    launcher.train(one, stage="pretrain", model__patch_attention=False, pretrain__steps=max(steps)).end()
    for last, number in steps.items():
        for host in _hosts(number, launcher, changing, pretrain__steps=last):
            host.end()
    mine, theirs = (records(workdir, "pretrain", split="train") for workdir in (changing, one))
    assert [record["step"] for record in mine] == [record["step"] for record in theirs] == [*range(1, max(steps) + 1)]
    # The rate is so small that each step's loss is that of its photos with the initial parameters: a batch of other
    # photos would have another loss.
    losses = [record["loss"] for record in theirs]
    assert min(abs(a - b) for a, b in itertools.combinations(losses, 2)) > 1e-3
    for a, b in zip(mine, theirs, strict=True):
        assert abs(a["loss"] - b["loss"]) <= (2e-6 if a["step"] == 1 else 1e-5) * b["loss"], a["step"]
