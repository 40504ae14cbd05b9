"""The flag --config and the flags --config.FIELD=VALUE that change it.

A configuration file is Python: `get_config(row="full")` returns a ConfigDict (configs/paper.py).
"""

import ast
import io
import sys
import tokenize
from collections.abc import Iterator, Mapping
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

import colorjax
from colorjax.cli.arguments import Parser, did_you_mean
from colorjax.cli.errors import UsageError, as_usage_error, one_line

HELP = "`--config.FIELD=VALUE` changes a field, as in --config.joint.steps=100."


def add_arguments(parser: Parser, *, default: str | None = None, required: bool = True) -> None:
    """Adds --config."""
    parser.add_argument(
        "--config",
        default=default,
        required=required and default is None,
        metavar="FILE[:ROW]",
        help=f"the configuration file, yours or one that ships (configs/…), and an ablation row of it. {HELP}",
    )


def shipped() -> Path:
    """The folder of the configurations that ship: in an installed package, or beside it in a checkout."""
    package = Path(colorjax.__file__).parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def load(config: str, overrides: Mapping[str, str]) -> Any:
    """The configuration, changed and checked; locked.

    Args:
        config: FILE or FILE:ROW.
        overrides: dotted field -> value, as text.

    Raises:
        UsageError: if there is no such file, row or field, or a value is not of the field's type or range.
    """
    from colorjax.run.config import validate

    changed = _load(config, overrides)
    with as_usage_error(ValueError, flag="--config"):
        validate(changed)
    return changed


def describe(config: str, overrides: Mapping[str, str]) -> str:
    """Every field with its value and comment, and every row with its changes, as text.

    Raises:
        UsageError: as `load`, but for the ranges.
    """
    from colorjax.study import rows

    file, module = _module(config)
    fields = _flatten(_load(config, overrides))
    comments = _comments(module)
    shown = {field: repr(value) for field, value in fields.items()}
    widths = max(map(len, shown)), max(map(len, shown.values()))
    lines = [f"fields of {config} (--config.FIELD=VALUE changes one):", ""]
    for field, value in shown.items():
        lines.append(f"  {field:{widths[0]}}  {value:{widths[1]}}  {comments.get(field, '')}".rstrip())
    plain = _flatten(_load(file, overrides))
    lines += ["", f"rows (--config={file}:ROW) and what they change:", ""]
    for row in rows.ROWS | rows.CURES:
        changed = _flatten(_load(f"{file}:{row}", overrides))
        changes = [f"{field}={value!r}" for field, value in changed.items() if value != plain.get(field)]
        lines.append(f"  {row:24}{', '.join(changes) or 'nothing'}")
    return "\n".join(lines)


def _load(config: str, overrides: Mapping[str, str]) -> ConfigDict:
    file, module = _module(config)
    row = config.removeprefix(file).removeprefix(":")
    if not callable(getattr(module, "get_config", None)):
        raise UsageError(f"--config is {file}, which has no function get_config; see configs/paper.py")
    try:
        loaded = module.get_config(*([row] if row else []))
    except Exception as error:
        from colorjax.study import rows

        known = rows.ROWS | rows.CURES
        if row and row not in known:
            close = did_you_mean(row, known) or f"; `colorjax train --config={file} --fields` lists them"
            raise UsageError(f"--config={config}: there is no row {row!r}{close}") from error
        raise UsageError(f"--config={config}: get_config failed: {type(error).__name__}: {one_line(error)}") from error
    fields = _flatten(loaded)
    changed = loaded.copy_and_resolve_references()
    changed.update_from_flattened_dict({field: _value(field, text, fields) for field, text in overrides.items()})
    return changed.lock()


def _find(name: str) -> Path | None:
    """A configuration file; `configs/…` also names one that ships, wherever the command runs."""
    ships = shipped().parent / name if Path(name).parent == Path("configs") else Path(name)
    return next((path for path in (Path(name), ships) if path.is_file()), None)


