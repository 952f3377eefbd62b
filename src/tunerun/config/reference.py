"""Writes the references in conf/README.md and recipes/README.md from the schema and the YAML files.

`python -m tunerun.config.reference` writes both; a test compares them with what stands in the repository.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tunerun import markdown, paths
from tunerun.config import schema, typed
from tunerun.config.schema import OptunaConfig, RunConfig


def config_reference() -> str:
    """Returns conf/README.md: every key with type, default and meaning, and the options of each group."""
    parts = [
        "# Every key\n",
        "Written by `python -m tunerun.config.reference` from `src/tunerun/config/schema/`. Set a key in a recipe,",
        "in an option file, or on the command line as `key=value`; the command line goes before recipes, and recipes",
        "before options.\n",
        "## The run\n",
        _table(RunConfig, ""),
    ]
    for item in dataclasses.fields(RunConfig):
        cls = typed.field_types(RunConfig)[item.name]
        if dataclasses.is_dataclass(cls):
            parts += [f"\n## {item.name}\n", _doc(typing.cast(type, cls)) + "\n"]
            options = option_names(item.name)
            if options:
                parts.append(f"Options: {', '.join(f'`{item.name}={name}`' for name in options)}\n")
            parts.append(_table(typing.cast(type, cls), f"{item.name}."))
    parts += ["\n## hydra.sweeper\n", _doc(OptunaConfig) + "\n", _table(OptunaConfig, "hydra.sweeper.")]
    return "\n".join(parts) + "\n"


def recipe_reference() -> str:
    """Returns recipes/README.md: a table of the shipped recipes."""
    rows = []
    for file in recipe_files():
        groups = recipe_groups(file)
        chosen = [groups.get(group, default) for group, default in _RECIPE_COLUMNS]
        rows.append([f"`{file.stem}`", *chosen, head_comment(file)])
    lines = [
        "# Recipes\n",
        "Written by `python -m tunerun.config.reference` from the files' first comments. Run one with",
        "`tunerun +recipe=NAME`; copy one to change it with `tunerun copy NAME`.\n",
        markdown.table(["recipe", *(group for group, _ in _RECIPE_COLUMNS), "what it is"], rows),
    ]
    return "\n".join(lines) + "\n"


# Groups shown in the table of recipes, and what the primary config chooses when a recipe does not.
_RECIPE_COLUMNS = (("model", "local"), ("objective", "sft"), ("method", "lora"))


def recipe_files() -> list[Path]:
    """Returns the shipped recipes in order of name."""
    return sorted(paths.shipped("recipes").glob("*.yaml"))


def recipe_groups(file: Path) -> dict[str, str]:
    """Returns the options a recipe chooses, by group; a recipe it builds on comes first."""
    groups: dict[str, str] = {}
    for entry in yaml.safe_load(file.read_text(encoding="utf-8"))["defaults"]:
        if isinstance(entry, dict):
            for key, option in entry.items():
                groups[key.removeprefix("override /")] = str(option)
        elif entry != "_self_":
            groups = {**recipe_groups(file.with_name(f"{entry}.yaml")), **groups}
    return groups


def head_comment(file: Path) -> str:
    """Returns the first comment of a file, the package header aside, as one line."""
    lines = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            lines.append(line.lstrip("# ").strip())
    return " ".join(lines)


def option_names(group: str) -> list[str]:
    """Returns the shipped options of a group."""
    return sorted(file.stem for file in (paths.shipped("conf") / group).glob("*.yaml"))


@cache
def field_docs() -> dict[str, dict[str, str]]:
    """Returns the text below each field of the schema, by class and field."""
    docs: dict[str, dict[str, str]] = {}
    for file in sorted(Path(schema.__file__).parent.glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                docs[node.name] = dict(_texts(node))
    return docs


def _texts(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for before, after in zip(node.body, node.body[1:], strict=False):
        if not isinstance(before, ast.AnnAssign) or not isinstance(before.target, ast.Name):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            yield before.target.id, " ".join(after.value.value.split())


def _table(cls: type, prefix: str) -> str:
    return markdown.table(["key", "type", "default", "meaning"], list(_rows(cls, prefix)))


def _rows(cls: type, prefix: str) -> Iterator[tuple[str, ...]]:
    for item in dataclasses.fields(cls):
        annotation = typed.field_types(cls)[item.name]
        if dataclasses.is_dataclass(annotation):
            if prefix:
                yield from _rows(typing.cast(type, annotation), f"{prefix}{item.name}.")
            continue
        members = typing.get_args(annotation)
        if members and dataclasses.is_dataclass(members[-1]):
            yield from _rows(typing.cast(type, members[-1]), f"{prefix}{item.name}.NAME.")
            continue
        text = field_docs()[cls.__name__][item.name]
        if "kinds" in item.metadata:
            text += f" Only for: {', '.join(item.metadata['kinds'])}."
        yield f"`{prefix}{item.name}`", _type_name(annotation), _default(item), text


def _type_name(annotation: Any) -> str:
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(f"`{member}`" for member in members)
    if origin is tuple:
        return f"list of {_type_name(members[0])}"
    if origin is not None and type(None) in members:
        return f"{_type_name(next(member for member in members if member is not type(None)))} or null"
    if origin is not None:
        return f"map of {_type_name(members[1])}"
    return {bool: "true or false", int: "whole number", float: "number", str: "text", Any: "any value"}[annotation]


def _default(item: dataclasses.Field[Any]) -> str:
    value = item.default if item.default is not dataclasses.MISSING else {}
    text = yaml.safe_dump(typed.plain(value), default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
    return f"`{text}`"


def _doc(cls: type) -> str:
    return inspect.getdoc(cls) or ""


def main() -> None:
    """Writes both references."""
    (paths.shipped("conf") / "README.md").write_text(config_reference(), encoding="utf-8")
    (paths.shipped("recipes") / "README.md").write_text(recipe_reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
