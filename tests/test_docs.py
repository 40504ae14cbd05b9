"""The documentation: its commands exist, its links resolve, its layout is the tree's, and its short commands run."""

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image
from test_layout import OWNERS

import colorjax
from benchmarks import __main__ as benchmarks
from colorjax.cli import COMMANDS, arguments, configuration, main
from colorjax.evaluation.summary import METRICS
from colorjax.run import compilation
from colorjax.study import rows

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PARENTS = ("", "configs", "tests", "colorjax", "colorjax/ops", "colorjax/model", "colorjax/evaluation")
PATHS = (arguments.folder, arguments.workdir)


def fenced(page: Path) -> Iterator[tuple[str, str]]:
    """The language and the text of each code block, without the scripts that ran on an earlier commit."""
    text = re.sub(r"<details>.*?</details>", "", page.read_text(), flags=re.S)
    yield from re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, flags=re.S | re.M)


def shell_commands(page: Path) -> list[list[str]]:
    """The words of each command in the page's shell blocks, with the blocks' variables put in."""
    return [words for language, block in fenced(page) if language == "sh" for words in _commands(block)]


def _commands(script: str) -> list[list[str]]:
    script = re.sub(r"<<'END'\n.*?^END$", "", script, flags=re.S | re.M)  # Python, which has a test of its own
    commands, variables, text = [], {}, ""
    for line in script.replace("\\\n", " ").splitlines():
        text += re.sub(r"\$(\w+)", lambda match: variables.get(match[1], match[0]), line) + "\n"
        try:
            words = shlex.split(text, comments=True)
        except ValueError:  # a quotation goes on in the next line
            continue
        text = ""
        if len(words) == 1 and re.match(r"\w+=", words[0]):
            name, _, variables[name] = words[0].partition("=")
            continue
        for remote in words:
            if remote.startswith("--command="):
                commands += _commands(remote.removeprefix("--command="))
        while words:
            end = next((i for i, word in enumerate(words) if word in ("&&", "||", ";", "|")), len(words))
            command, words = words[:end], words[end + 1 :]
            redirected = next((i for i, word in enumerate(command) if word in ("<", ">")), len(command))
            commands += [command[:redirected]] if redirected else []
    return commands


def colorjax_arguments(page: Path) -> Iterator[list[str]]:
    """The subcommand of each `colorjax` command and what follows it, whatever stands before."""
    for words in shell_commands(page):
        if words[:2] == ["python", "train.py"]:
            yield ["train", *words[2:]]
        for i, word in enumerate(words[:-1]):
            if Path(word).name == "colorjax" and not words[i + 1].startswith("-") and words[0] != "gcloud":
                yield words[i + 1 :]
                break


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_and_take_their_flags(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name, *words in colorjax_arguments(page):
        assert name in COMMANDS
        module = importlib.import_module(f"colorjax.cli.{name}")
        parser = arguments.Parser(f"colorjax {name}", description=module.DESCRIPTION, examples=module.EXAMPLES)
        module.add_arguments(parser)
        for action in parser._actions:
            if action.type in PATHS:
                action.type = str  # the folders of the examples do not exist
        args = parser.parse(words)
        if getattr(args, "config", None):
            configuration.load(re.sub(r".*configs/", "configs/", args.config), args.overrides)


def test_every_command_is_documented() -> None:
    named = {words[0] for page in PAGES for words in colorjax_arguments(page)}
    assert named >= COMMANDS.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_benchmarks_exist_and_take_their_flags(page: Path) -> None:
    for words in shell_commands(page):
        if words[:3] == ["python", "-m", "benchmarks"]:
            parser, _ = benchmarks.make_parser("step" if words[3] == "NAME" else words[3])
            args = parser.parse(words[4:])
            if getattr(args, "config", None):
                configuration.load(args.config, args.overrides)
            continue
        if words[0] == "python" and words[1].startswith("benchmarks/"):
            script = ROOT / words[1]
        else:
            continue
        defined = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', script.read_text()))
        assert {word[2:].partition("=")[0] for word in words if word.startswith("--")} <= defined, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_import_what_exists(page: Path) -> None:
    blocks = [block for language, block in fenced(page) if language == "python"]
    for language, block in fenced(page):
        blocks += re.findall(r"<<'END'\n(.*?)^END$", block, flags=re.S | re.M) if language == "sh" else []
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("colorjax", "benchmarks"):
                for alias in node.names:
                    _import(f"{node.module}.{alias.name}")


def _import(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    if not hasattr(importlib.import_module(module), attribute):
        importlib.import_module(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        path, _, anchor = (target[0] or target[1]).partition("#")
        if "://" in path:
            continue
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name}: {path}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.M)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_fit_a_screen(page: Path) -> None:
    # A row of a table cannot be broken.
    assert not [line for line in page.read_text().splitlines() if len(line) > 100 and not line.lstrip().startswith("|")]


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - set(re.findall(r"\((\w+\.md)\)", index)) == {
        "README.md"
    }


def test_the_layout_is_the_trees() -> None:
    (layout,) = (block for _, block in fenced(ROOT / "docs" / "design.md") if block.startswith("train.py"))
    named = {path.removeprefix("colorjax/").rstrip("/") for path in re.findall(r"[\w/]+/|\w[\w/]*\.py", layout)}
    for path in named:
        assert any((ROOT / parent / path).exists() for parent in PARENTS), path
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {path.split("/")[0] for path in tracked if "/" in path and not path.startswith(".")} - {"colorjax"}
    rooms = {path.split("/")[1] for path in tracked if path.startswith("colorjax/")} - {"__init__.py", "__main__.py"}
    assert folders | rooms <= named


def test_the_owners_of_libraries_are_those_that_the_layout_allows() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    table = text[text.index("## Who owns what") : text.index("## The path of a photo")]
    assert set(re.findall(r"`(\w+/[\w/]+\.py)`", table)) >= set().union(*OWNERS.values())


def test_the_version_is_the_same_everywhere() -> None:
    version = colorjax.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)[1] == version  # pyright: ignore


