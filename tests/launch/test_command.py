import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tunerun.config.schema import AnswerConfig, DataConfig, EvalConfig, ModelConfig, ObjectiveConfig, PublishConfig
from tunerun.launch import command
from tunerun.plan.placement import Placement
from tunerun.plan.steps import (
    AnswerStep,
    DataStep,
    EvalStep,
    ModelStep,
    PublishStep,
)

RUN_DIR = Path("/runs/one")
ALWAYS = (
    "--max-restarts=0 --monitor-interval=0.2 --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 "
    "--shutdown-timeout=30 -m tunerun.worker /runs/one eval"
)


def measured(**placement):
    return EvalStep(
        model=ModelConfig(path="m"),
        eval=EvalConfig(),
        adapter=None,
        tuned=None,
        chat=True,
        placement=Placement(**placement),
        seed=1,
    )


def prepared(path="d"):
    return DataStep(data=DataConfig(path=(path,)), objective=ObjectiveConfig(), chat_template=None, seed=1)


def test_a_single_process_is_started_by_the_same_interpreter_without_the_users_folder():
    launch = command.command(measured(threads=3), RUN_DIR)
    assert launch.argv == (sys.executable, "-P", "-m", "tunerun.worker", "/runs/one", "eval")
    assert launch.env == {
        "PYTHONUNBUFFERED": "1",
        "PYTHONHASHSEED": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "OPENBLAS_NUM_THREADS": "3",
    }


def test_only_downloading_steps_may_ask_a_hub():
    model = ModelStep(model=ModelConfig(path="org/m"), cache_dir=None, weights=True)
    online, offline = command.command(model, RUN_DIR), command.command(prepared(), RUN_DIR)
    assert "HF_HUB_OFFLINE" not in online.env
    assert online.without == ()
    assert offline.env["HF_HUB_OFFLINE"] == "1"
    assert "HF_TOKEN" in offline.without
    assert "HF_HUB_OFFLINE" in command.command(measured(), RUN_DIR).env


def test_only_a_step_that_uploads_gets_the_tokens():
    def launch(**publish):
        config = PublishConfig(**publish)
        return command.command(PublishStep(publish=config, name="small", artifacts=()), RUN_DIR)

    assert launch(repo="a/b").without == ()
    for offline in (launch(repo="a/b", dry_run=True), launch(ollama="small")):
        assert "HF_TOKEN" in offline.without
        assert "HF_HUB_OFFLINE" in offline.env


@pytest.mark.parametrize("path", ["org/data", "org/data:config:split", "org/data@v1"])
def test_data_is_downloaded_only_where_a_path_is_on_a_hub(path):
    online = command.command(prepared(path), RUN_DIR)
    assert "HF_HUB_OFFLINE" not in online.env
    assert online.without == ()
    for local in ("./org/data", "rows/a.jsonl", "tunerun://identity.jsonl", "/a/b", "~/data", "a/b/c"):
        assert command.command(prepared(local), RUN_DIR).env["HF_HUB_OFFLINE"] == "1"


def test_data_is_tokenised_on_all_cores():
    launch = command.command(prepared(), RUN_DIR)
    assert launch.env["TOKENIZERS_PARALLELISM"] == "true"
    assert launch.env["OMP_NUM_THREADS"] == "1", "the tokenizer's threads are its own"


def test_ranks_get_what_torchrun_does_not_pass_on():
    launch = command.command(measured(strategy="zero2", processes=2), RUN_DIR)
    assert launch.ranks == 2
    assert launch.env["PYTHONSAFEPATH"] == "1"
    assert launch.env["DS_ACCELERATOR"] == "cpu"
    assert command.command(measured(), RUN_DIR).ranks == 0


def test_cuda_has_a_fixed_workspace():
    assert command.command(measured(device="cuda"), RUN_DIR).env["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(
    ("placement", "line"),
    [
        ({}, "python -P -m tunerun.worker /runs/one eval"),
        (
            {"strategy": "ddp", "processes": 2},
            f"python -P -m torch.distributed.run --standalone --nnodes=1 --nproc-per-node=2 {ALWAYS}",
        ),
        (
            {"strategy": "fsdp2", "processes": 8, "nodes": 4},
            (
                "python -P -m torch.distributed.run --rdzv-backend=static --node-rank=NODE --master-addr=HOST "
                f"--master-port=PORT --nnodes=4 --nproc-per-node=8 {ALWAYS}"
            ),
        ),
        (
            {"strategy": "zero3", "processes": 8, "precision": "bf16", "offload": True},
            f"python -P -m torch.distributed.run --standalone --nnodes=1 --nproc-per-node=8 {ALWAYS}",
        ),
    ],
)
def test_command_lines(placement, line):
    assert command.render(measured(**placement), "/runs/one") == line


def test_tasks_bring_data_of_their_own_and_a_teacher_may_get_prompts_from_a_hub():
    tasks = command.command(replace(measured(), eval=EvalConfig(lm_eval=("hellaswag",))), RUN_DIR)
    asked = AnswerStep(answer=AnswerConfig(prompts=("org/set",)), vars={}, on_bad_rows="fail", hub="hf", seed=1)
    for launch in (tasks, command.command(asked, RUN_DIR)):
        assert "HF_HUB_OFFLINE" not in launch.env
        assert launch.without == ()
    assert tasks.env["TQDM_DISABLE"] == "1"
    assert "TQDM_DISABLE" not in command.command(measured(), RUN_DIR).env


def test_each_node_has_its_number_and_the_interface_towards_the_others(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    node = command.Node(number=3, host="gpu7", port=29401, interface="ib0")
    launch = command.command(measured(strategy="ddp", processes=2, nodes=4), RUN_DIR, node=node)
    assert {"--node-rank=3", "--master-addr=gpu7", "--master-port=29401", "--nnodes=4"} <= set(launch.argv)
    assert launch.env["GLOO_SOCKET_IFNAME"] == "ib0"
    assert launch.ranks == 2
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth1")
    launch = command.command(measured(strategy="ddp", processes=2, nodes=4), RUN_DIR, node=node)
    assert "GLOO_SOCKET_IFNAME" not in launch.env, "what the user chose stays"
