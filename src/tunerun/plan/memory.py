"""Peak memory of one training process by part, and the weights that move. Arithmetic only.

Assumptions, measured against real runs in tests/plan/test_memory.py and, for what ranks hold, test_states.py:

- transformers' layers with torch's attention (no score matrix is kept); the head and the cross-entropy are computed in
  pieces of at most 64 MiB of fp32 scores, except for the architectures that change scores afterwards;
- bf16: full training keeps fp32 weights and computes in bf16 (autocast keeps a bf16 copy of them), ZeRO keeps bf16
  weights and fp32 gradients and puts an fp32 copy beside AdamW's two moments; a frozen base is bf16, adapters are fp32;
- ZeRO-3 keeps small parameters whole in every process, those of an adapter as a rule, beside its part of each;
- gradients of an accumulated step exist while the next micro-batch is computed;
- a model whose own weights ZeRO-3 or FSDP2 trains is cut layer by layer out of mapped files, also when it comes from a
  checkpoint: that takes a rank's part and one layer, and less than training. Every rank still has a whole copy on the
  host while it loads random weights, a reward model, weights of several formats or with added tokens, and the base of
  an adapter whose files have another format than the computation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tunerun.config import typed
from tunerun.config.schema import ADAPTER_METHODS, ALL_LINEAR, MethodKind, ObjectiveKind, Optimizer
from tunerun.errors import Problem, UserError
from tunerun.plan import trained
from tunerun.plan.deepspeed import BUCKET_NUMBERS, WHOLE_NUMBERS
from tunerun.plan.placement import LOGITS_BYTES
from tunerun.plan.shape import Sizes
from tunerun.strategies import Strategy

# CUDA's context and libraries; Python with torch, transformers and peft, and what these import where it is installed
# (measured with scikit-learn and pandas, which are 100 MB of it).
_RUNTIME_BYTES = {"cpu": 500_000_000, "cuda": 800_000_000}
# What comes and goes takes more than its size: glibc keeps freed pieces (measured); CUDA's gaps are in the fraction of
# the device that a plan uses.
_ALLOCATION_FACTOR = {"cpu": 1.5, "cuda": 1.0}
# fp32 moments of AdamW: 8 bytes a weight; in 8 bits with a scale for each block of 256: 2 + 8/256. Adafactor keeps a
# number for each row and column; Muon one moment for matrices, and AdamW's two for the rest are counted as one.
STATE_BYTES: dict[Optimizer, float] = {
    "adamw": 8.0,
    "adamw_8bit": 2.03,
    "paged_adamw": 8.0,
    "paged_adamw_8bit": 2.03,
    "lion": 4.0,
    "adafactor": 0.1,
    "muon": 4.0,
}
_WHOLE_SCORES = ("Gemma2ForCausalLM", "Gemma3ForCausalLM")
# NF4: one fp32 scale for 64 weights, in double quantisation one of 8 bits and one fp32 scale for 256 of these
# (Dettmers et al. 2023, "QLoRA", section 3).
_NF4_BYTES = (4 + 32 / 64) / 8
_NF4_DOUBLE_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What is to be trained, and how it is spread."""

    objective: ObjectiveKind
    method: MethodKind
    rank: int
    target_modules: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    bits: Literal[4, 8] = 4
    """Of the base's linear weights, with qlora."""
    double_quant: bool = True
    layers: int = 0
    """Last decoder layers trained, with freeze."""
    patterns: tuple[str, ...] = ()
    """Further weights trained, with freeze."""
    row_tokens: int
    """Tokens of a row as computed: `data.max_length`, or the longest row when that is known."""
    global_batch_size: int
    """Samples in an optimiser step over all processes."""
    precision: Literal["bf16", "fp32"]
    device: Literal["cpu", "cuda"]
    strategy: Strategy = "single"
    world_size: int = 1
    """Processes on all nodes."""
    offload: bool = False
    state_bytes: float = 8.0
    """What the optimiser keeps for each trained weight, a running average of it included."""
    paged: bool = False
    """Whether that leaves the device when memory is short."""
    bucket_numbers: int = BUCKET_NUMBERS
    """Gradients that DeepSpeed sends at a time."""
    whole_numbers: int = WHOLE_NUMBERS
    """Size of the largest parameter that ZeRO-3 leaves whole."""

    @property
    def rows_per_sample(self) -> int:
        """Rows that one sample is made of: preference losses compute a chosen and a rejected answer."""
        return 2 if self.objective in ("dpo", "orpo", "simpo", "reward") else 1

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares with the model before training, which computes every row once and is not kept."""
        return self.objective in ("dpo", "kto")

    @property
    def number_bytes(self) -> int:
        """Size of a number in the computation."""
        return 2 if self.precision == "bf16" else 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Peak memory of one process, by part."""

    weights_bytes: int
    gradients_bytes: int
    optimiser_bytes: int
    activations_bytes: int
    """Kept by the forward pass for the backward pass."""
    logits_bytes: int
    """Scores over the vocabulary, and the gradients of the head and its input while they are computed."""
    runtime_bytes: int
    """Libraries, contexts, and what DeepSpeed sends gradients through."""
    host_bytes: int
    """Moved to host memory by `hardware.offload`; not part of the device's total."""

    @property
    def total_bytes(self) -> int:
        """What the device has to hold."""
        states = self.weights_bytes + self.gradients_bytes + self.optimiser_bytes
        return states + self.activations_bytes + self.logits_bytes + self.runtime_bytes