def test_the_places_that_contributors_are_sent_to_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    files = [ROOT / path for path in re.findall(r"`((?:colorjax|configs|benchmarks)/[\w/.]*)`", text)]
    assert [path for path in files if not path.exists()] == []
    code = "".join(path.read_text() for path in files if path.suffix == ".py")
    names = re.findall(r"`([A-Z_]{4,})`", text)
    assert names
    assert [name for name in names if not re.search(rf"^{name}(:.*)? = ", code, flags=re.M)] == []


def test_every_row_is_described() -> None:
    text = (ROOT / "docs" / "reproduce.md").read_text()
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    described = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert described == rows.ROWS.keys() | rows.CURES.keys()


def test_every_metric_is_defined() -> None:
    glossary = (ROOT / "docs" / "evaluate.md").read_text()
    defined = ", ".join(re.findall(r"\*\*(.*?)\*\*", glossary)).split(", ")
    for metric in METRICS.values():
        assert metric.heading.replace("|", r"\|") in defined


SMALL = [
    f"--config.{field}"
    for field in (
        "data.source=sample",
        "data.resolution=40",
        "data.image_size=32",
        "model.width=0.25",
        "model.patch_kernels=3,3,3",
        "pretrain.steps=1",
        "pretrain.batch_size=8",
        "pretrain.eval_photos=8",
        "joint.steps=4",  # a row takes a quarter of them
        "joint.warmup_steps=0",
        "joint.batch_size=8",
        "joint.eval_photos=8",
    )
]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a dozen processes, most of which compile
def test_the_readmes_commands_run(untrained: Path, tmp_path: Path) -> None:
    """With the sample for Food-101, one step a stage, and a trained run that is ready."""
    (tmp_path / "runs").mkdir()
    shutil.copytree(untrained, tmp_path / "runs" / "quickstart")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "scans" / "below").mkdir(parents=True)
    photo = np.random.default_rng(0).integers(0, 256, (50, 70), np.uint8)
    Image.fromarray(photo).save(tmp_path / "old.jpg")
    Image.fromarray(photo.T).save(tmp_path / "scans" / "below" / "b.png")
    ran = []
    for name, *words in colorjax_arguments(ROOT / "README.md"):
        if name == "demo" or words in ran or not words:
            continue
        ran.append(words)
        if name == "ablate":
            words = ["--commands", *words]  # the trainings themselves are tests/study's
        packed = "--config.data.source=packed" in words
        if any(word.startswith("--config=") for word in words):
            words += [word for word in SMALL if not (packed and "data.source" in word)]
        words = [word for word in words if word != "--config.data.download"]
        done = subprocess.run(
            [sys.executable, "-m", "colorjax", name, *words],
            cwd=tmp_path,
            env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},  # compiles faster
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{name} {words}\n{done.stderr[-2000:]}"
    assert np.asarray(Image.open(tmp_path / "colored" / "old.jpg")).shape == (50, 70, 3)
    assert np.asarray(Image.open(tmp_path / "colored" / "below" / "b.png")).shape == (70, 50, 3)
    assert (tmp_path / "runs" / "vivid" / "evaluation" / "test" / "metrics.json").exists()
    assert (tmp_path / "runs" / "paper" / "joint" / "checkpoints" / "4").exists()


