"""The range of each number that a user can set."""

from __future__ import annotations

from typing import Any

from tunerun.config.schema import AnswerConfig, BoundConfig, RunConfig, TrainConfig
from tunerun.errors import Problem

Range = tuple[str, Any, bool, str]
"""Key, value, whether it is in range, and the range in words."""


def check(config: RunConfig) -> list[Problem]:
    """Finds numbers that are out of range."""
    data, evaluation = config.data, config.eval
    rows: list[Range] = [
        ("seed", config.seed, config.seed >= 0, ">= 0"),
        ("data.max_length", data.max_length, data.max_length is None or data.max_length >= 8, ">= 8"),
        ("data.max_rows", data.max_rows, positive(data.max_rows), ">= 1"),
        ("data.eval_rows", data.eval_rows, positive(data.eval_rows), ">= 1"),
        ("data.eval_fraction", data.eval_fraction, 0 <= data.eval_fraction <= 0.5, "from 0 to 0.5"),
        ("data.max_dropped_fraction", data.max_dropped_fraction, 0 <= data.max_dropped_fraction <= 1, "from 0 to 1"),
        ("hardware.processes", config.hardware.processes, positive(config.hardware.processes), ">= 1"),
        ("hardware.threads", config.hardware.threads, positive(config.hardware.threads), ">= 1"),
        ("hardware.max_restarts", config.hardware.max_restarts, config.hardware.max_restarts >= 0, ">= 0"),
        ("hardware.stall_seconds", config.hardware.stall_seconds, positive(config.hardware.stall_seconds), ">= 1"),
        ("cluster.nodes", config.cluster.nodes, config.cluster.nodes >= 1, ">= 1"),
        ("cluster.cpus", config.cluster.cpus, positive(config.cluster.cpus), ">= 1"),
        ("cluster.signal_seconds", config.cluster.signal_seconds, 0 <= config.cluster.signal_seconds <= 65535,
         "from 0 to 65535"),
        ("eval.max_new_tokens", evaluation.max_new_tokens, evaluation.max_new_tokens >= 1, ">= 1"),
        ("eval.batch_size", evaluation.batch_size, evaluation.batch_size >= 1, ">= 1"),
        ("eval.generate_rows", evaluation.generate_rows, evaluation.generate_rows >= 0, ">= 0"),
        ("eval.lm_eval_fewshot", evaluation.lm_eval_fewshot,
         evaluation.lm_eval_fewshot is None or evaluation.lm_eval_fewshot >= 0, ">= 0"),
        ("eval.lm_eval_limit", evaluation.lm_eval_limit, positive(evaluation.lm_eval_limit), ">= 1"),
        ("eval.max_rows", evaluation.max_rows, positive(evaluation.max_rows), ">= 1"),
        ("export.gguf.context", config.export.gguf.context, positive(config.export.gguf.context), ">= 1"),
        ("sweep.trials", config.sweep.trials, config.sweep.trials >= 1, ">= 1"),
        ("sweep.jobs", config.sweep.jobs, config.sweep.jobs >= 1, ">= 1"),
        ("serve.port", config.serve.port, 0 <= config.serve.port <= 65535, "from 0 to 65535"),
        ("serve.context", config.serve.context, positive(config.serve.context), ">= 1"),
        ("serve.gpus", config.serve.gpus, positive(config.serve.gpus), ">= 1"),
        ("serve.max_concurrent", config.serve.max_concurrent, config.serve.max_concurrent >= 1, ">= 1"),
        ("serve.max_n", config.serve.max_n, 1 <= config.serve.max_n <= 128, "from 1 to 128"),
        ("serve.max_body_bytes", config.serve.max_body_bytes, config.serve.max_body_bytes >= 1024, ">= 1024"),
        ("serve.max_prompt_tokens", config.serve.max_prompt_tokens, positive(config.serve.max_prompt_tokens), ">= 1"),
        ("serve.request_seconds", config.serve.request_seconds, config.serve.request_seconds > 0, "> 0"),
    ]  # fmt: skip
    return [
        Problem(where=key, what=f"{value} is out of range: it must be {bound}.")
        for key, value, good, bound in [
            *rows,
            *_answer_ranges(config.answer),
            *_learning_ranges(config),
            *_train_ranges(config.train),
            *(row for form, bound in config.verify.bounds.items() for row in _bound_ranges(form, bound)),
        ]
        if not good
    ]


def _answer_ranges(answer: AnswerConfig) -> list[Range]:
    temperature, top_p = answer.temperature, answer.top_p
    return [
        ("answer.max_prompts", answer.max_prompts, positive(answer.max_prompts), ">= 1"),
        ("answer.samples", answer.samples, answer.samples >= 1, ">= 1"),
        ("answer.temperature", temperature, temperature is None or 0 <= temperature <= 2, "from 0 to 2"),
        ("answer.top_p", top_p, top_p is None or 0 < top_p <= 1, "above 0 and at most 1"),
        ("answer.max_new_tokens", answer.max_new_tokens, positive(answer.max_new_tokens), ">= 1"),
        ("answer.max_dropped_fraction", answer.max_dropped_fraction, 0 <= answer.max_dropped_fraction <= 1,
         "from 0 to 1"),
        ("answer.concurrent", answer.concurrent, 1 <= answer.concurrent <= 1024, "from 1 to 1024"),
        ("answer.retries", answer.retries, answer.retries >= 0, ">= 0"),
        ("answer.timeout", answer.timeout, answer.timeout > 0, "> 0"),
    ]  # fmt: skip


