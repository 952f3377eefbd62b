"""GGUF files of several types in one pass over a model's weights, a few rows in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunerun.chat.template import ChatTemplate
from tunerun.chat.tokenizer import Tokenizer, read_object
from tunerun.errors import Problem, StageError, UserError, require
from tunerun.export import qwen2
from tunerun.export.mix import FILE_TYPES, choose_types
from tunerun.export.special import SpecialTokens, without_generation_blocks
from tunerun.export.vocabulary import Vocabulary, read_vocabulary
from tunerun.formats.architectures import GGUF_ARCHITECTURES
from tunerun.formats.floats import STORAGE, Array, is_finite, to_float32
from tunerun.formats.ggml import Encoder, TensorType
from tunerun.formats.gguf import GgufFile, GgufTensor
from tunerun.formats.safetensors import TensorInfo, read_rows, read_table, read_tensor
from tunerun.progress import Progress

# Values worked on at once. Every type of file takes them from here, so that the model is read once.
_BLOCK_VALUES = 1 << 21
# generation_config.json's and GGUF's names for the same advice.
_SAMPLING = {"top_p": "top_p", "min_p": "min_p", "temperature": "temp"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """All of a model but its weights."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    sources: Mapping[str, TensorInfo]
    """By GGUF name, in the order of the file."""
    vocabulary: Vocabulary
    special: SpecialTokens
    template: str | None


def read_model(
    folder: Path, name: str, *, tokenizer: Tokenizer, special: SpecialTokens, template: ChatTemplate | None
) -> Model:
    """Reads and checks a model folder.

    Args:
        folder: config.json, tokenizer.json and safetensors weights.
        name: Shown to users of the files.
        tokenizer: Of the folder.
        special: Of the tokenizer and the template.
        template: Embedded in the files, if any.

    Raises:
        UserError: The architecture is not supported, or a part is missing, broken or has no equal in llama.cpp.
    """
    config = read_object(folder / "config.json")
    architectures = config.get("architectures") or []
    if not set(architectures) & set(GGUF_ARCHITECTURES):
        what = f"GGUF export of {', '.join(architectures) or 'a model that names no architecture'} is not supported."
        where = f"{folder / 'config.json'}: architectures"
        raise UserError(Problem(where=where, what=what, fix=f"Supported: {', '.join(GGUF_ARCHITECTURES)}."))
    problems = qwen2.check_config(config)
    if problems:
        raise UserError(problems)
    sources = _name_tensors(folder, config)
    return Model(
        folder=folder,
        name=name,
        config=config,
        sources=sources,
        vocabulary=read_vocabulary(
            folder, vocab_size=sources["token_embd.weight"].rows, special=frozenset(tokenizer.named.values())
        ),
        special=special,
        template=without_generation_blocks(template.text) if template else None,
    )


def write_gguf(model: Model, types: Sequence[str], out: Path, *, threads: int) -> dict[str, Path]:
    """Writes one file of each type.

    Args:
        model: What to write.
        types: Keys of `FILE_TYPES`.
        out: Folder for the files, which are named `<name>-<type>.gguf`.
        threads: For quantising.

    Returns:
        The files by type, in the order of `types`.

    Raises:
        MissingExtra: The `gguf` extra is not installed.
        StageError: A weight is infinite or not a number.
        OSError: The file system refused a read or a write (a full disk, say).
    """
    shapes = {name: info.shape for name, info in model.sources.items()}
    paths = {kind: out / f"{model.name}-{kind}.gguf" for kind in types}
    chosen = {kind: choose_types(shapes, kind, qwen2.read_sizes(model.config)) for kind in paths}
    total = sum(info.bytes for info in model.sources.values())
    with ExitStack() as stack:
        encoder = stack.enter_context(Encoder(threads=threads))
        files = {kind: stack.enter_context(_create(path, model, kind, chosen[kind])) for kind, path in paths.items()}
        progress = stack.enter_context(Progress("export", total=total, unit="bytes"))
        for name, source in model.sources.items():
            _write_tensor(name, source, [(files[kind], chosen[kind][name]) for kind in files], encoder)
            progress.advance(source.bytes)
    return paths


