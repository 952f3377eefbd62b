"""What is learned: the objectives by the kind that the config names."""

from __future__ import annotations

from tunerun.train.objectives import distill, dpo, kto, orpo, pairs, reward, simpo, tokens
from tunerun.train.objectives.objective import Objective

OBJECTIVES: dict[str, Objective] = {
    "sft": Objective(collate=tokens.collate, loss=tokens.loss, unit="tokens"),
    "pretrain": Objective(collate=tokens.collate, loss=tokens.loss, unit="tokens"),
    "distill": Objective(collate=tokens.collate, loss=distill.loss, unit="tokens"),
    "dpo": Objective(collate=pairs.collate_with_reference, loss=dpo.loss, unit="rows", reference=pairs.reference),
    "orpo": Objective(collate=pairs.collate, loss=orpo.loss, unit="rows"),
    "simpo": Objective(collate=pairs.collate, loss=simpo.loss, unit="rows"),
    "kto": Objective(collate=kto.collate, loss=kto.loss, unit="rows", reference=kto.reference, kl=kto.kl),
    "reward": Objective(collate=pairs.collate, loss=reward.loss, unit="rows"),
}
