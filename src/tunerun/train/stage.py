"""The train stage: loads, trains, and publishes adapter/ or merged/."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tunerun import artifacts
from tunerun.artifacts import Artifact
from tunerun.base_model import BaseModel, read_base
from tunerun.chat.template import load_template
from tunerun.config import typed
from tunerun.errors import Preempted, Problem, UserError
from tunerun.formats.tokens import MANIFEST, OFFSETS, SEGMENTS, TOKENS, TRAINED, TokenStore
from tunerun.models import adapters, load
from tunerun.models.attention import SEGMENTS as SEGMENT_ATTENTION
from tunerun.models.folder import set_chat_template
from tunerun.plan import steps
from tunerun.plan.steps import TrainStep
from tunerun.train import batches, checkpoint, ema, loop, metrics, noise, optim
from tunerun.train.checkpoint import Checkpoint, Progressed
from tunerun.train.signals import StopRequest, stop_requests

_MODEL = "model"
_SUPPORTED_METHODS = ("full", "lora")


def run(step: TrainStep, out: Path) -> list[Artifact]:
    """Trains the base model of a run on its token store.

    Args:
        step: What to train and how.
        out: The run directory; has model.json and data/.

    Returns:
        The adapter, or the fully trained model.

    Raises:
        UserError: A checkpoint of another training lies in the run directory, or a named module does not exist.
        StageError: The loss or a gradient is not finite, or the data or the model cannot be read.
        Preempted: A signal stopped training; a checkpoint was written if a step was done.
    """
    assert step.method.kind in _SUPPORTED_METHODS, f"the plan let method {step.method.kind} through"
    assert step.placement.strategy == "single", f"the plan let strategy {step.placement.strategy} through"
    with stop_requests() as stop:
        set_determinism(step.placement.device, step.placement.threads)
        base = read_base(out)
        identity = _identity(step, base, out)
        found = checkpoint.newest(out / artifacts.CHECKPOINTS)
        if found is not None:
            reasons = checkpoint.check_identity(found, identity, step.allow)
            kind = f"inexact because {'; '.join(reasons)}" if reasons else "exact, the result is as without the stop"
            print(f"going on from {found.folder.name}: {kind}")
        job, save = _prepare(step, base, out, identity, found)
        return _train(job, found, stop, out, save)


def set_determinism(device: str, threads: int) -> None:
    """Makes the same work give the same bits on a CPU: a fixed number of threads, and deterministic kernels."""
    torch.set_num_threads(threads)
    if device == "cpu":
        torch.use_deterministic_algorithms(True)
        # Filling memory that is written anyway would only cost time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _prepare(
    step: TrainStep, base: BaseModel, out: Path, identity: dict[str, Any], found: Checkpoint | None
) -> tuple[loop.Job, Callable[[Path], None]]:
    store = TokenStore.open(out / artifacts.DATA)
    eval_store = _eval_store(step, out)
    network, save_weights, save_final = _model(step, base, found)
    _check_vocabulary(store, network)
    if step.activation_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
    optimisers = optim.make_optimisers(parameters, step.train, embeddings=_embeddings(network))
    average = None if step.train.ema_decay is None else ema.start(parameters, step.train.ema_decay)
    if found is not None:
        checkpoint.restore_state(found, optimisers, parameters, average)
    if step.train.neftune_alpha is not None:
        noise.add_noise(network, step.train.neftune_alpha)
    job = loop.Job(
        step=step,
        network=network,
        parameters=parameters,
        optimisers=optimisers,
        average=average,
        store=store,
        eval_store=eval_store,
        total_steps=batches.total_steps(
            len(store),
            global_batch_size=step.train.global_batch_size,
            epochs=step.train.epochs,
            max_steps=step.train.max_steps,
        ),
        checkpoints=out / artifacts.CHECKPOINTS,
        identity=identity,
        save_weights=save_weights,
    )
    return job, save_final


def _embeddings(network: Any) -> frozenset[str]:
    """Returns the names of the parameters of the embeddings and the output layer."""
    modules = [module for module in network.modules() if isinstance(module, torch.nn.Embedding)]
    owned = {id(value) for module in [*modules, network.get_output_embeddings()] for value in module.parameters()}
    return frozenset(name for name, value in network.named_parameters() if id(value) in owned)


def _eval_store(step: TrainStep, out: Path) -> TokenStore | None:
    if step.train.eval_steps is None:
        return None
    folder = out / artifacts.EVAL_DATA
    if not folder.is_dir():
        fix = "Set data.eval_fraction or data.eval_path, or leave it null."
        raise UserError(Problem(where="train.eval_steps", what="no rows are held out to measure.", fix=fix))
    return TokenStore.open(folder)


def _check_vocabulary(store: TokenStore, network: Any) -> None:
    largest, rows = int(store.tokens.max()), network.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        what = f"the data have token {largest}, but the model's embedding ends at {rows - 1}."
        fix = "Take the tokenizer that belongs to the weights, or a chat template that uses only its tokens."
        raise UserError(Problem(where="model.path", what=what, fix=fix))


def _model(
    step: TrainStep, base: BaseModel, found: Checkpoint | None
) -> tuple[Any, Callable[[Path], None], Callable[[Path], None]]:
    if step.method.kind == "full":
        source = base.folder if found is None else found.folder / _MODEL
        network = _weights(step, source, torch.float32, resumed=found is not None)
        write = partial(load.save_model, network, base=base.folder, max_shard_size_bytes=step.max_shard_size_bytes)
        final_dtype = load.saved_dtype(base.folder)
        return (
            network,
            lambda folder: write(folder / _MODEL, dtype=torch.float32),
            lambda folder: _complete(write, folder, final_dtype, step, base),
        )
    # A frozen base is not updated, so that rounding it once to the computation's format loses nothing further.
    frozen = torch.bfloat16 if step.placement.precision == "bf16" else torch.float32
    network = _weights(step, base.folder, frozen, resumed=False)
    adapted = _adapter(step, network, found)
    save = partial(adapters.save_adapter, adapted, base_name=base.path)
    return adapted.get_base_model(), lambda folder: save(folder / artifacts.ADAPTER), save


def _complete(write: Callable[..., None], folder: Path, dtype: torch.dtype, step: TrainStep, base: BaseModel) -> None:
    write(folder, dtype=dtype)
    if step.model.chat_template is not None:
        template = load_template(base.folder, {}, step.model.chat_template)
        assert template is not None, "a named template is found or refused"
        set_chat_template(folder, template.text)


def _weights(step: TrainStep, folder: Path, dtype: torch.dtype, *, resumed: bool) -> Any:
    device = step.placement.device
    if step.model.init == "random" and not resumed:
        network = load.random_model(folder, seed=step.seed, device=device, attention=SEGMENT_ATTENTION)
        return network.to(dtype)
    return load.load_model(
        folder,
        dtype=dtype,
        device=device,
        attention=SEGMENT_ATTENTION,
        trust_remote_code=step.model.trust_remote_code,
    )


def _adapter(step: TrainStep, network: Any, found: Checkpoint | None) -> Any:
    if found is not None:
        return adapters.load_adapter(network, found.folder / artifacts.ADAPTER, trainable=True)
    if step.model.adapter is not None:
        print(f"going on with the adapter {step.model.adapter}, at its own rank and modules")
        return adapters.load_adapter(network, Path(step.model.adapter), trainable=True)
    method = step.method
    return adapters.add_lora(
        network,
        rank=method.rank,
        alpha=method.alpha,
        dropout=method.dropout,
        target_modules=method.target_modules,
        modules_to_save=method.modules_to_save,
        seed=step.seed,
    )


def _train(
    job: loop.Job, found: Checkpoint | None, stop: StopRequest, out: Path, save: Callable[[Path], None]
) -> list[Artifact]:
    start = Progressed() if found is None else found.progress
    if stop.signal is not None:
        raise Preempted(f"stopped by {stop.signal.name} before the first step.")
    trackers = _trackers(job.step, out, start.step)
    try:
        end = loop.run(job, start, stop, trackers)
    finally:
        for tracker in trackers:
            tracker.close()
    kind, name = ("model", artifacts.MERGED) if job.step.method.kind == "full" else ("adapter", artifacts.ADAPTER)
    with artifacts.publish(out / name) as staging, ema.applied(job.average, job.parameters):
        save(staging)
    trained = sum(parameter.numel() for parameter in job.parameters.values())
    rate = end.tokens / end.seconds if end.seconds else 0.0
    memory_mib = metrics.peak_memory_bytes(job.step.placement.device) / 2**20
    print(
        f"trained {trained:,} parameters: {end.step} steps, {end.tokens:,} tokens in {end.seconds:.1f} s "
        f"({rate:,.0f} tokens/s)\n"
        f"loss {end.first_loss:.4f} -> {end.last_loss:.4f}, peak memory {memory_mib:,.0f} MiB"
    )
    return [artifacts.describe(out, kind, name), artifacts.describe(out, "metrics", artifacts.METRICS)]


def _trackers(step: TrainStep, out: Path, after_step: int) -> list[metrics.Tracker]:
    found: list[metrics.Tracker] = [metrics.JsonLines(out / artifacts.METRICS, after_step=after_step)]
    if step.track.tensorboard:
        found.append(metrics.TensorBoard(out / "tensorboard", after_step=after_step))
    if step.track.wandb:
        config = typed.plain(step)
        found.append(metrics.Wandb(out, project=step.track.project, name=step.name, config=config))
    return found


def _identity(step: TrainStep, base: BaseModel, out: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name in (MANIFEST, TOKENS, TRAINED, SEGMENTS, OFFSETS):
        digest.update(artifacts.sha256(out / artifacts.DATA / name).encode())
    adapter = step.model.adapter
    return {
        **steps.fingerprint_keys(step),
        "machine.torch": torch.__version__,
        "machine.kernels": _kernels(step.placement.device),
        "data (content)": digest.hexdigest(),
        "model (content)": base.sha256,
        "model.adapter (content)": None
        if adapter is None
        else artifacts.describe(Path(adapter), "adapter", ".").sha256,
    }


def _kernels(device: str) -> str:
    """Names what the bits of a result depend on besides the software: the GPU, or the CPU's vector instructions."""
    return torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
