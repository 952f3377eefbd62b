"""The data stage: writes data/ of a run, that is the token stores, report.json and preview.txt."""

from __future__ import annotations

import shutil
from array import array
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
from tunerun.data.selection import Selection, select
from tunerun.data.summary import summary
from tunerun.errors import Problem, UserError
from tunerun.formats.tokens import Manifest, TokenStore, TokenWriter
from tunerun.plan.steps import DataStep

REPORT = "report.json"
PREVIEW = "preview.txt"
_EVAL = artifacts.EVAL_DATA.removeprefix(f"{artifacts.DATA}/")
_SCRATCH = ".scratch"


def run(step: DataStep, out: Path) -> list[Artifact]:
    """Prepares the data of a run.

    When rows cannot be used, the report of all rows is data.failed/report.json, and data/ stays as it was.

    Args:
        step: What to do.
        out: Run directory, which has model.json.

    Raises:
        UserError: The data or its settings are wrong; all faults found are listed.
    """
    tokenizer = load_tokenizer(read_base(out).folder)
    encoder = build_encoder(step, read_base(out).folder, tokenizer)
    failed = out / artifacts.FAILED_DATA
    shutil.rmtree(failed, ignore_errors=True)
    with artifacts.publish(out / artifacts.DATA) as folder:
        facts = prepare(step, encoder, tokenizer, folder, failed / REPORT)
    print(summary(facts))
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


def prepare(step: DataStep, encoder: Encoder, tokenizer: Tokenizer, folder: Path, failed: Path) -> dict[str, Any]:
    """Fills a folder with the train set, the eval set, the report and the preview.

    Args:
        step: What to do.
        encoder: Of the objective.
        tokenizer: Of the base model.
        folder: To fill.
        failed: Where the report is written when the data are wrong.

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
    sample_rows = array("q")
    with TokenWriter(scratch) as writer:
        _write(writer, encode_files(train_files, data, encoder, added, tally), sample_rows)
        eval_row = len(tally.ledger)
        if eval_files:
            # `max_rows` is for a quick try of training; what is measured stays the same.
            whole = replace(data, max_rows=None)
            _write(writer, encode_files(eval_files, whole, encoder, added, tally), sample_rows)
        facts = _facts(step, encoder, tokenizer)
        writer.finish(packed=False, **facts)
    samples = TokenStore.open(scratch)
    _check(tally, data, samples, failed)
    selection = select(tally.ledger, samples, np.array(sample_rows), eval_row, data, step.seed)
    chosen = np.flatnonzero(~selection.evaluated & ~selection.left_out)
    if not len(chosen):
        raise UserError(_nothing_left(len(samples), selection))
    train = _assemble(samples, chosen, folder, data, facts)
    chosen = np.flatnonzero(selection.evaluated)
    held = _assemble(samples, chosen, folder / _EVAL, data, facts) if len(chosen) else None
    lengths = samples.lengths()[~selection.left_out]
    shutil.rmtree(scratch)
    found = report.build(tally, train=train, held_out=held, lengths=lengths, selection=selection)
    artifacts.write_json(folder / REPORT, found)
    artifacts.write_text(folder / PREVIEW, preview(TokenStore.open(folder), tokenizer))
    return found


def _write(writer: TokenWriter, samples: Iterator[Encoded], rows: array[int]) -> None:
    """Writes samples, each a row of its own, and notes the number of the row each is of."""
    for encoded in samples:
        writer.add(encoded.sample)
        rows.append(encoded.row.number)


def _check(tally: report.Tally, data: DataConfig, samples: TokenStore, failed: Path) -> None:
    """Refuses data with too many bad rows, and leaves a report of them."""
    too_many = bool(tally.bad) and (data.on_bad_rows == "fail" or tally.bad_fraction > data.max_dropped_fraction)
    if not too_many and not tally.unreadable:
        return
    found = report.build(tally, train=None, held_out=None, lengths=samples.lengths(), selection=None)
    artifacts.write_json(failed, found)
    rows = [*report.problems(tally), report.verdict(tally, data, str(failed))] if too_many else []
    raise UserError([*tally.unreadable, *rows])


def _nothing_left(samples: int, selection: Selection) -> Problem:
    left_out, evaluated = int(selection.left_out.sum()), int(selection.evaluated.sum())
    what = f"nothing is left to train on: {samples} samples, {evaluated} for evaluation, {left_out} left out as copies."
    return Problem(where="data.path", what=what, fix="See the dropped rows, or give more data.")


def _facts(step: DataStep, encoder: Encoder, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "objective": step.objective.kind,
        "tokenizer_sha256": tokenizer.sha256,
        "template_sha256": encoder.template_sha256,
        "max_length": step.data.max_length,
    }


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
