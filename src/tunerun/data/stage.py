"""The data stage: writes data/ of a run, that is the token stores, report.json and preview.txt."""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from tunerun.data import cache, read, report
from tunerun.data.assemble import assemble, repeat, times
from tunerun.data.encode import Encoder, kto, label_of, preference, pretrain, samples_of, sft
from tunerun.data.inputs import Input, find_inputs
from tunerun.data.prepare import encode_files
from tunerun.data.preview import preview
from tunerun.data.selection import Selection, select
from tunerun.data.summary import summary
from tunerun.errors import Problem, UserError
from tunerun.formats.pairs import open_store
from tunerun.formats.tokens import TokenStore, TokenWriter
from tunerun.plan.steps import DataStep

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
    model, inputs = read_base(out).folder, find_inputs(step, out)
    files = [file for given in inputs for file in given.files]
    read.check_files(files)
    failed = out / artifacts.FAILED_DATA
    shutil.rmtree(failed, ignore_errors=True)
    if not step.data.cache:
        with artifacts.publish(out / artifacts.DATA) as folder:
            _prepare_with(model, step, inputs, folder, failed)
    else:
        key = cache.key_of(step, files, model)
        with cache.one_at_a_time(key), artifacts.publish(out / artifacts.DATA) as folder:
            if cache.take(key, folder):
                print("data: prepared before, taken from the cache")
            else:
                _prepare_with(model, step, inputs, folder, failed)
                cache.keep(key, folder)
    print(summary(artifacts.read_json(out / artifacts.DATA / artifacts.STAGE_REPORT)))
    return [artifacts.describe(out, "data", artifacts.DATA)]


def _prepare_with(model: Path, step: DataStep, inputs: Sequence[Input], folder: Path, failed: Path) -> None:
    tokenizer, step = load_tokenizer(model), bounded(step, model)
    prepare(step, inputs, build_encoder(step, model, tokenizer), tokenizer, folder, failed)


def bounded(step: DataStep, folder: Path) -> DataStep:
    """Returns a step whose `data.max_length` is a number: the model's context where the user set none.

    Args:
        step: What to do.
        folder: Of the base model.

    Raises:
        UserError: There is neither.
    """
    if step.data.max_length is not None:
        return step
    config = artifacts.read_json(folder / "config.json")
    context = config.get("max_position_embeddings")
    if context is None:
        what = "null takes the model's context, and its config.json has no max_position_embeddings."
        raise UserError(Problem(where="data.max_length", what=what, fix="Set data.max_length=2048, say."))
    return replace(step, data=replace(step.data, max_length=context))


def build_encoder(step: DataStep, folder: Path, tokenizer: Tokenizer) -> Encoder:
    """Returns how the objective turns rows into samples.

    Args:
        step: What to do.
        folder: Of the base model.
        tokenizer: Of the base model.

    Raises:
        UserError: The model lacks what the objective needs.
    """
    limit = step.data.max_length
    assert limit is not None, "the stage bounds it"
    if step.objective.kind == "pretrain":
        return pretrain.encoder(tokenizer, limit)
    template = load_template(folder, tokenizer.named, step.chat_template)
    if template is None:
        fix = "Name one by model.chat_template, such as chatml."
        raise UserError(Problem(where="model.chat_template", what="the model has no chat template.", fix=fix))
    if step.objective.kind in ("sft", "distill"):
        return sft.encoder(Renderer(template, tokenizer, step.data.train_on, step.data.multi_turn))
    renderer = Renderer(template, tokenizer)
    return kto.encoder(renderer) if step.objective.kind == "kto" else preference.encoder(renderer)


