"""GGUF files of several types in one pass over a model's weights, a few rows in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tunerun.chat.tokenizer import read_object
from tunerun.errors import StageError, require
from tunerun.export.mix import FILE_TYPES, choose_types
from tunerun.export.model import Model
from tunerun.export.parameters import add_parameters, read_sizes
from tunerun.export.tensors import Block, Source, blocks_of
from tunerun.formats.floats import Array, Float32, is_finite, to_float32
from tunerun.formats.ggml import encode
from tunerun.formats.ggml_types import TensorType
from tunerun.formats.gguf import GgufFile, GgufTensor
from tunerun.formats.share import share_out
from tunerun.progress import Progress

# generation_config.json's and GGUF's names for the same advice.
_SAMPLING = {"top_p": "top_p", "min_p": "min_p", "temperature": "temp"}


# A file, its type of a tensor, and the importance of the tensor's columns in it.
_Target = tuple[GgufFile, TensorType, Float32 | None]


def write_gguf(
    model: Model, types: Sequence[str], out: Path, *, threads: int, importance: Mapping[str, Float32] | None = None
) -> dict[str, Path]:
    """Writes one file of each type.

    Args:
        model: What to write.
        types: Keys of `FILE_TYPES`.
        out: Folder for the files, which are named `<name>-<type>.gguf`.
        threads: How many work at once.
        importance: Mean square of each input, by GGUF name; used for types of few bits.

    Returns:
        The files by type, in the order of `types`.

    Raises:
        MissingExtra: The `gguf` extra is not installed.
        StageError: A weight is infinite or not a number.
        OSError: The file system refused a read or a write (a full disk, say).
    """
    shapes = {name: source.shape for name, source in model.sources.items()}
    paths = {kind: out / f"{model.name}-{kind}.gguf" for kind in types}
    weighed = {kind: importance if importance and FILE_TYPES[kind].uses_importance else {} for kind in types}
    sizes = read_sizes(model.config, model.architecture)
    chosen = {kind: choose_types(shapes, kind, replace(sizes, importance=bool(weighed[kind]))) for kind in paths}
    with ExitStack() as stack:
        files = {kind: stack.enter_context(_create(path, model, kind, chosen[kind])) for kind, path in paths.items()}
        progress = stack.enter_context(Progress("export", total=sum(map(math.prod, shapes.values())), unit="weights"))

        def jobs() -> Iterator[Callable[[], None]]:
            for name, source in model.sources.items():
                targets = [(files[kind], chosen[kind][name], weighed[kind].get(name)) for kind in files]
                where = source.where if isinstance(source, Source) else name
                yield from (partial(_write_block, name, where, block, targets) for block in blocks_of(source))
                progress.advance(math.prod(source.shape))

        share_out(jobs(), threads=threads)
    return paths


def _create(path: Path, model: Model, kind: str, types: Mapping[str, TensorType]) -> GgufFile:
    tensors = [GgufTensor(name=name, shape=source.shape, type=types[name]) for name, source in model.sources.items()]
    return GgufFile(path, _header(model, kind), tensors)


def _write_block(name: str, where: str, block: Block, targets: Sequence[_Target]) -> None:
    rows, dtype = block.read()
    if not is_finite(rows, dtype):
        raise StageError(f"{where} holds a value that is infinite or not a number.")
    # The same rows go into many files: those of one type are encoded once, and not at all when the weights have that
    # type already.
    encoded: dict[tuple[str, bool], Array] = {(dtype, weighed): rows.view(np.uint8) for weighed in (False, True)}
    values = None
    for file, kind, importance in targets:
        key = (kind.name, importance is not None)
        if key not in encoded:
            values = to_float32(rows, dtype) if values is None else values
            try:
                encoded[key] = encode(values, kind, importance)
            except StageError as error:
                raise StageError(f"{where}: {error}") from error
        file.write_rows(name, block.first, encoded[key])


def _header(model: Model, kind: str) -> Any:
    gguf = require("gguf", "gguf")
    header = gguf.GGUFWriter(None, model.architecture.name)
    header.add_type("model")
    header.add_name(model.name)
    parameters = sum(math.prod(source.shape) for source in model.sources.values())
    header.add_size_label(gguf.size_label(parameters, 0, 0, 0))
    _add_sampling(header, read_object(model.folder / "generation_config.json"))
    add_parameters(header, model.config, model.architecture)
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
    header.add_tokenizer_model(vocabulary.kind)
    header.add_tokenizer_pre(vocabulary.pre_tokenizer)
    header.add_token_list(vocabulary.tokens)
    header.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        header.add_token_scores(vocabulary.scores)
        header.add_add_space_prefix(vocabulary.adds_space)
    merges = vocabulary.scores is None
    special = gguf.SpecialVocab(model.folder, load_merges=merges, n_vocab=len(vocabulary.tokens))
    # What the tokenizer does and the template in use count, not what the package guesses from the files.
    special.add_special_token |= {"bos": model.special.adds_bos, "eos": model.special.adds_eos}
    special.chat_template = model.template
    if model.special.end_of_turn is not None:
        special.special_token_ids["eot"] = model.special.end_of_turn
    special.add_to_gguf(header, quiet=True)
