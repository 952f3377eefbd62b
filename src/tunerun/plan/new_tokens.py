"""Finds rows that the embedding gets for new tokens and that nothing would train."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from tunerun import artifacts
from tunerun.config.schema import ADAPTER_METHODS, RunConfig
from tunerun.errors import Problem

_WHERE = "model.resize_embeddings"
# Modules with a row for each token, and their weights, in every architecture that is trained.
_EMBEDDING, _HEAD = "embed_tokens", "lm_head"
_WEIGHTS = {_EMBEDDING: "model.embed_tokens.weight", _HEAD: "lm_head.weight"}


def problems(config: RunConfig) -> list[Problem]:
    """Finds methods and adapters that leave added rows alone; a fresh adapter trains them, and so does `full`.

    Args:
        config: With the model's shape where that is known, and the adapter's own folder.
    """
    if not config.model.resize_embeddings or "train" not in config.stages:
        return []
    if config.method.kind == "freeze":
        return _frozen(config)
    if config.method.kind in ADAPTER_METHODS and config.model.adapter is not None:
        return _continued(config, Path(config.model.adapter))
    return []


def _grown(config: RunConfig) -> list[str]:
    """Returns the modules that get rows; a head that is not known to be a matrix of its own is left out."""
    shape = config.model.shape
    return [_EMBEDDING] if shape.tied_embeddings or shape.vocabulary is None else [_EMBEDDING, _HEAD]


def _frozen(config: RunConfig) -> list[Problem]:
    patterns = config.method.patterns
    names = [_WEIGHTS[module] for module in _grown(config)]
    left = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not left:
        return []
    what = f"the rows that it adds for new tokens would not be trained: freeze leaves {' and '.join(left)} as it is."
    fix = f"Set method.patterns=[{','.join([*patterns, *left])}], choose another method, or set it to false."
    return [Problem(where=_WHERE, what=what, fix=fix)]


def _continued(config: RunConfig, adapter: Path) -> list[Problem]:
    if not artifacts.is_adapter(adapter):
        return []
    trained = _trained_modules(artifacts.read_json(adapter / artifacts.ADAPTER_CONFIG))
    left = [module for module in _grown(config) if module not in trained]
    if not left or (config.model.shape.tied_embeddings and _HEAD in trained):
        return []
    what = f"the rows that it adds for new tokens would not be trained: {adapter} does not train {' and '.join(left)}."
    fix = (
        "Merge that adapter first and train a new one on the merged model (model.path=RUN/merged), or set it to false."
    )
    return [Problem(where=_WHERE, what=what, fix=fix)]


def _trained_modules(adapter: dict[str, object]) -> set[str]:
    """Returns the last names of the modules that an adapter trains, in whole or in part."""
    found: set[str] = set()
    for key in ("modules_to_save", "target_modules", "trainable_token_indices"):
        named = adapter.get(key)
        if key == "trainable_token_indices" and isinstance(named, list):
            found.add(_EMBEDDING)
        elif isinstance(named, list | dict):
            found |= {str(name).rpartition(".")[2] for name in named}
        elif isinstance(named, str):
            # A regular expression.
            found |= {module for module in _WEIGHTS if module in named}
    return found
