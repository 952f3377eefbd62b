"""Finds which file or argument set a key, for messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tunerun import paths
from tunerun.config.search import GROUP

COMMAND_LINE = "command line"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """What was composed, the strongest first."""

    typed: frozenset[str]
    """Dotted keys set on the command line."""
    files: tuple[tuple[str, Path], ...]
    """Package (`method`, or empty for recipes) and file, the strongest first."""

    def origin(self, key: str) -> str:
        """Returns where a key was set: `command line`, `recipes/x.yaml:12`, or an empty text for a default."""
        if any(_covers(typed, key) or _covers(key, typed) for typed in self.typed):
            return COMMAND_LINE
        for package, file in self.files:
            inner = key.removeprefix(package + ".") if package else key
            if package and inner == key:
                continue
            line = _line_of(file, inner)
            if line is not None:
                return f"{label(file)}:{line}"
        return ""


def locate(choices: Mapping[str, str | None], typed: frozenset[str]) -> Sources:
    """Finds the files behind the choices that Hydra made.

    Args:
        choices: Option by group, as `hydra.runtime.choices` has them.
        typed: Dotted keys set on the command line.
    """
    recipes = choices.get(GROUP)
    names = (recipes or "").strip("[]").replace(" ", "").split(",")
    files = [("", file) for name in reversed(names) if name for file in _recipe_chain(name)]
    for group, option in choices.items():
        file = _find("conf", f"{group}/{option}.yaml") if option and group != GROUP and "hydra" not in group else None
        if file is not None:
            files.append((group, file))
    return Sources(typed=typed, files=tuple(files))


def recipe_file(name: str) -> Path | None:
    """Returns the file of a recipe: the user's, or the shipped one."""
    plain = name.removesuffix(".yaml")
    return _find("recipes", f"{plain}.yaml") if plain and "/" not in plain else None


def _recipe_chain(name: str) -> Iterator[Path]:
    file = recipe_file(name)
    if file is None:
        return
    yield file
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    defaults = content["defaults"] if isinstance(content, dict) and "defaults" in content else []
    for entry in reversed(defaults):
        if isinstance(entry, str) and entry != "_self_":
            yield from _recipe_chain(entry)


def _find(kind: str, relative: str) -> Path | None:
    folders = (*paths.user_folders(kind), paths.shipped(kind))
    return next((folder / relative for folder in folders if (folder / relative).is_file()), None)


def _line_of(file: Path, key: str) -> int | None:
    node = yaml.compose(file.read_text(encoding="utf-8"))
    line = None
    parts = key.partition("[")[0].split(".")
    for part in parts:
        if not isinstance(node, yaml.MappingNode):
            return line
        pair = next(((name, value) for name, value in node.value if name.value == part), None)
        if pair is None:
            return None
        line, node = pair[0].start_mark.line + 1, pair[1]
    return line


def _covers(outer: str, key: str) -> bool:
    return key == outer or key.startswith((outer + ".", outer + "["))


def label(file: Path) -> str:
    """Returns a config file as a user names it: from the folder of configs, or from the current one when below it."""
    for kind in ("conf", "recipes"):
        if file.is_relative_to(paths.shipped(kind)):
            return f"{kind}/{file.relative_to(paths.shipped(kind)).as_posix()}"
    below = file.is_relative_to(Path.cwd())
    return (file.relative_to(Path.cwd()) if below else file).as_posix()
