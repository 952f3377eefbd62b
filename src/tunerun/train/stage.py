"""The train stage: loads, trains, and publishes adapter/ or merged/."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn import Parameter
from torch.optim import Optimizer

from tunerun import artifacts
from tunerun.artifacts import Artifact
from tunerun.base_model import BaseModel, read_base, read_teacher
from tunerun.errors import Preempted, Problem, StageError, UserError
from tunerun.formats.tokens import TokenStore
from tunerun.models import adapters, ask, references
from tunerun.models.ask import Questions
from tunerun.plan import step_keys
from tunerun.plan.steps import TrainStep
from tunerun.strategies import SHARDED_STRATEGIES
from tunerun.train import (
    batches,
    checkpoint,
    compiling,
    ema,
    fitting,
    loop,
    material,
    metrics,
    noise,
    optim,
    reference,
    trackers,
)
from tunerun.train import network as networks
from tunerun.train.checkpoint import Checkpoint, Progressed
from tunerun.train.engines import Engine, Parts, make_engine
from tunerun.train.engines.engine import Body
from tunerun.train.job import Job
from tunerun.train.material import ReferenceSource
from tunerun.train.network import Network
from tunerun.train.objectives import OBJECTIVES
from tunerun.train.objectives.objective import Examples, Setting
from tunerun.train.ranks import Ranks, connected
from tunerun.train.signals import StopRequest, stop_requests


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
    with stop_requests() as stop, connected(step.placement) as ranks:
        return train(step, out, stop, ranks)


def train(step: TrainStep, out: Path, stop: StopRequest, ranks: Ranks) -> list[Artifact]:
    """Does what `run` does, on one of several ranks that are connected; the first one returns what was made."""
    wanted = step.train.deterministic or step.placement.device == "cpu"
    set_determinism(deterministic=wanted, threads=step.placement.threads)
    base = read_base(out)
    identity = _identity(step, base, out)
    found = checkpoint.newest(out / artifacts.CHECKPOINTS, ranks)
    if found is not None:
        ranks.attempt(lambda: _check(found, identity, step) if ranks.is_first else None)
    with fitting.explained(step):
        job, network = _prepare(step, base, out, identity, found, ranks)
        return _train(job, found, stop, out, network)


def _check(found: Checkpoint, identity: dict[str, Any], step: TrainStep) -> None:
    """Says how exactly training goes on from a checkpoint.

    Raises:
        UserError: It is of another training.
    """
    reasons = checkpoint.check_identity(found, identity, step.allow)
    kind = f"inexact because {'; '.join(reasons)}" if reasons else "exact, the result is as without the stop"
    print(f"going on from {found.folder.name}: {kind}")


def set_determinism(*, deterministic: bool, threads: int) -> None:
    """Makes the same work give the same bits: a fixed number of threads, and deterministic kernels.

    The backward pass of torch's flash attention is one of those that obey (`attention_backward.cu`).

    Args:
        deterministic: Whether kernels must be deterministic; those that cannot be raise a RuntimeError then.
        threads: Of a CPU.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    # Filling memory that is written anyway would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _prepare(
    step: TrainStep, base: BaseModel, out: Path, identity: dict[str, Any], found: Checkpoint | None, ranks: Ranks
) -> tuple[Job, Network]:
    examples, eval_examples = material.open_examples(step, out / artifacts.DATA), _eval_examples(step, out)
    network = networks.build(_where_loaded(step), base, found)
    _check_vocabulary(examples, network.module)
    trained_parameters = sum(value.numel() for value in network.module.parameters() if value.requires_grad)
    if step.compile:
        compiling.compile_layers(network.module)
    fit = fitting.open_fitting(step, out, identity, network.module, ranks)
    engine = make_engine(_parts(step, network, ranks))
    average = None if step.train.ema_decay is None else ema.start(engine.parameters, step.train.ema_decay)
    if found is not None:
        checkpoint.restore_state(found, engine, average)

    run = engine.run if found is None else _as_at_start(step, base)
    source = material.ReferenceSource(fitting=fit, run=run, ranks=ranks)
    examples, eval_examples = _with_reference(source, out, identity, (examples, eval_examples))
    # It may hold a second network.
    del run, source
    if step.train.neftune_alpha is not None:
        noise.add_noise(network.module, step.train.neftune_alpha)
    job = Job(
        step=step,
        objective=OBJECTIVES[step.objective.kind],
        setting=Setting(config=step.objective, teacher=material.load_teacher(step, base, out)),
        network=network.module,
        engine=engine,
        trained_parameters=trained_parameters,
        ranks=ranks,
        fitting=fit,
        average=average,
        examples=examples,
        eval_examples=eval_examples,
        total_steps=batches.total_steps(
            len(examples),
            global_batch_size=step.train.global_batch_size,
            epochs=step.train.epochs,
            max_steps=step.train.max_steps,
        ),
        checkpoints=out / artifacts.CHECKPOINTS,
        identity=identity,
        save_weights=network.save_checkpoint,
        trainable_only=network.adapter,
        reload=lambda checkpoint: _reload(step, base, checkpoint, engine),
        questions=_questions(step, base),
        imitated=_imitated(step, base, out),
        # What has to be undone, or is computed from the weights, cannot wait for the next step.
        reads_late=engine.moves_on_device and average is None and step.train.on_nonfinite != "rollback",
    )
    return job, network