def trainable_parameters(size: Sizes, work: Work) -> int:
    """Counts the weights that move.

    Raises:
        UserError: One of the method's modules or layers does not exist.
    """
    if work.method == "full":
        return size.parameters
    if work.method == "freeze":
        return _frozen(size, work).parameters
    return sum(_adapter_tensors(size, work))


def _adapter_tensors(size: Sizes, work: Work) -> Iterator[int]:
    """Yields the size of each tensor that an adapter adds: two for a linear layer, and the lengths of DoRA."""
    targets = _targets(size, work.target_modules)
    for module in work.modules_to_save:
        yield from _module_tensors(size, module)
    for name, linear in trained.linears(size):
        if name.rpartition(".")[2] in targets:
            rank = trained.rank_of(name, work.rank_pattern, work.rank)
            yield from (rank * linear.inputs, rank * linear.outputs)
            if work.method == "dora":
                yield linear.outputs


def _frozen(size: Sizes, work: Work) -> trained.Frozen:
    if work.layers > size.layers:
        what = f"{work.layers} layers are more than the model's {size.layers}."
        raise UserError(Problem(where="method.layers", what=what, fix="Choose fewer, or method=full."))
    return trained.frozen(size, layers=work.layers, patterns=work.patterns)


def layers_with_gradients(size: Sizes, work: Work) -> int:
    """Returns the number of decoder layers whose activations are kept and that gradients pass through."""
    return _frozen(size, work).layers if work.method == "freeze" else size.layers


def memory(size: Sizes, work: Work, *, micro_batch_size: int, activation_checkpointing: bool) -> Memory:
    """Adds up the peak memory of one process.

    Args:
        size: Of the model.
        work: What is trained and how it is spread.
        micro_batch_size: Samples computed at a time.
        activation_checkpointing: Whether layers are computed again in the backward pass.
    """
    tokens = micro_batch_size * work.rows_per_sample * work.row_tokens
    adapter = work.method in ADAPTER_METHODS
    weights, gradients, optimiser = (
        _full_states(size, work) if work.method == "full" else _partial_states(size, work, adapter=adapter)
    )
    host = 0.0
    if work.offload or work.paged:
        host, optimiser = optimiser, 0.0
    if work.offload and work.strategy in ("zero3", "fsdp2"):
        host, weights = host + weights, 0.0
    if work.strategy in ("zero3", "fsdp2"):
        weights += _gathered_bytes(size, work) + _whole_bytes(size, work)
    layer = _layer_activation_bytes(size, work)
    layers = layers_with_gradients(size, work)
    kept = (layers * size.hidden * work.number_bytes + layer) if activation_checkpointing else layers * layer
    return Memory(
        weights_bytes=int(weights),
        gradients_bytes=int(gradients),
        optimiser_bytes=int(optimiser),
        activations_bytes=int(tokens * kept * _ALLOCATION_FACTOR[work.device]),
        logits_bytes=int(_logits_bytes(size, work, tokens) * _ALLOCATION_FACTOR[work.device]),
        runtime_bytes=_RUNTIME_BYTES[work.device] + _bucket_bytes(work),
        host_bytes=int(host),
    )


