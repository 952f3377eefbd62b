"""The verify stage: runs the gates and fails the run when one fails."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tunerun import artifacts
from tunerun.artifacts import Artifact
from tunerun.base_model import read_base
from tunerun.chat.template import ChatTemplate, load_template
from tunerun.chat.tokenizer import Tokenizer, load_tokenizer
from tunerun.config.schema import GgufType
from tunerun.errors import GateError, StageError
from tunerun.formats.pairs import PairStore, open_store
from tunerun.formats.tokens import read_manifest
from tunerun.formats.verdicts import VERIFY_REPORT
from tunerun.models import load
from tunerun.plan.steps import VERIFY_PROMPTS, VERIFY_ROWS, VerifyStep
from tunerun.progress import Progress
from tunerun.verify import files, folders, greedy, llama_server, logits, probes, renderings, serving, tokens
from tunerun.verify.gates import Gate, Reference, logits_of

_FOLDERS = {"bnb4": artifacts.BNB4, "gptq": artifacts.GPTQ, "awq": artifacts.AWQ, "fp8": artifacts.FP8}


def run(step: VerifyStep, out: Path) -> list[Artifact]:
    """Compares tokens and logits across every hand-off of a run and writes verify/report.json.

    Args:
        step: What there is to compare.
        out: The run directory.

    Returns:
        The report.

    Raises:
        GateError: A gate failed; names them all. The report is written all the same.
        StageError: A file to compare is missing or cannot be read.
    """
    # What an earlier run of the stage found says nothing of what is there now.
    (out / VERIFY_REPORT).unlink(missing_ok=True)
    torch.set_num_threads(step.placement.threads)
    gates: list[Gate] = []
    with Progress("verify", total=None, unit="gates") as progress:
        for gate in _gates(step, out):
            gates.append(gate)
            progress.advance(note=gate.name)
            print(f"{gate.verdict.replace('_', ' '):11}{gate.name}{f': {gate.reason}' if gate.reason else ''}")
    failed = [gate for gate in gates if gate.verdict == "fail"]
    artifacts.write_json(
        out / VERIFY_REPORT,
        {
            "schema": artifacts.REPORT_SCHEMA,
            "level": step.level,
            "passed": not failed,
            "gates": [asdict(gate) for gate in gates],
        },
    )
    if failed:
        raise GateError("\n".join(f"gate {gate.name} failed: {gate.reason}" for gate in failed))
    return [artifacts.describe(out, "report", VERIFY_REPORT)]


def _gates(step: VerifyStep, out: Path) -> Iterator[Gate]:
    base = read_base(out).folder
    merged = out / artifacts.MERGED
    tokenizer = load_tokenizer(base)
    template = load_template(base, tokenizer.named, step.chat_template) if step.chat else None
    rows = _rows(step, out)
    if step.chat:
        yield from _data_gate(template, out)
    checked = list(_file_gates(step, out, base))
    yield from checked
    broken = {gate.name for gate in checked if gate.verdict == "fail"}
    if broken & {f"{files.NAME}:{Path(name).name}" for name in (artifacts.MERGED, *_FOLDERS.values())}:
        # There is nothing to compare with.
        return
    if step.merged:
        yield tokens.folder_gate(tokenizer, template, merged, step.prompts, artifacts.MERGED)
    for name in step.folders:
        yield tokens.folder_gate(tokenizer, template, out / artifacts.EXPORT / name, step.prompts, name)
    found = [(kind, _gguf(out, kind)) for kind in step.gguf_types]
    whole = [(kind, path) for kind, path in found if f"{files.NAME}:{path.name}" not in broken]
    for _, path in whole:
        yield tokens.gguf_gate(tokenizer, template, path, step.prompts, rows)
    if template is not None and whole == found and (found or step.folders):
        yield from renderings.rendering_gates(out / artifacts.EXPORT, tokenizer, template)
    if template is not None and whole == found and found:
        yield llama_server.server_gate(found[0][1], template, step.prompts, tokenizer.named.get("bos_token"))
    if whole == found:
        trained = serving.Trained(tokenizer, template, step.prompts)
        for engine in step.engines:
            yield serving.serving_gate(engine, out, trained, step.python, step.serve_keys.get(engine, ()))
    texts = [*_texts(step, tokenizer, template), *rows]
    prompts = probes.prompt_rows(tokenizer, template, step.prompts, VERIFY_PROMPTS)
    yield from _logit_gates(step, out, base, _Rows(texts, prompts), whole)


def _file_gates(step: VerifyStep, out: Path, base: Path) -> Iterator[Gate]:
    whole = step.level == "full"
    merged = out / artifacts.MERGED
    if step.merged:
        yield files.folder_gate(merged, base if step.adapter is not None else None, whole=whole)
    # An adapter that is merged in passing may bring tokens along.
    source = merged if step.merged else base if step.adapter is None else None
    for kind in step.gguf_types:
        yield files.gguf_gate(_gguf(out, kind), source, whole=whole)
    if step.gguf_adapter:
        assert step.adapter is not None, "checked with the config"
        yield files.adapter_gate(_gguf(out, "lora"), out / step.adapter, whole=whole)
    if "bnb4" in step.folders:
        yield files.folder_gate(out / artifacts.BNB4, source, whole=whole)
    for name in folders.PACKED:
        if name in step.folders:
            # Its layers have other names.
            yield files.folder_gate(out / _FOLDERS[name], None, whole=whole)
    if whole:
        yield from files.recorded_gate(out)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Token ids that models are compared on."""

    texts: list[list[int]]
    prompts: list[list[int]]
    """To go on from."""


