"""The workdir: who may train in it, and what its files say when they are missing or damaged."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from colorjax.run.config import ADDED_FIELDS
from colorjax.run.trees import flatten
from colorjax.run.workdir import (
    bind_config,
    differences,
    load_class_names,
    load_config,
    local_path,
    lock,
    save_class_names,
    save_config,
)
from configs import quickstart

_HOLD = """
import pathlib, sys, time
from colorjax.run.workdir import lock
with lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_in_a_workdir_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout
        assert first.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=rf"process {first.pid} on .*another --workdir"), lock(tmp_path):
            pass
        (tmp_path / ".partial-1-2").touch()
        (tmp_path / "joint").mkdir()
        (tmp_path / "joint" / ".partial-3-4").mkdir()
        (tmp_path / "evaluation").mkdir()
        (tmp_path / "evaluation" / ".partial-5-6").touch()
        first.send_signal(signal.SIGKILL)
    with lock(tmp_path):
        # What killed trainings left is gone; an evaluation may be writing at this moment.
        assert sorted(path.name for path in tmp_path.rglob(".partial-*")) == [".partial-5-6"]
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    with lock(tmp_path):
        pass


def test_a_url_is_refused() -> None:
    with pytest.raises(ValueError, match="gs://bucket/run is a URL"):
        local_path("gs://bucket/run")


def test_a_missing_config_beside_checkpoints_is_not_written_again(tmp_path: Path) -> None:
    (tmp_path / "pretrain" / "checkpoints" / "4").mkdir(parents=True)
    message = rf"{re.escape(str(tmp_path))}/config\.json is missing.*put the run's config\.json back"
    for use in (differences, bind_config):
        with pytest.raises(FileNotFoundError, match=message):
            use(quickstart.get_config(), tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("content", ["", "[1]", "null", "3", '{"data": 1}', "{", "\xff", "[" * 100_000, '{"a.b": 1}'])
def test_a_damaged_config_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    for read in (load_config, lambda folder: differences(quickstart.get_config(), folder)):
        if read is not load_config and content.startswith('{"'):
            continue  # it has fields that differ, and binds nothing
        with pytest.raises(ValueError, match=r"config\.json is damaged") as error:
            read(tmp_path)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) - len(str(tmp_path)) <= 300


@pytest.mark.parametrize("content", ["", "{}", "[]", "[1]", "null", "\xff", "[" * 100_000])
def test_damaged_class_names_are_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "classes.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"classes\.json is (damaged|not a list)") as error:
        load_class_names(tmp_path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) - len(str(tmp_path)) <= 300


def test_many_other_classes_are_summed_up(tmp_path: Path) -> None:
    save_class_names(tmp_path, ("pie",))
    with pytest.raises(ValueError, match=r"differing in .* and \d+ more; point data\.dir") as error:
        save_class_names(tmp_path, tuple(f"{'x' * 500}{number}" for number in range(100)))
    assert len(str(error.value)) - len(str(tmp_path)) <= 500


def test_a_config_from_before_a_field_was_added_fits(tmp_path: Path) -> None:
    config = quickstart.get_config().unlock()
    for key in ADDED_FIELDS:
        section, field = key.split(".")
        del config[section][field]
    save_config(config, tmp_path)
    (tmp_path / "joint" / "checkpoints" / "4").mkdir(parents=True)
    assert differences(quickstart.get_config(), tmp_path) == []
    loaded = flatten(json.loads(load_config(tmp_path).to_json()))
    assert {key: loaded[key] for key in ADDED_FIELDS} == ADDED_FIELDS
