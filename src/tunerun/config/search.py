"""Where Hydra finds configs: `./conf` and `./recipes` of the user before the shipped ones.

Recipes lie flat in a folder named `recipes` and are the group `recipe`, so a config source of their own serves them.
"""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from tunerun import paths

GROUP = "recipe"
_HEADER_BYTES = 512


class RecipeSource(ConfigSource):
    """Serves `FOLDER/NAME.yaml` as `recipe/NAME`, in the global package."""

    @staticmethod
    def scheme() -> str:
        """Returns the scheme of search path entries."""
        return "recipes"

    def load_config(self, config_path: str) -> ConfigResult:
        """Reads a recipe.

        Raises:
            ConfigLoadError: There is no such recipe.
            ConfigCompositionException: It holds no keys.
        """
        file = self._file(config_path)
        if file is None or not file.is_file():
            raise ConfigLoadError(f"Config not found: {config_path}")
        with file.open(encoding="utf-8") as text:
            header = ConfigSource._get_header_dict(text.read(_HEADER_BYTES))
            text.seek(0)
            config = OmegaConf.load(text)
        if not OmegaConf.is_dict(config):
            raise ConfigCompositionException(f"recipe {file.stem} is a list: write `key: value` lines.")
        # A recipe sets keys of the whole config, whether or not its first line says so.
        header["package"] = header["package"] or "_global_"
        return ConfigResult(provider=self.provider, path=self.full_path(), config=config, header=header)

    def available(self) -> bool:
        """Says whether the folder exists."""
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        """Says whether a path is the group of recipes, or the root above it."""
        return config_path in ("", GROUP)

    def is_config(self, config_path: str) -> bool:
        """Says whether a path is a recipe."""
        file = self._file(config_path)
        return file is not None and file.is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Lists the group at the root, and the recipes in the group."""
        if config_path == "":
            return [GROUP] if results_filter != ObjectType.CONFIG else []
        if config_path != GROUP or results_filter == ObjectType.GROUP:
            return []
        return sorted(file.stem for file in Path(self.path).glob("*.yaml") if file.is_file())

    def _file(self, config_path: str) -> Path | None:
        group, _, name = config_path.partition("/")
        return Path(self.path) / self._normalize_file_name(name) if group == GROUP and name else None


class ProjectSearchPath(SearchPathPlugin):
    """Puts the user's folders first and the shipped recipes last."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Adds the folders to Hydra's search path."""
        for folder in paths.user_folders("recipes"):
            search_path.prepend("project", f"recipes://{folder}")
        for folder in paths.user_folders("conf"):
            search_path.prepend("project", f"file://{folder}")
        search_path.append("tunerun", f"recipes://{paths.shipped('recipes')}")


def install() -> None:
    """Registers both with Hydra; registering twice changes nothing."""
    plugins = Plugins.instance()
    plugins.register(RecipeSource)
    plugins.register(ProjectSearchPath)