def _create(path: Path, model: Model, kind: str, types: Mapping[str, TensorType]) -> GgufFile:
    tensors = [GgufTensor(name=name, shape=info.shape, type=types[name]) for name, info in model.sources.items()]
    return GgufFile(path, _header(model, kind), tensors)


def _write_tensor(
    name: str, source: TensorInfo, targets: Sequence[tuple[GgufFile, TensorType]], encoder: Encoder
) -> None:
    for first, stored in _blocks(source):
        if not is_finite(stored, source.dtype):
            raise StageError(f"{source.file}: {source.name} holds a value that is infinite or not a number.")
        values = to_float32(stored, source.dtype)
        # The same rows go into many files: those of one type are encoded once, and not at all when the weights
        # have that type already.
        encoded: dict[str, Array] = {source.dtype: stored.view(np.uint8)}
        for file, kind in targets:
            if kind.name not in encoded:
                try:
                    encoded[kind.name] = encoder.encode(values, kind)
                except StageError as error:
                    raise StageError(f"{source.name}: {error}") from error
            file.write_rows(name, first, encoded[kind.name])


def _blocks(source: TensorInfo) -> Iterator[tuple[int, Array]]:
    if len(source.shape) == 1:
        yield 0, read_tensor(source).reshape(1, -1)
        return
    step = max(1, _BLOCK_VALUES // source.row_values)
    for first in range(0, source.rows, step):
        yield first, read_rows(source, first, min(step, source.rows - first))


def _name_tensors(folder: Path, config: Mapping[str, Any]) -> dict[str, TensorInfo]:
    table = read_table(folder)
    names = qwen2.tensor_names(config)
    ignored = {"lm_head.weight"} if config.get("tie_word_embeddings", False) else set()
    problems = [_problem(folder, name, "is missing from the weights") for name in names if name not in table]
    for name, info in table.items():
        if name not in names and name not in ignored:
            problems.append(_problem(folder, name, f"is no tensor of {GGUF_ARCHITECTURES[0]}"))
        elif info.dtype not in STORAGE:
            problems.append(_problem(folder, name, f"has the type {info.dtype}, not one of {', '.join(STORAGE)}"))
    if problems:
        raise UserError(problems)
    return {ours: table[theirs] for theirs, ours in names.items()}


def _header(model: Model, kind: str) -> Any:
    gguf = require("gguf", "gguf")
    header = gguf.GGUFWriter(None, qwen2.ARCHITECTURE)
    header.add_type("model")
    header.add_name(model.name)
    parameters = sum(info.rows * info.row_values for info in model.sources.values())
    header.add_size_label(gguf.size_label(parameters, 0, 0, 0))
    _add_sampling(header, read_object(model.folder / "generation_config.json"))
    qwen2.add_parameters(header, model.config)
    header.add_file_type(FILE_TYPES[kind].number)
    header.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(gguf, header, model)
    return header


def _add_sampling(header: Any, advice: Mapping[str, Any]) -> None:
    if advice.get("top_k") is not None:
        header.add_int32("general.sampling.top_k", advice["top_k"])
    for theirs, ours in _SAMPLING.items():
        if advice.get(theirs) is not None:
            header.add_float32(f"general.sampling.{ours}", advice[theirs])


def _add_tokenizer(gguf: Any, header: Any, model: Model) -> None:
    vocabulary = model.vocabulary
    header.add_tokenizer_model("gpt2")
    header.add_tokenizer_pre(vocabulary.pre_tokenizer)
    header.add_token_list(vocabulary.tokens)
    header.add_token_types(vocabulary.types)
    special = gguf.SpecialVocab(model.folder, load_merges=True, n_vocab=len(vocabulary.tokens))
    # What the tokenizer does and the template in use count, not what the package guesses from the files.
    special.add_special_token = {"bos": model.special.adds_bos, "eos": model.special.adds_eos}
    special.chat_template = model.template
    if model.special.end_of_turn is not None:
        special.special_token_ids["eot"] = model.special.end_of_turn
    special.add_to_gguf(header, quiet=True)


def _problem(folder: Path, name: str, what: str) -> Problem:
    return Problem(where=f"{folder}: {name}", what=f"{what}.")
