"""Distillation: the student imitates a teacher's distribution of the next token.

Hinton et al. 2015, "Distilling the Knowledge in a Neural Network": with softened distributions
p_T = softmax(teacher / T) and q_T = softmax(student / T), the loss of a trained token is
f CE(target, q_1) + (1 - f) T^2 D(p_T, q_T), where T^2 keeps the size of the gradients and f is
`objective.cross_entropy_fraction`. D is forward KL(p || q), which covers all that the teacher would say, or reverse
KL(q || p), which keeps to what it most likely says (Gu et al. 2024, "MiniLLM").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from tunerun.config.schema import ObjectiveConfig
from tunerun.models.loss import map_logits
from tunerun.train.objectives.objective import Batch, Outcome, Setting, Totals


def loss(network: Any, batch: Batch, totals: Totals, setting: Setting) -> Outcome:
    """Returns the mean loss over the trained tokens of the global batch."""
    assert setting.teacher is not None, "the train stage loads the teacher"

    def parts(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        hard = cross_entropy(student, targets, reduction="none")
        return torch.stack([hard, divergence(student, teacher, setting.config)], 1)

    hard, soft = map_logits([network, setting.teacher], batch.laid, parts).sum(0)
    fraction = setting.config.cross_entropy_fraction
    mixed = (fraction * hard + (1 - fraction) * soft) / totals.tokens
    count = batch.laid.trained_tokens
    return Outcome(loss=mixed, sums={"cross_entropy": (hard.detach(), count), "divergence": (soft.detach(), count)})


def divergence(student: Tensor, teacher: Tensor, config: ObjectiveConfig) -> Tensor:
    """Returns T^2 D of each row of logits, shape (rows,), in nats.

    Args:
        student: Logits, (rows, vocabulary), float32.
        teacher: As `student`; models of one family pad their vocabularies to different sizes, and rows beyond the
            smaller one belong to no token.
        config: Temperature and direction.
    """
    size = min(student.shape[1], teacher.shape[1])
    student_log, teacher_log = (log_softmax(logits[:, :size] / config.temperature, 1) for logits in (student, teacher))
    if config.divergence == "forward_kl":
        found = teacher_log.exp() * (teacher_log - student_log)
    else:
        found = student_log.exp() * (student_log - teacher_log)
    return config.temperature**2 * found.sum(1)
