"""The layout: which folder may import which, and who alone knows a library."""

import ast
import tomllib
from pathlib import Path

import pytest

import colorjax

PACKAGE = Path(colorjax.__file__).parent

FLOORS = [
    {"atomic", "color"},
    {"metrics"},
    {"ops"},
    {"model"},
    {"data"},
    {"run"},
    {"training", "evaluation", "photos"},
    {"study", "export", "web"},
    {"cli"},
    {"__main__"},
]
"""From the lowest up. A room imports only from lower floors, and from itself."""

OWNERS = {
    "tensorflow": {"data/photos.py"},
    "tensorflow_datasets": {"data/photos.py"},
    "orbax": {"run/checkpoints.py"},
    "llvmlite": {"ops/cpu/emitter.py", "ops/cpu/llvm.py"},
    "tensorboardX": {"training/progress.py"},
    "gradio": {"web/page.py", "web/server.py"},
    "onnx": {"export/formats.py", "export/onnx_graph.py"},
    "safetensors": {"run/portable.py"},
    "huggingface_hub": {"photos/hub.py"},
}
"""Library -> the only modules that may import it."""


def _modules() -> dict[str, Path]:
    return {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def _imports(path: Path) -> set[str]:
    """The dotted names that a module imports, also inside functions; of `from a import b` it is a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _room(module: str) -> str:
    return module.split("/")[0].removesuffix(".py")


def test_a_room_imports_only_from_lower_floors() -> None:
    floor = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
    wrong = []
    for module, path in _modules().items():
        for name in _imports(path):
            if name.startswith("colorjax.") and module != "__init__.py":
                mine, other = _room(module), name.split(".")[1]
                if mine != other and floor[other] >= floor[mine]:
                    wrong.append(f"{module} imports {name}")
    assert not wrong


def test_the_package_needs_nothing_outside_it() -> None:
    """An installed wheel has no configs/, tests/ or benchmarks/ beside it."""
    imports = {(module, name) for module, path in _modules().items() for name in _imports(path)}
    assert not {x for x in imports if x[1].split(".")[0] in ("configs", "tests", "benchmarks", "train")}


def test_every_room_has_a_floor() -> None:
    rooms = {_room(module) for module in _modules()} - {"__init__"}
    assert rooms == set().union(*FLOORS)


def test_the_package_has_at_most_fifteen_rooms() -> None:
    entries = {path.name for path in PACKAGE.iterdir() if not path.name.startswith("__")}
    assert len(entries) <= 15, sorted(entries)


def test_the_wheel_has_every_package_and_the_configurations() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    folders = {"colorjax." + m.removesuffix("/__init__.py").replace("/", ".") for m in _modules() if "/__init__" in m}
    assert set(project["tool"]["setuptools"]["packages"]) == {"colorjax", "colorjax.configs"} | folders
    # A folder without __init__.py would be left out.
    assert {path.parent for path in _modules().values()} == {p.parent for p in PACKAGE.rglob("__init__.py")}


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_has_one_owner(library: str) -> None:
    importing = {module for module, path in _modules().items() if any(_is(name, library) for name in _imports(path))}
    assert importing, f"nothing imports {library}"
    assert importing <= OWNERS[library]


def _is(name: str, library: str) -> bool:
    return name == library or name.startswith(f"{library}.")


def test_no_circle_of_imports() -> None:
    """Imports inside functions count too."""
    modules = {
        "colorjax." + m.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): p
        for m, p in _modules().items()
    }
    edges = {
        name: {
            target
            for imported in _imports(path)
            for target in (imported, imported.rpartition(".")[0])
            if target in modules and target != name
        }
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, (*above, name))
            done.add(name)

    for name in modules:
        visit(name, ())


def test_only_dispatch_asks_for_a_device_below_data() -> None:
    for module, path in _modules().items():
        if module.startswith(("model/", "ops/")) and module != "ops/dispatch.py":
            text = path.read_text()
            assert "default_backend" not in text, module
            assert "jax.devices" not in text, module