def _module(config: str) -> tuple[str, ModuleType]:
    """The file that --config names, and the module in it."""
    # A row is behind the last colon, but a path may have colons too.
    name = config if _find(config) else config.rpartition(":")[0] or config
    file = _find(name)
    if file is None:
        ships = [f"configs/{path.name}" for path in sorted(shipped().glob("[!_]*.py"))]
        close = did_you_mean(name, [*map(str, Path(name).parent.glob("*.py")), *ships])
        raise UsageError(
            f"--config is {name}, and there is no such file" + (close or f"; those that ship are {', '.join(ships)}")
        )
    # A configuration may start from another one in its folder, and from those that ship: `from configs import paper`.
    for at, root in ((0, file.resolve().parents[1]), (len(sys.path) + 1, shipped().parent)):
        if str(root) not in sys.path:
            sys.path.insert(at, str(root))
    loader = SourceFileLoader(f"configuration_{file.stem}", str(file))
    module = module_from_spec(spec_from_loader(loader.name, loader))  # pyright: ignore[reportArgumentType]
    try:
        loader.exec_module(module)
    except Exception as error:
        raise UsageError(
            f"--config is {name}, which cannot be loaded: {type(error).__name__}: {one_line(error)}"
        ) from error
    return name, module


def _flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {prefix + name: value}
    return flat


def _value(field: str, text: str, fields: Mapping[str, Any]) -> Any:
    """A value for a field, of the type that the field has now."""
    if field not in fields:
        inside = [known for known in fields if known.startswith(f"{field}.")]
        if inside:
            raise UsageError(f"--config.{field} is a section; its fields are {', '.join(inside)}")
        raise UsageError(
            f"--config.{field}: there is no such field"
            + (did_you_mean(field, fields) or "; `colorjax train --config=FILE --fields` lists them")
        )
    now = fields[field]
    try:
        return _parsed(text, now)
    except (ValueError, KeyError, TypeError):
        kinds = {bool: "true or false", int: "a whole number", float: "a number"}
        kind = kinds.get(type(now), f"values with commas between, as in {now!r}")
        raise UsageError(f"--config.{field} is {text!r}; it must be {kind}") from None


def _parsed(text: str, like: Any) -> Any:
    if isinstance(like, bool):
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
    if isinstance(like, (tuple, list)):
        try:
            parts = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parts = [part.strip() for part in text.split(",") if part.strip()]
        parts = parts if isinstance(parts, (tuple, list)) else (parts,)
        return type(like)(_parsed(str(part), like[0]) if like else part for part in parts)
    return type(like)(text)


def _comments(module: ModuleType) -> dict[str, str]:
    """Field -> the comment on its line in the file, or above it; also of the files that this one starts from."""
    found: dict[str, str] = {}
    for other in vars(module).values():
        if isinstance(other, ModuleType) and hasattr(other, "get_config"):
            found |= _comments(other)
    source = Path(str(module.__file__)).read_text()
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    whole_lines = {i for i, line in enumerate(source.splitlines(), 1) if line.lstrip().startswith("#")}
    for field, line in _assignments(ast.parse(source)):
        first = line
        while first - 1 in whole_lines:
            first -= 1
        above = " ".join(comments[i] for i in range(first, line))
        if comment := comments.get(line) or above:
            found[field] = comment
    return found


def _assignments(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The fields that a configuration file assigns, each with its line: `c.joint.steps = 1`, by any variable's name."""
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}

    def inside(function: ast.FunctionDef, prefix: str) -> Iterator[tuple[str, int]]:
        variables: dict[str, str] = {}
        for node in function.body:
            value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
            called = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = [ast.unparse(target) for target in targets if target is not None]
            if ("ConfigDict" in called or "get_config" in called) and len(names) == 1 and "." not in names[0]:
                variables[names[0]] = prefix
                continue
            for name in names:
                variable, dot, field = name.partition(".")
                if dot and variable in variables:
                    path = f"{variables[variable]}{field}"
                    yield path, node.lineno
                    variables |= {other: f"{path}." for other in names if "." not in other}
                    if called in functions:
                        yield from inside(functions[called], f"{path}.")

    if "get_config" in functions:
        yield from inside(functions["get_config"], "")