def _bound_ranges(form: str, bound: BoundConfig) -> list[Range]:
    path, kl = f"verify.bounds.{form}", bound.mean_kl_nats
    agreement, ratio = bound.top1_agreement, bound.perplexity_ratio
    return [
        (f"{path}.mean_kl_nats", kl, kl is None or kl > 0, "> 0"),
        (f"{path}.top1_agreement", agreement, agreement is None or 0 <= agreement <= 1, "from 0 to 1"),
        (f"{path}.perplexity_ratio", ratio, ratio is None or ratio > 0, "> 0"),
    ]


def _learning_ranges(config: RunConfig) -> list[Range]:
    method, objective = config.method, config.objective
    return [
        ("method.rank", method.rank, method.rank >= 1, ">= 1"),
        ("method.alpha", method.alpha, method.alpha > 0, "> 0"),
        ("method.dropout", method.dropout, 0 <= method.dropout < 1, "at least 0 and below 1"),
        ("objective.beta", objective.beta, objective.beta > 0, "> 0"),
        ("objective.gamma", objective.gamma, objective.gamma >= 0, ">= 0"),
        ("objective.desirable_weight", objective.desirable_weight, objective.desirable_weight >= 0, ">= 0"),
        ("objective.undesirable_weight", objective.undesirable_weight, objective.undesirable_weight >= 0, ">= 0"),
        ("objective.temperature", objective.temperature, objective.temperature > 0, "> 0"),
        ("objective.cross_entropy_fraction", objective.cross_entropy_fraction,
         0 <= objective.cross_entropy_fraction <= 1, "from 0 to 1"),
        ("method.rank_pattern", dict(method.rank_pattern), all(rank >= 1 for rank in method.rank_pattern.values()),
         "ranks >= 1"),
        ("method.alpha_pattern", dict(method.alpha_pattern), all(value > 0 for value in method.alpha_pattern.values()),
         "alphas > 0"),
        ("method.pissa_iterations", method.pissa_iterations, method.pissa_iterations >= 0, ">= 0"),
        ("method.learning_rate_ratio", method.learning_rate_ratio, method.learning_rate_ratio >= 1, ">= 1"),
        ("method.layers", method.layers, method.layers >= 0, ">= 0"),
        ("objective.label_smoothing", objective.label_smoothing,
         0 <= objective.label_smoothing < (0.5 if objective.kind == "dpo" else 1),
         "at least 0 and below 1 (dpo: below 0.5)"),
    ]  # fmt: skip


def _train_ranges(train: TrainConfig) -> list[Range]:
    return [
        ("train.epochs", train.epochs, train.epochs > 0, "> 0"),
        ("train.max_steps", train.max_steps, positive(train.max_steps), ">= 1"),
        ("train.global_batch_size", train.global_batch_size, train.global_batch_size >= 1, ">= 1"),
        ("train.micro_batch_size", train.micro_batch_size, positive(train.micro_batch_size), ">= 1"),
        ("train.learning_rate", train.learning_rate, train.learning_rate > 0, "> 0"),
        ("train.min_learning_rate_fraction", train.min_learning_rate_fraction,
         0 <= train.min_learning_rate_fraction <= 1, "from 0 to 1"),
        ("train.warmup_steps", train.warmup_steps, train.warmup_steps is None or train.warmup_steps >= 0, ">= 0"),
        ("train.decay_fraction", train.decay_fraction, 0 < train.decay_fraction <= 1, "above 0 and at most 1"),
        ("train.neftune_alpha", train.neftune_alpha, train.neftune_alpha is None or train.neftune_alpha > 0, "> 0"),
        ("train.ema_decay", train.ema_decay, train.ema_decay is None or 0 < train.ema_decay < 1, "between 0 and 1"),
        ("train.warmup_fraction", train.warmup_fraction, 0 <= train.warmup_fraction <= 1, "from 0 to 1"),
        ("train.weight_decay", train.weight_decay, train.weight_decay >= 0, ">= 0"),
        ("train.adam_beta1", train.adam_beta1, 0 <= train.adam_beta1 < 1, "at least 0 and below 1"),
        ("train.adam_beta2", train.adam_beta2, 0 <= train.adam_beta2 < 1, "at least 0 and below 1"),
        ("train.max_grad_norm", train.max_grad_norm, train.max_grad_norm is None or train.max_grad_norm > 0, "> 0"),
        ("train.checkpoint_steps", train.checkpoint_steps, positive(train.checkpoint_steps), ">= 1"),
        ("train.keep_checkpoints", train.keep_checkpoints, train.keep_checkpoints >= 1, ">= 1"),
        ("train.eval_steps", train.eval_steps, positive(train.eval_steps), ">= 1"),
        ("train.generate_rows", train.generate_rows, train.generate_rows >= 0, ">= 0"),
        ("train.early_stopping_evals", train.early_stopping_evals, positive(train.early_stopping_evals), ">= 1"),
        ("train.log_steps", train.log_steps, train.log_steps >= 1, ">= 1"),
    ]  # fmt: skip


def positive(value: float | None) -> bool:
    """Says whether a count is left open or at least 1."""
    return value is None or value >= 1