def _as_at_start(step: TrainStep, base: BaseModel) -> Callable[[Callable[[Any], Any]], Any]:
    """Returns what applies a function to the network as it was before the first step, loaded when that is needed."""

    @functools.cache
    def body() -> Body:
        if step.placement.strategy in SHARDED_STRATEGIES:
            raise StageError(
                f"the run's {reference.FOLDER}/ is missing or of another training, and {step.placement.strategy} cannot"
                " compute it again beside the trained weights. Put it back, or train anew in another run_dir."
            )
        return Body(networks.build(step, base, None).module, step.placement)

    @torch.no_grad()
    def run(function: Callable[[Any], Any]) -> Any:
        return body()(function)

    return run


def _where_loaded(step: TrainStep) -> TrainStep:
    """Returns the step with the device that the whole network is loaded to: the host, where it is then shared out."""
    if step.placement.strategy not in SHARDED_STRATEGIES:
        return step
    return replace(step, placement=replace(step.placement, device="cpu"))


def _parts(step: TrainStep, network: Network, ranks: Ranks) -> Parts:
    embeddings = _embeddings(network.module)

    def optimisers(parameters: Mapping[str, Parameter]) -> tuple[Optimizer, ...]:
        return optim.make_optimisers(parameters, step.train, embeddings=embeddings, rate_factors=network.rate_factors)

    return Parts(
        network=network.module,
        settle=network.settle,
        optimisers=optimisers,
        placement=step.placement,
        ranks=ranks,
        max_grad_norm=step.train.max_grad_norm,
        deepspeed=step.deepspeed,
    )


def _reload(step: TrainStep, base: BaseModel, found: Checkpoint, engine: Engine) -> None:
    """Gives the parameters the weights of a checkpoint, by way of a second network in host memory."""
    host = replace(step, placement=replace(step.placement, device="cpu"))
    loaded = dict(networks.build(host, base, found).module.named_parameters())
    engine.assign({name: loaded[name].detach() for name in engine.parameters})


def _questions(step: TrainStep, base: BaseModel) -> Questions | None:
    # A reward model says how good an answer is, and writes none.
    if not step.eval.prompts or step.objective.kind == "reward":
        return None
    chat = step.objective.kind != "pretrain"
    return ask.read_questions(base.folder, step.eval.prompts, chat=chat, chat_template=step.model.chat_template)


def _imitated(step: TrainStep, base: BaseModel, out: Path) -> tuple[Questions, list[str]] | None:
    """Returns the questions of held-out rows and the answers they should have, when answers are to be compared.

    Raises:
        UserError: No held-out row has both.
    """
    if not step.train.generate_rows:
        return None
    like = ask.read_questions(base.folder, (), chat=False, chat_template=None)
    found = references.questions(TokenStore.open(out / artifacts.EVAL_DATA), like, count=step.train.generate_rows)
    if not found[1]:
        what = "none of the held-out rows has a question and an answer."
        raise UserError(Problem(where="train.generate_rows", what=what, fix="Set it to 0."))
    return found


def _with_reference(
    source: ReferenceSource, out: Path, identity: dict[str, Any], examples: tuple[Examples, Examples | None]
) -> tuple[Examples, Examples | None]:
    """Adds the reference log-probabilities to the rows, and to the held-out ones."""
    folder, (trained, held_out) = out / reference.FOLDER, examples
    trained = material.add_reference(source, trained, folder / "train.safetensors", identity)
    if held_out is not None:
        belongs = {**identity, "eval data (content)": material.content_sha256(out / artifacts.EVAL_DATA)}
        held_out = material.add_reference(source, held_out, folder / "eval.safetensors", belongs)
    return trained, held_out


def _embeddings(network: Any) -> frozenset[str]:
    """Returns the names of the parameters of the embeddings and the output layer."""
    modules = [module for module in network.modules() if isinstance(module, torch.nn.Embedding)]
    head = network.score if adapters.gives_scores(network) else network.get_output_embeddings()
    owned = {id(value) for module in [*modules, head] for value in module.parameters()}
    return frozenset(name for name, value in network.named_parameters() if id(value) in owned)


def _eval_examples(step: TrainStep, out: Path) -> Examples | None:
    if step.train.eval_steps is None:
        return None
    folder = out / artifacts.EVAL_DATA
    if not folder.is_dir():
        fix = "Set data.eval_fraction or data.eval_path, or leave it null."
        raise UserError(Problem(where="train.eval_steps", what="no rows are held out to measure.", fix=fix))
    return material.open_examples(step, folder, held_out=True)