def _targets(size: Sizes, names: tuple[str, ...]) -> set[str]:
    linears = size.linears
    if names == (ALL_LINEAR,):
        return set(linears)
    problems = [
        Problem(
            where="method.target_modules",
            what=f"the model has no module `{name}`.",
            fix=typed.nearest(name, [*linears]),
        )
        for name in names
        if name not in linears
    ]
    if problems:
        raise UserError(problems)
    return set(names)


def _module_tensors(size: Sizes, name: str) -> list[int]:
    if name in ("embed_tokens", "lm_head"):
        return [size.embedding_parameters]
    if name in size.linears:
        return [size.linears[name].parameters] * size.layers
    fix = typed.nearest(name, ["embed_tokens", "lm_head", *size.linears])
    raise UserError(Problem(where="method.modules_to_save", what=f"the model has no module `{name}`.", fix=fix))


def _parts(work: Work, state: Literal["weights", "gradients", "optimiser"]) -> int:
    """Among how many processes a state is divided (Rajbhandari et al. 2020, "ZeRO", section 5)."""
    divided: dict[Strategy, tuple[str, ...]] = {
        "single": (),
        "ddp": (),
        "zero1": ("optimiser",),
        "zero2": ("optimiser", "gradients"),
        "zero3": ("optimiser", "gradients", "weights"),
        "fsdp2": ("optimiser", "gradients", "weights"),
    }
    return work.world_size if state in divided[work.strategy] else 1


def _trained_bytes(work: Work) -> tuple[float, float, float]:
    """Returns what a process holds for each trained weight: the weight, its gradient, the optimiser's state."""
    half = work.precision == "bf16"
    if work.strategy.startswith("zero"):
        # Weights in the computation's format, an fp32 copy beside the optimiser's own state, and fp32 gradients; before
        # ZeRO-1 adds a bf16 gradient to these, it is held too.
        each = (2.0 if half else 4.0, 6.0 if half and work.strategy == "zero1" else 4.0, 4 + work.state_bytes)
    else:
        # DDP holds what travels beside the gradients.
        each = (4.0, 8.0 if work.strategy == "ddp" and work.world_size > 1 else 4.0, work.state_bytes)
    weights, gradients, optimiser = each
    return (
        weights / _parts(work, "weights"),
        gradients / _parts(work, "gradients"),
        optimiser / _parts(work, "optimiser"),
    )


def _full_states(size: Sizes, work: Work) -> tuple[float, float, float]:
    weights, gradients, optimiser = (size.parameters * each for each in _trained_bytes(work))
    if work.precision == "bf16" and work.strategy in ("single", "ddp"):
        weights += 2 * size.parameters
    return weights, gradients, optimiser


def _partial_states(size: Sizes, work: Work, *, adapter: bool) -> tuple[float, float, float]:
    """Returns the states of a model of which a part is trained: weights in an adapter, or some of its own."""
    trainable = trainable_parameters(size, work)
    largest = max(linear.parameters for linear in size.linears.values())
    base = (size.parameters if adapter else size.parameters - trainable) * float(work.number_bytes)
    if work.method == "qlora":
        nf4 = _NF4_DOUBLE_BYTES if work.double_quant else _NF4_BYTES
        linear = size.layers * size.layer_linear_parameters
        base = linear * (nf4 if work.bits == 4 else 1) + (size.parameters - linear) * work.number_bytes
        # A layer is computed with a copy in the computation's format.
        base += largest * work.number_bytes
    if work.method == "dora":
        # The weight, its update and their sum, in fp32, while a layer computes its rows' lengths.
        base += 3 * 4 * largest
    weights, gradients, optimiser = (trainable * each for each in _trained_bytes(work))
    return base / _parts(work, "weights") + weights, gradients, optimiser


