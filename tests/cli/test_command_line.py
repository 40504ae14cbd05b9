"""The `colorjax` command: its help, its errors, and the configuration that --config and its overrides give."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from colorjax.cli import COMMANDS, configuration, main
from colorjax.cli.errors import UsageError, one_line, printable, run_command
from colorjax.run import locate
from colorjax.run.workdir import save_class_names, save_config
from configs import paper, quickstart


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    assert isinstance(exit.value.code, int)
    return exit.value.code


def test_help_needs_neither_jax_nor_tensorflow() -> None:
    script = f"""
import sys
from colorjax.cli import main
for command in {list(COMMANDS)}:
    try:
        main([command, "--help"])
    except SystemExit as exit:
        assert exit.code == 0
print(sorted({{"jax", "flax", "tensorflow", "numpy", "PIL", "gradio"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in COMMANDS:
        assert f"usage: colorjax {command}" in done.stdout
    assert done.stdout.count("\nexamples:\n  colorjax ") == len(COMMANDS)


def test_help_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert run("predict", "--help") == 0
    described = capsys.readouterr().out.partition("\nColors ")[2].partition("positional arguments:")[0]
    assert max(map(len, described.splitlines())) < 60
    assert len(described.strip().split("\n\n")) == 2


def test_the_page_without_gradio_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run("demo") == 1
    assert capsys.readouterr().err == "error: the page needs Gradio: pip install gradio\n"


def test_importing_the_package_is_light_and_gives_the_predictor() -> None:
    script = """
import sys, colorjax
assert not {"jax", "numpy"} & sys.modules.keys()
from colorjax import Predictor
print(Predictor.__module__, colorjax.__version__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    module, version = done.stdout.split()
    assert module == "colorjax.photos.predictor"
    assert version[0].isdigit()


def test_the_front_lists_the_commands_and_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == run() == run("--version") == 0
    text = capsys.readouterr().out
    for command, what in COMMANDS.items():
        assert f"  {command:10}{what}" in text
    assert text.splitlines()[-1].startswith("colorjax ")


def test_wrong_arguments_are_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    (tmp_path / "run" / "joint" / "checkpoints" / "400").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    below = tmp_path / "run" / "joint" / "checkpoints" / "400"
    broken, empty = tmp_path / "broken.py", tmp_path / "empty.py"
    broken.write_text("def get_config(:\n")
    empty.write_text("")
    for arguments, message in (
        (["trian"], "'trian' is not a command of colorjax; did you mean train?"),
        (["xyz"], "the commands are predict, demo, train"),
        (
            ["train", "--config.joint.stpes=10"],
            "--config.joint.stpes: there is no such field; did you mean joint.steps?",
        ),
        (["train", "--config.x=10"], "--config.x: there is no such field; `colorjax train --config=FILE --fields`"),
        (["train", "--config.joint.steps=ten"], "--config.joint.steps is 'ten'; it must be a whole number"),
        (["train", "--config.model.fusion=maybe"], "--config.model.fusion is 'maybe'; it must be true or false"),
        (["train", "--config.augment.scale=a,b"], "is 'a,b'; it must be values with commas between, as in (0.8, 1.25)"),
        (["train", "--config.joint.steps=-1"], "--config: joint.steps is -1; it must be 0 or more"),
        (["train", "--config.joint=1"], "--config.joint is a section; its fields are joint.accumulate"),
        (
            ["train", "--config=configs/papr.py"],
            "configs/papr.py, and there is no such file; did you mean configs/paper.py?",
        ),
        (["train", "--config=nowhere/x.py"], "there is no such file; those that ship are configs/food101_small.py"),
        (["train", "--config=configs/paper.py:no_fusio"], "there is no row 'no_fusio'; did you mean no_fusion?"),
        (["train", f"--config={broken}"], "broken.py, which cannot be loaded: SyntaxError: invalid syntax"),
        (["train", f"--config={empty}"], "empty.py, which has no function get_config"),
        (["train", f"--workdir={file}"], f"--workdir: '{file}' is a file; give a folder"),
        (["train", f"--workdir={below}"], f"did you mean the folder above, '{tmp_path / 'run'}'?"),
        (["train", "--workdir=gs://bucket/run"], "'gs://bucket/run' is a URL; give a folder of this machine"),
        (["train", "--wrkdir=x"], "--wrkdir is not an argument of colorjax train; did you mean --workdir?"),
        (["train", "--processes=0"], "--processes: '0' is not a whole number of 1 or more"),
        (["train", "--process=1"], "--process is for several hosts: add --distributed"),
        (["train", "--distributed", "--coordinator=a"], "--coordinator is 'a'; it must be HOST:PORT, such as"),
        (["train", "--distributed", "--processes=2", "--process=2"], "--process is 2; with --processes=2 it must be"),
        (["train", "--distributed"], "(where JAX does not find the processes by itself, give --coordinator,"),
        (["evaluate", f"--workdir={tmp_path / 'absent'}"], "absent is neither a folder nor the name of shipped"),
        (["evaluate", f"--workdir={below}"], "did you mean the folder above"),
        (["evaluate", f"--workdir={tmp_path}", "--temperature=0.1,5"], "'5' is not a number between 0 and 1"),
        (["ablate", f"--workdir={tmp_path}"], "--config is missing; only --report needs none"),
        (["ablate", f"--workdir={tmp_path}/none", "--report"], "none, which has no run of a study"),
        (["ablate", f"--workdir={tmp_path}", "--config=configs/paper.py", "--config.seed=1"], "give --seeds"),
        (["ablate", f"--workdir={tmp_path}", "--config=configs/paper.py", "--seeds=0,x"], "'x' is not a whole number"),
        (["ablate", f"--workdir={tmp_path}", "--config=configs/paper.py", "--rows=all,x"], "--rows names x"),
        (
            ["data", "--config=configs/paper.py", "--out=x", "--splits=tset"],
            "'tset' is not a split; the splits are train",
        ),
        (["data", "--config=configs/paper.py", "--out=x", "--config.data.source=packed"], "it must be food101, folder"),
        (["prior", "--config=configs/paper.py"], "--out is missing: give --out=FILE, or --config.data.dir=DIR"),
        (["teacher", "--config=configs/paper.py"], "--out is missing: give --out=FILE, or --config.data.dir=DIR"),
        (["export", "--checkpoint=x", "--out=y", "--format=zip"], "--format: invalid choice: 'zip'"),
        (["export", f"--workdir={below}", "--out=y", "--format=npz"], "did you mean the folder above"),
        (["demo", "--checkpoint=nothing"], "nothing is neither a folder nor the name of shipped weights"),
        (["demo", "--port=0"], "--port: '0' is not a whole number between 1 and 65535"),
        (["weights", "lpips"], "lpips needs the file with its weights, and --out=FILE.npz"),
    ):
        assert run(*arguments) == 2, arguments
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert message in line
        assert len(line) <= 310


def raised(error: BaseException, *, module: str = "colorjax.somewhere") -> Callable[[], int]:
    """A command that ends with an error, raised in a module of the package or elsewhere."""
    scope: dict[str, Any] = {"__name__": module, "error": error}
    exec("def command():\n    raise error", scope)
    return scope["command"]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UsageError("--x is 1"), 2, "--x is 1"),
        (ValueError("x is 1:\n  too small\n  give 2"), 1, "x is 1: too small; give 2"),
        (FileNotFoundError(2, "No such file or directory", "a\x1b[2Jb"), 1, "a\\x1b[2Jb: No such file or directory"),
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
        (ModuleNotFoundError("pip install onnx", name="onnx"), 1, "pip install onnx"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 1, "RESOURCE_EXHAUSTED: Out of memory"),
        (NotImplementedError("no operator"), 1, "no operator"),
        (MemoryError(), 1, "MemoryError"),
    ],
)
def test_an_error_of_the_user_is_one_line(
    error: Exception, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raised(error), debug=False) == status
    assert capsys.readouterr().err == f"error: {message}\n"
    with pytest.raises(type(error)):
        run_command(raised(error), debug=True)


@pytest.mark.parametrize(
    ("error", "module"),
    [
        (ValueError("shapes do not match"), "numpy.linalg"),
        (TypeError("unexpected"), "colorjax.somewhere"),
        (KeyError("x"), "colorjax.somewhere"),
        (ImportError("cannot import name", name="colorjax.run"), "colorjax.somewhere"),
    ],
)
def test_a_bug_has_its_traceback(error: Exception, module: str) -> None:
    with pytest.raises(type(error)):
        run_command(raised(error, module=module), debug=False)


def test_errors_inside_a_program_that_jax_traces(capsys: pytest.CaptureFixture[str]) -> None:
    """JAX removes its own frames from both errors, and adds a note."""
    scope: dict[str, Any] = {"__name__": "colorjax.somewhere", "jnp": jnp}
    exec("def refuse(x):\n    raise ValueError('width is 0.1')\ndef bug(x):\n    return x + jnp.ones(3)", scope)
    assert run_command(lambda: jax.jit(scope["refuse"])(jnp.ones(2)), debug=False) == 1
    assert capsys.readouterr().err == "error: width is 0.1\n"
    with pytest.raises((TypeError, ValueError), match="shape"):
        run_command(lambda: jax.jit(scope["bug"])(jnp.ones(2)), debug=False)


def test_ctrl_c_is_status_130_and_a_long_message_is_cut() -> None:
    assert run_command(raised(KeyboardInterrupt()), debug=False) == 130
    line = one_line(ValueError("x" * 5000 + "; delete it"))
    assert len(line) == 300
    assert line.endswith("x; delete it")
    assert printable("写真 ümlaut\n\x1b[31m") == "写真 ümlaut\\n\\x1b[31m"


def test_messages_come_once_whatever_libraries_did_to_logging() -> None:
    script = """
import logging
logging.basicConfig()  # as Orbax's import does
from colorjax.cli.terminal import log_to_terminal
log_to_terminal()
log_to_terminal()
logging.getLogger("colorjax.any").info("timing")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == "timing\n"


def test_a_reader_that_stops_early_is_no_error() -> None:
    command = f"{sys.executable} -m colorjax train --fields | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fields of configs/quickstart.py")
    assert done.stderr == ""


def test_overrides_have_the_type_of_their_field() -> None:
    from colorjax.cli.arguments import Parser

    parser = Parser("x", description="", examples="")
    configuration.add_arguments(parser)
    args = parser.parse(
        [
            "--config=configs/paper.py:no_fusion",
            "--config.joint.steps=7",
            "--config.joint.learning_rate",
            "1",
            "--config.data.download",
            "--config.augment.flip=True",
            "--config.augment.scale=0.5,2",
            "--config.model.patch_kernels=(3, 3, 3)",
            "--config.joint.carried=low_level,fusion",
            "--config.data.dir=a=b",
        ]
    )
    config = configuration.load(args.config, args.overrides)
    expected = paper.get_config("no_fusion").unlock()
    expected.joint.steps, expected.joint.learning_rate, expected.joint.carried = 7, 1.0, ("low_level", "fusion")
    expected.data.download, expected.data.dir = True, "a=b"
    expected.augment.flip, expected.augment.scale, expected.model.patch_kernels = True, (0.5, 2.0), (3, 3, 3)
    assert config.to_dict() == expected.to_dict()
    assert config.is_locked


def test_fields_have_their_comments_and_rows_their_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base.py").write_text(
        """
import ml_collections

def get_config(row="full"):
    c: object = ml_collections.ConfigDict()
    c.seed = 0  # of everything
    c.joint = j = stage()
    j.steps = 5  # photos over all # devices
    # Above
    # the line.
    j.carried = ("a", "b")
    c.rate = 1.0
    if row == "regression":
        c.rate *= 3
    return c.lock()

def stage():
    s = ml_collections.ConfigDict()
    s.kind = "adam"  # adam | adamw
    s.steps = 1  # replaced
    return s
"""
    )
    file = tmp_path / "start.py"
    file.write_text(
        f"from {tmp_path.name} import base\n\ndef get_config(row='full'):\n    return base.get_config(row)\n"
    )
    assert run("train", f"--config={file}", "--fields", "--config.joint.steps=7") == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [re.sub("  +", "  ", line) for line in lines[:5]] == [
        "joint.carried  ('a', 'b')  Above the line.",
        "joint.kind  'adam'  adam | adamw",
        "joint.steps  7  photos over all # devices",
        "rate  1.0",
        "seed  0  of everything",
    ]
    rows = dict(line.split(maxsplit=1) for line in lines[5:])
    assert rows["regression"] == "rate=3.0"
    assert rows["full"] == "nothing"

    assert run("train", "--config=configs/quickstart.py:no_fusion", "--fields") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    (comment,) = re.findall(r"m\.norm = .*  # (.*)", Path("configs/paper.py").read_text())
    assert lines["model.norm"].endswith(comment)
    assert lines["model.fusion"].split()[1] == "False"
    assert lines["rate_x3"].split()[1] == "joint.learning_rate=0.003"


def test_configurations_that_ship_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = configuration.load("configs/paper.py:no_fusion", {})
    assert found.to_dict() == paper.get_config("no_fusion").to_dict()
    (tmp_path / "configs").mkdir()
    own = "from configs import quickstart\n\ndef get_config(row='full'):\n    return quickstart.get_config(row)\n"
    for name in ("configs/quickstart.py", "configs/own.py", "own.py"):  # a file of one's own goes before one that ships
        (tmp_path / name).write_text(own.replace("(row)", "('no_fusion')"))
        assert configuration.load(name, {}).model.fusion is False
    assert configuration.load("configs/paper.py", {}).model.fusion is True


def test_the_weights_that_ship_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locate, "SHIPPED", tmp_path)
    assert run("weights") == 1
    (tmp_path / "soups").mkdir()
    save_config(quickstart.get_config(), tmp_path / "soups")
    save_class_names(tmp_path / "soups", ("soup", "cake"))
    assert run("weights") == 0
    text = capsys.readouterr().out.splitlines()[-1]
    assert text == f"soups: 2 classes, 64 pixels, 0 MB, in {tmp_path / 'soups'}"