@pytest.mark.slow
def test_the_guides_commands_run(untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that color, draw and export; films, pipes and evaluations have tests of their own."""
    monkeypatch.chdir(tmp_path)
    unoptimized = {"xla_backend_optimization_level": 0}  # compiles faster
    monkeypatch.setattr(compilation, "compiler_options", lambda: unoptimized)
    shutil.copytree(untrained, tmp_path / "runs" / "vivid")
    (tmp_path / "scans" / "b").mkdir(parents=True)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (180, 320), np.uint8))
    for name in ("old.jpg", "frame.png", "coffee.png", "scans/old.jpg", "scans/a.tif", "scans/b/scan.png"):
        photo.save(tmp_path / name)
    (points,) = (block for language, block in fenced(ROOT / "docs" / "points.md") if language == "json")
    (tmp_path / "points.json").write_text(points)
    ran = set()
    for page in ("color", "points", "insight", "export"):
        for name, *words in colorjax_arguments(ROOT / "docs" / f"{page}.md"):
            if name not in ("predict", "attention", "export") or {"film.mp4", "-"} & set(words):
                continue
            if not any(word.startswith(("--checkpoint", "--workdir")) for word in words):
                words += ["--checkpoint", "runs/vivid"]
            with pytest.raises(SystemExit) as exit:
                main([name, *words, *(["--overwrite"] if name == "predict" else [])])
            assert exit.value.code == 0, (name, words)
            ran.add(name)
    assert ran == {"predict", "attention", "export"}
    colored = ("old.jpg", "old-candidate3.jpg", "old.jpg.uncertainty.png", "a.png", "b/scan.png")
    made = [*(f"colored/{name}" for name in colored), "attention.png", "FOLDER/model.safetensors"]
    assert [name for name in made if not (tmp_path / name).is_file()] == []


@pytest.mark.slow
def test_the_guides_data_studies_and_evaluations_run(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the sample for Food-101; studies only say what they would run. Trainings are README's and tests/runs'."""
    monkeypatch.chdir(tmp_path)
    unoptimized = {"xla_backend_optimization_level": 0}  # compiles faster
    monkeypatch.setattr(compilation, "compiler_options", lambda: unoptimized)
    for run in ("vivid", "food101_small"):
        shutil.copytree(untrained, tmp_path / "runs" / run)
    small = [word for word in SMALL if word.startswith("--config.data.")]
    ran = []
    for page in ("train", "reproduce", "ablations", "results", "evaluate", "insight"):
        for name, *words in colorjax_arguments(ROOT / "docs" / f"{page}.md"):
            if name in ("data", "prior"):
                words = [word for word in words if word != "--config.data.dir=DIR"] + small
            elif name == "ablate":
                words = [*words, "--commands"]
            elif name != "evaluate" or not (tmp_path / words[0].partition("=")[2]).is_dir():
                continue
            # Those of LPIPS need its weights.
            if (name, words) in ran or any(word.startswith("--lpips") for word in words):
                continue
            with pytest.raises(SystemExit) as exit:
                main([name, *words])
            assert exit.value.code == 0, (name, words)
            ran.append((name, words))
    assert {name for name, _ in ran} == {"data", "prior", "ablate", "evaluate"}
    made = ("packs/food64", "packs/food256", "prior.npz", "runs/food101_small/evaluation/test/reliability.svg")
    assert [name for name in made if not (tmp_path / name).exists()] == []


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiles faster
    notebook = nbformat.read(ROOT / "notebooks" / "colorjax.ipynb", as_version=4)
    small = "config.data.update(resolution=40, image_size=32)\nconfig.model.patch_kernels = (3, 3, 3)\nconfig.lock()"
    for cell in notebook.cells:
        cell.source = cell.source.replace("STEPS = 60", "STEPS = 1").replace("config.lock()", small)
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6