def _bucket_bytes(work: Work) -> int:
    """Returns what DeepSpeed keeps for gradients that travel, however few there are."""
    if not work.strategy.startswith("zero"):
        return 0
    number = 4 if work.strategy == "zero1" else work.number_bytes
    # With CUDA, ZeRO-2 fills one while another travels.
    return work.bucket_numbers * number * (2 if work.strategy == "zero2" and work.device == "cuda" else 1)


def _gathered_bytes(size: Sizes, work: Work) -> float:
    """The layer that computes and the next one, whole, and the embedding or head."""
    return (2 * size.layer_parameters + size.embedding_parameters) * work.number_bytes


def _whole_bytes(size: Sizes, work: Work) -> float:
    """Parameters so small that ZeRO-3 never takes them apart again: all processes have them whole."""
    # One process has them once, unless its parts are on the host.
    if work.strategy != "zero3" or (work.world_size == 1 and not work.offload):
        return 0
    counts = [count for _, count in trained.weights(size)]
    if work.method in ADAPTER_METHODS:
        counts += _adapter_tensors(size, work)
    return work.number_bytes * sum(count for count in counts if count <= work.whole_numbers)


def _logits_bytes(size: Sizes, work: Work, tokens: int) -> float:
    """Head and cross-entropy of a micro-batch in which every token is trained."""
    scores = 4.0 * size.vocabulary * tokens
    if size.architecture in _WHOLE_SCORES:
        # The scores, their logarithms and the gradient.
        return 3 * scores
    # The scores in fp32, their exponentials where they do not take their place, and in bf16 what they are made from.
    copies = (1 if work.objective in ("sft", "pretrain") else 2) + (0 if work.number_bytes == 4 else 0.5)
    pieces = min(scores, LOGITS_BYTES[work.device]) * copies
    head_gradient = 0 if work.method in ADAPTER_METHODS else 4 * size.embedding_parameters
    return pieces + tokens * size.hidden * work.number_bytes + head_gradient


def _layer_activation_bytes(size: Sizes, work: Work) -> float:
    """What one decoder layer keeps for each token."""
    number = work.number_bytes
    full = work.method not in ADAPTER_METHODS
    adapted = set(size.linears) if full or work.target_modules == (ALL_LINEAR,) else set(work.target_modules)
    # Norms compute in fp32: they keep their input, and for a trained norm its normalised input.
    norms = 2 * size.hidden * (4 + (number if full else 0))
    inputs = [linear.inputs for name, linear in size.linears.items() if name in adapted]
    shared = size.hidden * (bool(adapted & {"q_proj", "k_proj", "v_proj"}) + bool(adapted & {"gate_proj", "up_proj"}))
    down = size.intermediate if "down_proj" in adapted else 0
    # Of DoRA, peft casts the input of every adapted module to the adapter's fp32 and autocast back: a copy each.
    linear_inputs = sum(inputs) if work.method == "dora" and number == 2 else shared + down
    # Queries, keys, values, what comes out of each segment, and the segments laid end to end.
    attention = 3 * size.query_width + 2 * size.kv_width
    feed_forward = 3 * size.intermediate
    ranks = 0 if full else work.rank * len(inputs)
    # DoRA scales what the weight gives and what the update gives, and keeps both.
    outputs = sum(linear.outputs for name, linear in size.linears.items() if name in adapted)
    scaled = 2 * outputs if work.method == "dora" else 0
    return norms + number * (linear_inputs + attention + feed_forward + ranks + scaled)
