from __future__ import annotations

import pytest

from tunerun.config import checks, typed
from tunerun.config.schema import RunConfig


def config(**changes) -> RunConfig:
    data = {
        "model": {"path": "m"},
        "data": {"path": ["d"]},
        "export": {"gguf": {"types": ["f16"]}},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            data.setdefault(section, {})[name] = value
        else:
            data[section] = value
    built, problems = typed.build(RunConfig, data)
    assert problems == []
    return built


def test_a_sound_config_has_no_problems():
    assert checks.check(config()) == []


def test_an_adapter_alone_can_be_exported():
    stages = ["data", "train", "export", "verify"]
    assert checks.check(config(stages=stages, export={"gguf": {"types": [], "adapter": True}})) == []


@pytest.mark.parametrize(
    ("changes", "where", "part"),
    [
        ({"data__packing": True, "objective__kind": "kto"}, "data.packing", "cannot pack"),
        ({"hardware__strategy": "zero3", "hardware__processes": 1}, "hardware.strategy", "shares nothing"),
        ({"hardware__strategy": "ddp", "hardware__processes": 1}, "hardware.processes", "at least 2"),
        ({"hardware__processes": 2}, "hardware.processes", "single is one process"),
        ({"hardware__strategy": "ddp", "hardware__processes": 3}, "train.global_batch_size", "=18"),
        ({"train__micro_batch_size": 5}, "train.micro_batch_size", "does not divide"),
        ({"method__kind": "pissa", "model__adapter": "a"}, "model.adapter", "cannot go on with an adapter"),
        ({"method__kind": "freeze", "method__layers": 0}, "method.layers", "nothing would be trained"),
        ({"export__merge_base": "dequantised"}, "export.merge_base", "only the base of qlora"),
        ({"method__rank_pattern": {"q_proj": 0}}, "method.rank_pattern", "ranks >= 1"),
        ({"method__learning_rate_ratio": 0.5}, "method.learning_rate_ratio", "must be >= 1"),
        ({"stages": ["train", "data"]}, "stages", "[data,train]"),
        ({"stages": []}, "stages", "is empty"),
        ({"stages": ["train"]}, "stages", "needs the data stage"),
        ({"stages": ["merge"]}, "stages", "no adapter"),
        (
            {"stages": ["export"], "export": {"gptq": {"write": True}}},
            "export.gptq.write",
            "no data to calibrate on",
        ),
        (
            {"stages": ["data", "train", "export"], "export": {"gptq": {"write": True}}},
            "export.gptq.write",
            "none is merged",
        ),
        (
            {"stages": ["data", "train", "export"], "export": {"fp8": {"write": True}}},
            "export.fp8.write",
            "none is merged",
        ),
        ({"stages": ["export"], "export": {"awq": {"write": True}}}, "export.awq.write", "no data to calibrate on"),
        ({"stages": ["publish"]}, "publish.repo", "nowhere to publish"),
        ({"publish__repo": "name"}, "publish.repo", "OWNER/NAME"),
        ({"publish__repo": "../name"}, "publish.repo", "OWNER/NAME"),
        ({"publish__ollama": "-x"}, "publish.ollama", "cannot name a model"),
        ({"publish__folder": "a/../../b"}, "publish.folder", "not a folder of a repository"),
        ({"sweep": {"finish_best": True, "metric": "gguf_bytes"}}, "sweep.finish_best", "only the best one"),
        (
            {"stages": ["export"], "export": {"gguf": {"types": ["f16"], "adapter": True}}},
            "export.gguf.adapter",
            "no adapter",
        ),
        ({"stages": ["data", "verify"]}, "stages", "nothing to compare"),
        ({"export": {}}, "export.gguf.types", "nothing to write"),
        ({"model": {}}, "model.path", "no model"),
        ({"data": {}}, "data.path", "no data"),
        ({"data__eval_fraction": 0.1, "data__eval_path": ["e"]}, "data.eval_fraction", "only one"),
        ({"train__eval_steps": 5}, "train.eval_steps", "no rows are held out"),
        ({"train__keep_best": True}, "train.keep_best", "Set train.eval_steps"),
        ({"train__early_stopping_evals": 3}, "train.early_stopping_evals", "Set train.eval_steps"),
        ({"train__on_nonfinite": "rollback"}, "train.on_nonfinite", "Set train.checkpoint_steps"),
        ({"eval__generate_rows": 5, "objective__kind": "kto"}, "eval.generate_rows", "no single answer"),
        ({"train__ema_decay": 1.0}, "train.ema_decay", "between 0 and 1"),
        ({"train__generate_rows": 5}, "train.generate_rows", "Set train.eval_steps"),
        ({"eval__generate_rows": 5, "objective__kind": "dpo"}, "eval.generate_rows", "no single answer"),
        (
            {"train": {"generate_rows": 5, "eval_steps": 2}, "data__eval_rows": 9, "objective__kind": "kto"},
            "train.generate_rows",
            "no single answer",
        ),
        (
            {"train": {"best_metric": "rougeL", "eval_steps": 2, "keep_best": True}, "data__eval_rows": 9},
            "train.best_metric",
            "Set train.generate_rows",
        ),
        (
            {"train": {"best_metric": "rougeL", "eval_steps": 2, "generate_rows": 5}, "data__eval_rows": 9},
            "train.best_metric",
            "nothing goes by it",
        ),
        ({"data__columns": {"usr": "q"}}, "data.columns.usr", "Parts:"),
        (
            {"data__path": [], "data__sources": {"s": {"path": ["d"], "columns": {"usr": "q"}}}},
            "data.sources.s.columns.usr",
            "Parts:",
        ),
        ({"data__system_override": True}, "data.system_override", "no system prompt"),
        ({"data__train_on": "all", "objective__kind": "dpo"}, "data.train_on", "one answer to a prompt"),
        ({"data__multi_turn": "split", "objective__kind": "orpo"}, "data.multi_turn", "one answer to a prompt"),
        ({"data__too_long": "split", "objective__kind": "kto"}, "data.too_long", "truncate_prompt or drop"),
        ({"model": {"path": "m", "init": "random"}}, "model.init", "method=full"),
        ({"model": {"path": "m", "shape": {"context": 512}}}, "data.max_length", "=512"),
        ({"data": {"path": ["d"], "packing": True, "max_length": None}}, "data.max_length", "data.packing=false"),
        ({"export": {"gguf": {"types": ["f16"]}, "max_shard_size": "2 boxes"}}, "export.max_shard_size", "not a size"),
        ({"serve__host": "0.0.0.0"}, "serve.host", "api_key_env"),
        ({"serve": {"extra_args": {"port": 1}}}, "serve.extra_args.port", "decided by tunerun"),
        (
            {"serve": {"engine": "lmdeploy", "extra_args": {"session-len": 1}}},
            "serve.extra_args.session-len",
            "decided",
        ),
        (
            {"serve": {"engine": "vllm", "extra_args": {"--max-num-seqs": 8}}},
            "serve.extra_args.--max-num-seqs",
            "Write max_num_seqs",
        ),
        ({"name": "../up"}, "name", "a-z, 0-9"),
        ({"method__rank": 0}, "method.rank", "must be >= 1"),
        ({"cluster__nodes": 2, "hardware__strategy": "ddp"}, "cluster.kind", "cluster.rendezvous=HOST:29400"),
        ({"cluster__kind": "slurm", "cluster__nodes": 2}, "hardware.strategy", "there are 2 nodes"),
        ({"cluster__kind": "slurm", "cluster__time": "86400"}, "cluster.time", "in quotes"),
        ({"cluster__kind": "slurm", "cluster__partition": "a b"}, "cluster.partition", "one word"),
        ({"cluster__kind": "slurm", "cluster__memory": "much"}, "cluster.memory", "not a size"),
        ({"cluster__kind": "slurm", "cluster__extra": ["-x\nrm"]}, "cluster.extra[0]", "no option"),
        ({"cluster__kind": "slurm", "cluster__signal_seconds": -1}, "cluster.signal_seconds", "from 0"),
        ({"cluster__kind": "multi_node"}, "cluster.rendezvous", "HOST:29400"),
        ({"cluster__kind": "multi_node", "cluster__rendezvous": "gpu1"}, "cluster.rendezvous", "HOST:29400"),
        ({"cluster__kind": "skypilot"}, "cluster.setup", "nothing installs tunerun"),
        (
            {"cluster__kind": "skypilot", "cluster__setup": ["true"], "cluster__spot": True},
            "cluster.storage",
            "taken away",
        ),
        ({"hardware__processes": 0}, "hardware.processes", "must be >= 1"),
        ({"train__micro_batch_size": 0}, "train.micro_batch_size", "must be >= 1"),
        ({"run_dir": ""}, "run_dir", "is empty"),
        ({"method__kind": "qlora", "hardware__strategy": "zero3"}, "hardware.strategy", "quantised"),
        ({"method__kind": "qlora", "hardware__strategy": "fsdp2"}, "hardware.strategy", "quantised"),
        ({"train__optimizer": "muon", "hardware__strategy": "zero1"}, "train.optimizer", "matrix as a whole"),
        ({"train__ema_decay": 0.9, "hardware__strategy": "zero2"}, "train.ema_decay", "no whole weights"),
        ({"train__ema_decay": 0.9, "hardware__strategy": "zero3"}, "train.ema_decay", "no whole weights"),
        ({"method__kind": "pissa", "hardware__strategy": "fsdp2"}, "method.kind", "shares out"),
        ({"hardware__max_restarts": -1}, "hardware.max_restarts", ">= 0"),
        ({"hardware__stall_seconds": 0.0}, "hardware.stall_seconds", ">= 1"),
    ],
)
def test_an_impossible_combination_is_refused_with_its_remedy(changes, where, part):
    found = checks.check(config(**changes))
    assert [problem.where for problem in found] == [where]
    assert part in str(found[0])


def test_merging_an_adapter_made_elsewhere_needs_no_data():
    assert (
        checks.check(config(stages=["merge", "export", "verify"], model={"path": "m", "adapter": "a"}, data={})) == []
    )


def test_collecting_answers_alone_needs_no_model():
    answer = {"url": "http://127.0.0.1:8000/v1", "model": "teacher", "prompts": ["q.txt"]}
    assert checks.check(config(stages=["answer"], model={}, data={}, answer=answer)) == []
    both = checks.check(config(stages=["answer", "data"], model={}, data={}, answer=answer))
    assert [problem.where for problem in both] == ["model.path"]


def test_evaluating_a_model_that_was_not_trained_here_is_fine():
    assert checks.check(config(stages=["data", "eval"])) == []


@pytest.mark.parametrize(("text", "size"), [("2GB", 2 * 10**9), ("500 mb", 5 * 10**8), ("1.5kB", 1500), ("7B", 7)])
def test_sizes_are_read(text, size):
    assert checks.size_bytes(text) == size


@pytest.mark.parametrize(("host", "loopback"), [("127.0.0.1", True), ("localhost", True), ("::1", True),
                                                ("0.0.0.0", False), ("example", False)])  # fmt: skip
def test_only_loopback_addresses_need_no_key(host, loopback):
    assert checks.is_loopback(host) is loopback


def test_every_rule_sees_the_default_config_without_failing():
    assert {problem.where for problem in checks.check(RunConfig())} == {"model.path", "data.path", "export.gguf.types"}
