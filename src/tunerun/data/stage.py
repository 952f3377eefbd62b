"""The data stage: writes data/ of a run, that is the token stores, report.json and preview.txt."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunerun import artifacts
from tunerun.artifacts import Artifact
from tunerun.base_model import read_base
from tunerun.chat.mask import Renderer
from tunerun.chat.template import load_template
from tunerun.chat.tokenizer import Tokenizer, load_tokenizer
from tunerun.config.schema import DataConfig
from tunerun.data import read, report
from tunerun.data.encode import Encoder, pretrain, sft
from tunerun.data.pack import pack
from tunerun.data.prepare import Encoded, encode_files
from tunerun.data.preview import preview
from tunerun.data.split import held_out, share
from tunerun.errors import Problem, UserError
from tunerun.formats.tokens import Manifest, TokenStore, TokenWriter
from tunerun.plan.steps import DataStep

REPORT = "report.json"
PREVIEW = "preview.txt"
_EVAL = artifacts.EVAL_DATA.removeprefix(f"{artifacts.DATA}/")
_SCRATCH = ".scratch"


def run(step: DataStep, out: Path) -> list[Artifact]:
    """Prepares the data of a run.

    Args:
        step: What to do.
        out: Run directory, which has model.json.

    Raises:
        UserError: The data or its settings are wrong; all faults found are listed.
    """
    tokenizer = load_tokenizer(read_base(out).folder)
    encoder = build_encoder(step, read_base(out).folder, tokenizer)
    with artifacts.publish(out / artifacts.DATA) as folder:
        facts = prepare(step, encoder, tokenizer, folder)
    print(report.summary(facts))
    return [artifacts.describe(out, "data", artifacts.DATA)]


def build_encoder(step: DataStep, folder: Path, tokenizer: Tokenizer) -> Encoder:
    """Returns how the objective turns rows into samples.

    Args:
        step: What to do.
        folder: Of the base model.
        tokenizer: Of the base model.

    Raises:
        UserError: The model lacks what the objective needs.
    """
    if step.objective.kind == "pretrain":
        return pretrain.encoder(tokenizer, step.data.max_length)
    if step.objective.kind != "sft":
        what = f"data for objective={step.objective.kind} cannot be prepared yet."
        raise UserError(Problem(where="objective.kind", what=what, fix="Use sft or pretrain."))
    template = load_template(folder, tokenizer.named, step.chat_template)
    if template is None:
        fix = "Name one by model.chat_template, such as chatml."
        raise UserError(Problem(where="model.chat_template", what="the model has no chat template.", fix=fix))
    return sft.encoder(Renderer(template, tokenizer, step.data.train_on, step.data.multi_turn))


def prepare(step: DataStep, encoder: Encoder, tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Fills a folder with the train set, the eval set, the report and the preview.

    Returns:
        The content of report.json.

    Raises:
        UserError: The data are wrong; all faults found are listed.
    """
    data, tally = step.data, report.Tally()
    scratch = folder / _SCRATCH
    cache_dir = None if step.cache_dir is None else Path(step.cache_dir)
    train_files = read.find_files(data.path, cache_dir=cache_dir)
    eval_files = read.find_files(data.eval_path, "data.eval_path", cache_dir)
    added = np.array(sorted(tokenizer.backend.get_added_tokens_decoder()), np.int64)
    seed = step.seed if data.eval_fraction and not eval_files else None
    with TokenWriter(scratch) as writer:
        shares = _write(writer, encode_files(train_files, data, encoder, added, tally), seed)
        train_samples = writer.samples
        if eval_files:
            # `max_rows` is for a quick try of training; what is measured stays the same.
            whole = replace(data, max_rows=None)
            _write(writer, encode_files(eval_files, whole, encoder, added, tally), None)
        _check(tally, data)
        facts = _facts(step, encoder, tokenizer)
        writer.finish(packed=False, **facts)
    samples = TokenStore.open(scratch)
    evaluated = _choose_eval(samples, train_samples, np.array(shares), data)
    train = _assemble(samples, np.flatnonzero(~evaluated), folder, data, facts)
    chosen = np.flatnonzero(evaluated)
    held = _assemble(samples, chosen, folder / _EVAL, data, facts) if len(chosen) else None
    lengths = samples.lengths()
    shutil.rmtree(scratch)
    found = report.build(tally, train, held, lengths)
    artifacts.write_json(folder / REPORT, found)
    artifacts.write_text(folder / PREVIEW, preview(TokenStore.open(folder), tokenizer))
    return found


def _write(writer: TokenWriter, samples: Iterator[Encoded], seed: int | None) -> list[float]:
    """Writes samples, each a row of its own, and returns their rows' shares when a seed is given."""
    shares: list[float] = []
    for encoded in samples:
        writer.add(encoded.sample)
        if seed is not None:
            shares.append(share(encoded.row.value, seed))
    return shares


def _check(tally: report.Tally, data: DataConfig) -> None:
    too_many = data.on_bad_rows == "fail" or tally.bad_fraction > data.max_dropped_fraction
    rows = report.problems(tally) if tally.bad and too_many else []
    if rows or tally.unreadable:
        raise UserError([*tally.unreadable, *rows])


def _facts(step: DataStep, encoder: Encoder, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "objective": step.objective.kind,
        "tokenizer_sha256": tokenizer.sha256,
        "template_sha256": encoder.template_sha256,
        "max_length": step.data.max_length,
    }


def _choose_eval(
    samples: TokenStore, train_samples: int, shares: npt.NDArray[np.float64], data: DataConfig
) -> npt.NDArray[np.bool_]:
    """Returns which samples are evaluated on, shape [samples].

    Raises:
        UserError: Nothing would be left to train on.
    """
    evaluated = np.zeros(len(samples), np.bool_)
    if data.eval_path:
        evaluated[train_samples:] = True
    elif data.eval_fraction:
        evaluated = held_out(shares, data.eval_fraction)
    if evaluated.all():
        what = f"nothing is left to train on: {len(samples)} samples, {int(evaluated.sum())} of them for evaluation."
        raise UserError(Problem(where="data.path", what=what, fix="See the dropped rows, or give more data."))
    return evaluated


def _assemble(
    samples: TokenStore, chosen: npt.NDArray[np.int64], folder: Path, data: DataConfig, facts: dict[str, Any]
) -> Manifest:
    """Writes a store of the chosen samples, packed or one to a row."""
    rows: Iterable[npt.NDArray[Any]] = np.arange(len(chosen))[:, None]
    if data.packing:
        rows = pack(samples.lengths()[chosen], data.max_length)
    with TokenWriter(folder) as writer:
        for row in rows:
            writer.add(*(samples.row(int(chosen[index]))[:2] for index in row))
        return writer.finish(packed=data.packing, **facts)
