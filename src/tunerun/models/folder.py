"""The files that go with a model's weights: tokenizer, chat template, generation settings, licence. No torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt",
    "added_tokens.json", "special_tokens_map.json",
)  # fmt: skip
_TEMPLATE = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
_FROM_BASE = (
    "generation_config.json",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
    "license*",
    "*_LICENSE*",
)


def carry_files(base: Path, out: Path, *, adapter: Path | None = None) -> None:
    """Copies everything but the weights and config.json into another model folder.

    Tokenizer files and chat template of an adapter's folder win over the base model's: training may have
    changed them.

    Args:
        base: The base model's folder.
        out: Exists.
        adapter: The adapter's folder, when there is one.
    """
    for pattern in (*_FROM_BASE, *_TOKENIZER):
        _copy(base, pattern, out)
    source = base
    if adapter is not None:
        for pattern in _TOKENIZER:
            _copy(adapter, pattern, out)
        source = adapter if _has_template(adapter) else base
    for pattern in _TEMPLATE:
        _copy(source, pattern, out)


def set_chat_template(folder: Path, template: str) -> None:
    """Makes a Jinja source the only chat template of a model folder."""
    for name in _TEMPLATE:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    (folder / _TEMPLATE[0]).write_text(template, encoding="utf-8")
    config = folder / "tokenizer_config.json"
    if config.is_file():
        # Readers disagree on which of the two places wins.
        fields = json.loads(config.read_text(encoding="utf-8"))
        fields.pop("chat_template", None)
        config.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _has_template(folder: Path) -> bool:
    if any((folder / name).exists() for name in _TEMPLATE):
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and "chat_template" in json.loads(config.read_text(encoding="utf-8"))


def _copy(source: Path, pattern: str, out: Path) -> None:
    for path in sorted(source.glob(pattern)):
        target = out / path.name
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, target)