def _logit_gates(
    step: VerifyStep, out: Path, base: Path, rows: _Rows, found: Sequence[tuple[GgufType, Path]]
) -> Iterator[Gate]:
    device, threads = step.placement.device, step.placement.threads
    source = out / artifacts.MERGED if step.merged else base
    if step.merged and step.adapter is not None:
        yield logits.merge_gate(base, out / step.adapter, source, rows.texts, device, step.quantisation)
    if not found and not step.folders:
        return
    if step.adapter is not None and not step.merged:
        network = logits.open_merged(base, out / step.adapter, device, step.quantisation)
    else:
        network = load.load_model(source, dtype=torch.float32, device=device)
    reference = Reference(rows.texts, logits_of(network, rows.texts))
    exact = [(kind, path) for kind, path in found if kind in step.continued]
    ties = {kind: logits.gguf_bound(kind, step.bound(kind))["near_tie_nats"] for kind, _ in exact}
    answers = {kind: greedy.continue_prompts(network, rows.prompts, nats) for kind, nats in ties.items()}
    del network
    gc.collect()
    if "bnb4" in step.folders:
        yield folders.bnb4_gate(out / artifacts.BNB4, reference, device, step.bound("bnb4"))
    for name in folders.PACKED:
        if name in step.folders:
            folder, wanted = out / _FOLDERS[name], step.bound(name)
            yield folders.packed_gate(name, folder, source, reference, device, wanted)
    for kind, path in found:
        yield logits.gguf_gate(kind, path, reference, threads, step.bound(kind))
    for kind, path in exact:
        yield greedy.greedy_gate(path, answers[kind], ties[kind], threads)


def _texts(step: VerifyStep, tokenizer: Tokenizer, template: ChatTemplate | None) -> list[list[int]]:
    return probes.token_rows(tokenizer, template, step.prompts)


def _data_gate(template: ChatTemplate | None, out: Path) -> Iterator[Gate]:
    """Yields whether the template that is served is, byte for byte, the one the data were rendered with."""
    if not (out / artifacts.DATA).is_dir():
        return
    trained = read_manifest(out / artifacts.DATA).template_sha256
    served = None if template is None else template.sha256
    same = trained == served
    reason = "" if same else "the data were rendered with another template. Run the data stage and training again."
    yield Gate(
        name="template_of_data",
        measured={"template_sha256": served},
        bound={"template_sha256": trained},
        verdict="pass" if same else "fail",
        reason=reason,
    )


def _rows(step: VerifyStep, out: Path) -> list[list[int]]:
    folders = [out / name for name in (artifacts.EVAL_DATA, artifacts.DATA) if (out / name).is_dir()]
    if not folders:
        return []
    store = open_store(folders[0])
    return probes.store_rows(store.chosen if isinstance(store, PairStore) else store, VERIFY_ROWS[step.level])


def _gguf(out: Path, kind: str) -> Path:
    found = sorted((out / artifacts.EXPORT).glob(f"*-{kind}.gguf"))
    if not found:
        raise StageError(f"{out / artifacts.EXPORT}: no {kind} GGUF file to verify. Run the export stage.")
    return found[0]
