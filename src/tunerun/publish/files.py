"""Which files are uploaded, under which names, and whether a secret is in one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunerun import artifacts, redact
from tunerun.artifacts import MODEL_FOLDERS
from tunerun.config.schema import PUBLISHED, Published
from tunerun.errors import Problem, StageError, UserError

CARD = f"{artifacts.PUBLISH}/{artifacts.CARD}"
_CHUNK_BYTES = 1 << 20
# Their texts are pieces of words in any order, which look like anything.
_VOCABULARIES = frozenset({"tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"})
_TEXTS = frozenset({".json", ".jinja", ".md", ".txt", ".yaml", ".yml", ".go-template", ""})


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A file to upload."""

    path: Path
    name: str
    """In the repository, with forward slashes."""
    bytes: int
    sha256: str
    git_sha1: str
    """As git names a file's content, by which hubs name small files."""


def collect(run: Path, chosen: Sequence[Published], folder: str | None) -> list[File]:
    """Finds the files of a run that are uploaded, the model card first.

    Args:
        run: The run directory.
        chosen: What to upload; empty takes what there is.
        folder: In the repository; None for its root.

    Raises:
        StageError: Something that was chosen is not there, or nothing is.
    """
    kinds = list(chosen) or _present(run)
    missing = [kind for kind in kinds if not (run / MODEL_FOLDERS[kind]).is_dir()]
    if missing or not kinds:
        what = f"no {', '.join(f'{MODEL_FOLDERS[kind]}/' for kind in missing)}" if missing else "nothing to publish"
        raise StageError(f"{run}: there is {what}. Run the stages that make it.")
    base = f"{folder}/" if folder else ""
    found = []
    if (run / CARD).is_file():
        found.append(_file(run / CARD, base + artifacts.CARD))
    for number, kind in enumerate(kinds):
        source, target = run / MODEL_FOLDERS[kind], base if number == 0 else f"{base}{kind}/"
        # Beside the GGUF files lie folders that are chosen by themselves.
        files = sorted(path for path in source.glob("*" if kind == "gguf" else "**/*") if path.is_file())
        found += [_file(path, target + path.relative_to(source).as_posix()) for path in files]
    names = [file.name for file in found]
    assert len(names) == len(set(names)), f"two files of one name: {names}"
    return found


def refuse_secrets(files: Sequence[File], secrets: tuple[str, ...]) -> None:
    """Looks for secrets in texts that are uploaded.

    Args:
        files: What is uploaded.
        secrets: Values that must not appear, from `redact.secret_values`.

    Raises:
        UserError: Names every file that holds one.
    """
    problems = []
    for file in files:
        if file.path.suffix not in _TEXTS:
            continue
        text = file.path.read_text(encoding="utf-8", errors="replace")
        known = any(secret in text for secret in secrets)
        if known or (file.path.name not in _VOCABULARIES and redact.values(text, ()) != text):
            fix = "Take it out, and make the secret invalid if others may have seen it."
            problems.append(Problem(where=str(file.path), what="holds a secret, which would be published.", fix=fix))
    if problems:
        raise UserError(problems)


def _present(run: Path) -> list[Published]:
    # Beside exported folders, too, lie files for servers.
    files = {kind: (run / MODEL_FOLDERS[kind]).glob("*.gguf" if kind == "gguf" else "*") for kind in PUBLISHED}
    there = [kind for kind in PUBLISHED if any(path.is_file() for path in files[kind])]
    return [kind for kind in there if kind != "adapter" or "merged" not in there]


def _file(path: Path, name: str) -> File:
    size = path.stat().st_size
    sha256 = hashlib.sha256()
    sha1 = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            sha256.update(chunk)
            sha1.update(chunk)
    return File(path=path, name=name, bytes=size, sha256=sha256.hexdigest(), git_sha1=sha1.hexdigest())