def prepare(
    step: DataStep, inputs: Sequence[Input], encoder: Encoder, tokenizer: Tokenizer, folder: Path, failed: Path
) -> None:
    """Fills a folder with the train set, the eval set, the report and the preview.

    Args:
        step: What to do.
        inputs: What is read.
        encoder: Of the objective.
        tokenizer: Of the base model.
        folder: To fill.
        failed: Folder for the report when the data are wrong.

    Raises:
        UserError: The data are wrong; all faults found are listed.
    """
    data, bad_rows = step.data, folder / report.BAD_ROWS
    scratch, facts = folder / _SCRATCH, _facts(step, encoder, tokenizer)
    folder.mkdir(parents=True)
    with bad_rows.open("w", encoding="utf-8") as listing:
        tally = report.Tally(listing=listing)
        read_rows = _encode(step, inputs, encoder, tokenizer, scratch, tally=tally)
    if not tally.bad:
        bad_rows.unlink()
    samples = TokenStore.open(scratch)
    _check(tally, data, samples, folder, failed)
    selection = select(tally.ledger, samples, read_rows.of_samples, len(read_rows.weights), data, step.seed)
    chosen = np.flatnonzero(~selection.evaluated & ~selection.left_out)
    repeats = times(tally.ledger.contents[read_rows.of_samples[chosen]], read_rows.weights_of(chosen), step.seed)
    chosen = repeat(chosen, repeats, paired=encoder.paired)
    if not len(chosen):
        raise UserError(_nothing_left(len(samples), selection))
    capacity = data.max_length if data.packing else None
    assemble(samples, chosen, folder, paired=encoder.paired, capacity=capacity, facts=facts)
    chosen, held = np.flatnonzero(selection.evaluated), None
    if len(chosen):
        assemble(samples, chosen, folder / _EVAL, paired=encoder.paired, capacity=capacity, facts=facts)
        held = open_store(folder / _EVAL)
    lengths = samples.lengths()[~selection.left_out]
    shutil.rmtree(scratch)
    train = open_store(folder)
    found = report.build(tally, train=train, held_out=held, lengths=lengths, selection=selection)
    artifacts.write_json(folder / artifacts.STAGE_REPORT, found)
    artifacts.write_text(folder / PREVIEW, preview(train, tokenizer))


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows that were read, by their number in the ledger; those of `data.eval_path` come last."""

    of_samples: npt.NDArray[np.int64]
    """Number of each sample's row, shape [samples]."""
    weights: npt.NDArray[np.float64]
    """Of each row that may be trained on, shape [training rows]."""

    def weights_of(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Returns the weights of some samples' rows."""
        return self.weights[self.of_samples[samples]]


def _encode(
    step: DataStep,
    inputs: Sequence[Input],
    encoder: Encoder,
    tokenizer: Tokenizer,
    scratch: Path,
    *,
    tally: report.Tally,
) -> _Rows:
    """Writes all samples into a store, one to a row; a pair's two follow each other."""
    added = np.array(sorted(tokenizer.backend.get_added_tokens_decoder()), np.int64)
    of_samples, weights = array("q"), array("d")
    with TokenWriter(scratch, labelled=encoder.labelled) as writer:
        for given in inputs:
            for encoded in encode_files(given, step.data, encoder, added, tally):
                for sample in samples_of(encoded.example):
                    writer.add(sample, label=label_of(encoded.example))
                    of_samples.append(encoded.row.number)
            if not given.evaluated:
                weights.extend([given.source.weight] * (len(tally.ledger) - len(weights)))
        writer.finish(packed=False, **_facts(step, encoder, tokenizer))
    return _Rows(np.array(of_samples, np.int64), np.array(weights, np.float64))


def _check(tally: report.Tally, data: DataConfig, samples: TokenStore, folder: Path, failed: Path) -> None:
    """Refuses data with too many bad rows, and leaves a report of them."""
    too_many = bool(tally.bad) and (data.on_bad_rows == "fail" or tally.bad_fraction > data.max_dropped_fraction)
    if not too_many and not tally.unreadable:
        return
    found = report.build(tally, train=None, held_out=None, lengths=samples.lengths(), selection=None)
    with artifacts.publish(failed) as staging:
        staging.mkdir()
        artifacts.write_json(staging / artifacts.STAGE_REPORT, found)
        if tally.bad:
            shutil.copyfile(folder / report.BAD_ROWS, staging / report.BAD_ROWS)
    last = [report.verdict(tally, data, failed)] if too_many else []
    raise UserError([*report.problems(tally, rows=too_many), *last])


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
