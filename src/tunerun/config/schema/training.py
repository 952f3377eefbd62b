"""Keys of the sections `objective`, `method` and `train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tunerun.config.schema.kinds import (
    ADAM_OPTIMIZERS,
    ADAPTER_METHODS,
    ALL_LINEAR,
    MethodKind,
    ObjectiveKind,
    Optimizer,
    used_by,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """What is learned."""

    kind: ObjectiveKind = "sft"
    """The loss and the data it needs."""
    loss: Literal["sigmoid", "hinge", "ipo"] = used_by("dpo", default="sigmoid")
    """How a pair's margin becomes a loss."""
    beta: float = used_by("dpo", "orpo", "simpo", "kto", default=0.1)
    """How hard the answers are pulled apart (dpo, kto: how near the model stays to where it began), > 0."""
    label_smoothing: float = used_by("sft", "pretrain", "dpo", default=0.0)
    """Share of each target's probability that is spread evenly over the vocabulary, below 1; of dpo, share of the pairs
    taken to be labelled the wrong way round, below 0.5."""
    gamma: float = used_by("simpo", default=1.0)
    """How much better than the rejected answer the chosen one should be, >= 0."""
    desirable_weight: float = used_by("kto", default=1.0)
    """Weight of desirable answers; both classes should weigh about the same in all."""
    undesirable_weight: float = used_by("kto", default=1.0)
    """Weight of undesirable answers."""
    teacher: str | None = used_by("distill", default=None)
    """Model to imitate, with the same tokenizer: local folder, hub id or shipped model."""
    divergence: Literal["forward_kl", "reverse_kl"] = used_by("distill", default="forward_kl")
    """`forward_kl` covers all that the teacher would say, `reverse_kl` keeps to what it most likely says."""
    temperature: float = used_by("distill", default=1.0)
    """Both distributions are softened by it before they are compared, > 0."""
    cross_entropy_fraction: float = used_by("distill", default=0.5)
    """Share of the loss that is the data's own tokens instead of the teacher's distribution, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodConfig:
    """Which weights move."""

    kind: MethodKind = "lora"
    """How the trainable weights are chosen."""
    rank: int = used_by(*ADAPTER_METHODS, default=16)
    """Rank of the update matrices, >= 1."""
    alpha: float = used_by(*ADAPTER_METHODS, default=32.0)
    """Scale of the update: alpha / rank (rslora: alpha / sqrt(rank))."""
    dropout: float = used_by(*ADAPTER_METHODS, default=0.0)
    """Share of the adapter's inputs zeroed while training, 0 to 1."""
    target_modules: tuple[str, ...] = used_by(*ADAPTER_METHODS, default=(ALL_LINEAR,))
    """Names of the adapted modules, or `all-linear` for every linear layer but the head."""
    modules_to_save: tuple[str, ...] = used_by(*ADAPTER_METHODS, default=())
    """Modules trained in full and kept in the adapter, such as `embed_tokens`."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict, metadata={"kinds": ADAPTER_METHODS, "by": "kind"})
    """Other ranks by the end of module names, a regular expression: `{down_proj: 32}`."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict, metadata={"kinds": ADAPTER_METHODS, "by": "kind"})
    """Other alphas by the end of module names, a regular expression."""
    pissa_iterations: int = used_by("pissa", default=16)
    """Subspace iterations of the fast SVD that finds the principal components; 0 computes all of them exactly."""
    learning_rate_ratio: float = used_by("lora_plus", default=16.0)
    """Learning rate of the B matrices over that of the A matrices, >= 1."""
    bits: Literal[4, 8] = used_by("qlora", default=4)
    """Base weights are held as NF4 (4) or as int8 with one scale for each row (8)."""
    double_quant: bool = used_by("qlora", default=True)
    """With 4 bits, whether the scales are quantised too, which saves 0.37 bits for each weight."""
    layers: int = used_by("freeze", default=2)
    """Number of last decoder layers that are trained."""
    patterns: tuple[str, ...] = used_by("freeze", default=())
    """Further weights that are trained, by shell patterns of their names: `*norm*`, `lm_head.*`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How the weights move."""

    epochs: float = 1.0
    """Passes over the data, when `max_steps` is null."""
    max_steps: int | None = None
    """Number of optimiser steps."""
    global_batch_size: int = 16
    """Samples in an optimiser step over all processes; rows of `data.max_length` when packed."""
    micro_batch_size: int | None = None
    """Samples a process computes at a time; null lets the plan choose. Where memory runs out it is halved while
    training, and the global batch stays."""
    learning_rate: float = 2e-4
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Course of the learning rate after the warm-up; `wsd` stays at the peak and falls at the end."""
    min_learning_rate_fraction: float = used_by("cosine", "linear", "wsd", by="schedule", default=0.0)
    """Where the learning rate ends, as a share of the peak."""
    decay_fraction: float = used_by("wsd", by="schedule", default=0.2)
    """Share of the steps in which the learning rate falls, at the end."""
    warmup_fraction: float = 0.03
    """Share of the steps in which the learning rate rises from zero."""
    warmup_steps: int | None = None
    """Number of steps in which the learning rate rises, instead of a share."""
    optimizer: Optimizer = "adamw"
    """What turns gradients into steps. The 8-bit and paged ones come from bitsandbytes; `muon` moves matrices inside
    the model by Muon and embeddings, output layer and vectors by AdamW."""
    weight_decay: float = 0.0
    """Decoupled weight decay; not applied to biases and norms."""
    adam_beta1: float = used_by(*ADAM_OPTIMIZERS, by="optimizer", default=0.9)
    """AdamW's first-moment decay."""
    adam_beta2: float = used_by(*ADAM_OPTIMIZERS, by="optimizer", default=0.999)
    """AdamW's second-moment decay."""
    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this L2 norm; null turns clipping off."""
    neftune_alpha: float | None = None
    """Uniform noise on the embeddings while training, alpha / sqrt(tokens x width) at most; null adds none."""
    ema_decay: float | None = None
    """Publish a running average of the trained weights with this decay, such as 0.999; null publishes the weights.
    Checkpoints hold the average as what is used, and the weights that training goes on with in a file of their own."""
    activation_checkpointing: bool | None = None
    """Recompute activations to save memory; null lets the plan decide by its estimate. It is turned on while
    training where memory runs out with one sample at a time."""
    compile: bool | None = None
    """Compile each decoder layer (torch.compile, which needs a C++ compiler on a CPU and takes a minute or so at the
    first step); null compiles packed rows on a GPU when the plan expects at least ten minutes of training."""
    deterministic: bool = False
    """Take kernels on a GPU that give the same bits each time, which may be slower, and stop where there is none; on a
    CPU the same plan always gives the same bits."""
    checkpoint_steps: int | None = None
    """Write a resumable checkpoint every so many steps; null writes one only when stopped by a signal."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints kept."""
    eval_steps: int | None = None
    """Measure the loss on the held-out rows every so many steps; null measures it in the eval stage only."""
    generate_rows: int = 0
    """Held-out rows whose last answer is generated at each of these measurements and compared with the row's own by
    BLEU-4 and ROUGE (`eval_bleu4`, `eval_rouge1`, `eval_rouge2`, `eval_rougeL` in the metrics), up to
    `eval.max_new_tokens` long; `eval.generate_rows` does so after training."""
    best_metric: Literal["loss", "bleu4", "rouge1", "rouge2", "rougeL"] = "loss"
    """What `keep_best` and `early_stopping_evals` go by: the held-out loss, or a score of `generate_rows`."""
    keep_best: bool = False
    """Write a checkpoint where `best_metric` is the best so far, and publish its weights instead of the last."""
    early_stopping_evals: int | None = None
    """End training after so many measurements in a row without a better `best_metric`; null trains to the end."""
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """What to do when a loss or a gradient is NaN or infinite: stop, skip the step, or go back to the newest
    checkpoint that was due and on with the rows after the step."""
    log_steps: int = 1
    """Write metrics every so many steps: means over these, and after a resume over those of them done since."""
