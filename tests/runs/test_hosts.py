"""A training on two hosts: one of them is told to stop, or is killed, and both go on as if nothing had been."""

import signal
import socket
import time
from pathlib import Path

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


def _two_hosts(launcher: Launcher, workdir: Path) -> list[Run]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ("--distributed", f"--coordinator=127.0.0.1:{port}", "--processes=2")
    # Without patches the program compiles in seconds; the second host finds none of its programs in the cache.
    fields = {"stage": "pretrain", "model__patch_attention": False}
    return [launcher.train(workdir, *flags, f"--process={process}", **fields) for process in range(2)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hosts_that_are_stopped_or_killed_go_on_and_change_no_bit(tmp_path: Path) -> None:
    config = small_config().data
    write_pack(
        data.open_source(config),
        str(tmp_path / "pack"),
        splits=("train", "validation", "test"),
        resolution=config.resolution,
        train_fraction=config.train_fraction,
    )
    launcher, run = Launcher(tmp_path, tmp_path / "pack"), tmp_path / "run"
    try:
        for host in _two_hosts(launcher, tmp_path / "undisturbed"):
            host.end()

        # A signal that comes while the programs compile is obeyed by both after the first steps.
        first, second = _two_hosts(launcher, run)
        second.wait_for_output("pretrain training: compiling…")
        second.process.terminate()
        for host in (first, second):
            assert "Traceback" not in host.end(128 + signal.SIGTERM)
        (step,) = saved_steps(run, "pretrain")
        assert 0 < step == trained_steps(run, "pretrain") < STEPS["pretrain"]

        # One is killed: the other one says why it ends, and how to go on. The first host is the coordinator.
        for killed in (1, 0):
            hosts = _two_hosts(launcher, run)
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

        for host in _two_hosts(launcher, run):
            host.end()
        assert_equal(newest(run, "pretrain")[1], newest(tmp_path / "undisturbed", "pretrain")[1])
        mine, theirs = (in_order(records(workdir, "pretrain")) for workdir in (run, tmp_path / "undisturbed"))
        assert mine == theirs
    finally:
        launcher.close()