def _check_vocabulary(examples: Examples, network: Any) -> None:
    largest, rows = material.largest_token(examples), network.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        what = f"the data have token {largest}, but the model's embedding ends at {rows - 1}."
        fix = "Take the tokenizer that belongs to the weights, or set model.resize_embeddings=true to add rows."
        raise UserError(Problem(where="model.path", what=what, fix=fix))


def _train(job: Job, found: Checkpoint | None, stop: StopRequest, out: Path, network: Network) -> list[Artifact]:
    start = Progressed() if found is None else found.progress
    if stop.signal is not None:
        raise Preempted(f"stopped by {stop.signal.name} before the first step.")
    opened = trackers.open_trackers(job.step, out, after_step=start.step) if job.ranks.is_first else []
    # SwanLab takes SIGINT for itself.
    stop.watch()
    try:
        end = loop.run(job, start, stop, opened)
    finally:
        for tracker in opened:
            tracker.close()
    if end.last_loss is None:
        raise StageError(
            f"all {end.step} steps were passed over, so that nothing was trained. Lower train.learning_rate, or look "
            "at the samples that the warnings name."
        )
    if job.step.train.keep_best and end.best_step not in (None, end.step):
        _return_to_best(job, end)
    made = _publish(job, network, out)
    if job.ranks.is_first:
        _tell(job, end)
        made.append(artifacts.describe(out, "metrics", artifacts.METRICS))
        # There only when memory ran out.
        if (out / artifacts.FITTING).is_file():
            made.append(artifacts.describe(out, "fitting", artifacts.FITTING))
    return made


def _tell(job: Job, end: Progressed) -> None:
    rate = end.tokens / end.seconds if end.seconds else 0.0
    memory_mib = metrics.peak_memory_bytes(job.step.placement.device) / 2**20
    print(
        f"trained {job.trained_parameters:,} parameters: {end.step} steps, {end.tokens:,} tokens "
        f"in {end.seconds:.1f} s ({rate:,.0f} tokens/s)\n"
        f"loss {end.first_loss:.4f} -> {end.last_loss:.4f}, peak memory {memory_mib:,.0f} MiB"
    )


def _publish(job: Job, network: Network, out: Path) -> list[Artifact]:
    """Writes what was trained, averaged when that was asked for.

    Raises:
        StageError: It could not be written.
        OSError: As before, when the system says why.
    """
    kind, name = ("adapter", artifacts.ADAPTER) if network.adapter else ("model", artifacts.MERGED)
    wanted = [(kind, name), *([("model", artifacts.MERGED)] if network.save_merged is not None else [])]
    with ema.applied(job.average, job.parameters):
        weights = job.engine.weights(trainable=network.adapter)

        def write() -> None:
            _write(out / name, lambda staging: network.save(staging, weights))
            if network.save_merged is not None:
                _write(out / artifacts.MERGED, network.save_merged)

        job.ranks.attempt(lambda: write() if job.ranks.is_first else None)
    return [artifacts.describe(out, kind, name) for kind, name in wanted] if job.ranks.is_first else []


def _write(target: Path, save: Callable[[Path], None]) -> None:
    try:
        with artifacts.publish(target) as staging:
            save(staging)
    except SafetensorError as error:
        raise StageError(f"{target} could not be written: {error}") from error


def _return_to_best(job: Job, end: Progressed) -> None:
    """Gives the network the weights of the step with the best `train.best_metric`.

    Raises:
        StageError: Its checkpoint is damaged.
    """
    assert end.best_step is not None
    metric = job.step.train.best_metric
    told = "the lowest held-out loss" if metric == "loss" else f"the highest {metric}"
    best = checkpoint.read(job.checkpoints, end.best_step, job.ranks)
    if best is None:
        raise StageError(
            f"the weights of step {end.best_step}, which has {told}, are damaged. Put a copy of their checkpoint back, "
            "or publish the last weights: tunerun resume RUN train.keep_best=false --allow train.keep_best"
        )
    job.reload(best)
    ema.restore(job.average, job.parameters)
    if job.ranks.is_first:
        print(f"publishing the weights of step {end.best_step}, with {told}: {end.best_value:.4f}")


def _identity(step: TrainStep, base: BaseModel, out: Path) -> dict[str, Any]:
    adapter = step.model.adapter
    teacher = {"objective.teacher (content)": read_teacher(out).sha256} if step.objective.kind == "distill" else {}
    return {
        **step_keys.fingerprint_keys(step),
        "machine.torch": torch.__version__,
        "machine.kernels": _kernels(step.placement.device),
        "data (content)": material.content_sha256(out / artifacts.DATA),
        "model (content)": base.sha256,
        **teacher,
        "model.adapter (content)": None
        if adapter is None
        else artifacts.describe(Path(adapter), "adapter", ".").sha256,
    }


def _kernels(device: str) -> str:
    """Names what the bits of a result depend on besides the software: the GPU, or the CPU's vector instructions."""
    return torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
