"""What keeps a plan from running on this machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.plan.test_build import CPU, TWO_GPUS, config
from tunerun.plan import build, readiness


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}\n")


def found(machine=CPU, **changes) -> list[str]:
    made = config(**{"run_dir": "here", **changes})
    return [
        str(problem)
        for problem in readiness.problems(made, build.build(made, build.Facts(machine=machine, data=None)), machine)
    ]


def test_a_run_that_this_machine_can_do_has_no_obstacles():
    assert found() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__path": ["gone.jsonl"]}, "data.path: there is no file or folder gone.jsonl."),
        ({"data__path": ["rows.jsonl", "./gone"]}, "data.path: there is no file or folder ./gone."),
        ({"data__eval_path": ["gone.csv"]}, "data.eval_path: there is no file or folder gone.csv."),
        ({"model__adapter": "/gone/adapter"}, "model.adapter: there is no file or folder /gone/adapter."),
        (
            {"train__optimizer": "paged_adamw"},
            "train.optimizer: paged_adamw pages to and from a GPU's memory. Choose adamw.",
        ),
        ({"hardware__gpu": "h200"}, "hardware: 1 GPU is planned on each node, and this machine has 0."),
    ],
)
def test_each_obstacle_names_its_key(changes, message):
    (problem,) = found(**changes)
    assert problem.startswith(message)


def test_other_architectures_are_delivered_but_not_trained():
    other = {"architecture": "StableLmForCausalLM"}
    assert found(model__shape=other, stages=["merge", "export", "verify"]) == []
    (problem,) = found(model__shape=other, stages=["data", "train"])
    assert problem.startswith("model.path: train: StableLmForCausalLM is not among the architectures that are trained.")


def test_what_the_converter_does_not_write_of_other_architectures_is_told_before():
    other, stages = {"architecture": "StableLmForCausalLM"}, ["data", "export"]
    given = {"model": {"path": "org/model", "adapter": str(Path.cwd()), "shape": other}, "stages": stages}
    Path("adapter_config.json").write_text("{}")
    for export, where in (
        ({"gguf": {"types": ["f16"]}}, ["stages"]),
        ({"gguf": {"types": ["q4_k_m"], "imatrix": True}}, ["stages", "export.gguf.imatrix"]),
        ({"gguf": {"adapter": True}}, ["export.gguf.adapter"]),
        ({"bnb4": {"write": True}}, []),
    ):
        assert [problem.partition(":")[0] for problem in found(**given, export=export)] == where
    given["model"] = {"path": "org/model", "adapter": str(Path.cwd()), "shape": {"architecture": "Qwen2ForCausalLM"}}
    assert found(**given, export={"gguf": {"types": ["q4_k_m"], "imatrix": True, "adapter": True}}) == []


@pytest.mark.parametrize(
    ("path", "fix"),
    [
        ("~/gone.csv", 'The shell leaves ~ as it is after an equals sign: write "$HOME"/gone.csv.'),
        ("s3://bucket/gone.csv", "Files are read from this machine or a hub: download it."),
    ],
)
def test_a_path_that_this_machine_cannot_open_as_it_stands_is_answered_with_a_way(path, fix):
    (problem,) = found(data__path=[path])
    assert problem == f"data.path: there is no file or folder {path}. {fix}"


def test_a_mistyped_file_is_answered_with_the_one_that_lies_there(tmp_path):
    (tmp_path / "openai.jsonl").write_text("")
    (problem,) = found(data__path=[f"{tmp_path}/opnai.jsonl"])
    assert problem.endswith(f"opnai.jsonl. Did you mean {tmp_path}/openai.jsonl?")


def test_serving_needs_a_stage_that_makes_a_model_or_a_run_that_has_one(tmp_path):
    (problem,) = found(stages=["serve"], run_dir=str(tmp_path / "new"))
    assert problem.startswith("stages: serve has no model: no stage before it makes one. Add train")
    (tmp_path / "merged").mkdir()
    assert found(stages=["serve"], run_dir=str(tmp_path)) == []


def test_what_no_stage_uses_is_no_obstacle():
    assert found(hardware__strategy="ddp", stages=["data", "eval"]) == []
    assert found(serve__engine="vllm") == []


def test_a_server_that_is_not_installed_is_an_obstacle_to_serving():
    stages = ["data", "train", "merge", "serve"]
    (problem,) = found(serve__engine="vllm", stages=stages, env={"serve": {"python": "/nowhere/python"}})
    assert problem.startswith("env.serve.python: there is no interpreter /nowhere/python.")


def test_a_hub_id_is_no_missing_file():
    assert found(data__path=["org/name"], model__path="org/model") == []


def test_gpus_that_are_here_suffice():
    assert found(TWO_GPUS) == []


@pytest.mark.parametrize(
    ("module", "extra", "changes"),
    [
        ("gguf", "gguf", {}),
        ("llama_cpp", "gguf", {"export": {"gguf": {"types": ["q4_k_m"]}}}),
        ("tensorboard", "tensorboard", {"track__tensorboard": True}),
        ("wandb", "wandb", {"track__wandb": True}),
        ("trackio", "trackio", {"track__trackio": True}),
        ("mlflow", "mlflow", {"track__mlflow": True}),
        ("swanlab", "swanlab", {"track__swanlab": True}),
        ("bitsandbytes", "quant", {"train__optimizer": "adamw_8bit"}),
        ("modelscope", "hub", {"model__hub": "modelscope"}),
        ("bitsandbytes", "quant", {"method__kind": "qlora"}),
        (
            "modelscope_hub",
            "hub",
            {"stages": ["export", "publish"], "publish": {"repo": "a/b", "hub": "modelscope"}},
        ),
    ],
)
def test_a_missing_extra_is_named_when_it_is_needed(module, extra, changes, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    told = next(text for text in found(**changes) if f"{module} is not installed" in text)
    assert told.endswith(f"Install it: pip install 'tunerun[{extra}]'")
    assert not any("is not installed" in text for text in found(stages=["data"]))


def test_a_folder_that_bears_the_name_of_a_package_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "somepackage").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not readiness.is_installed("somepackage")
    assert readiness.is_installed("json")


MISSING = ("gptqmodel", "llmcompressor")


def test_quantisers_need_an_interpreter_that_has_their_library(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in MISSING else find(name))
    export = {"gptq": {"write": True}}
    assert found(export=export)[0].startswith("env.export.python: gptqmodel is not installed.")
    assert found(export=export, env={"export": {"python": "/gone/python"}})[0].endswith("no interpreter /gone/python.")
    assert found(export=export, env={"export": {"python": "sh"}}) == []
    assert found(export={"fp8": {"write": True}})[0].startswith("env.export.python: llmcompressor is not installed.")


def test_publishing_needs_a_token_or_ollama(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    stages = ["export", "publish"]
    (problem,) = found(stages=stages, publish={"repo": "a/b"})
    assert problem.startswith("publish.repo: there is no token for the hub. Set HF_TOKEN")
    (problem,) = found(stages=stages, publish={"ollama": "small"})
    assert problem.startswith("publish.ollama: there is no `ollama` on the PATH.")
    assert found(stages=stages, publish={"repo": "a/b", "dry_run": True}) == []
    (tmp_path / "token").write_text("hf_token")
    assert found(stages=stages, publish={"repo": "a/b"}) == []


def test_modelscope_needs_a_token_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(readiness, "is_installed", lambda name: True)
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "of-another-hub")
    monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
    wanted = {"stages": ["export", "publish"], "publish": {"repo": "a/b", "hub": "modelscope"}}
    (problem,) = found(**wanted)
    assert problem.startswith("publish.repo: there is no token for ModelScope. Set MODELSCOPE_API_TOKEN")
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials/cookies").touch()
    assert found(**wanted) == []
    # Set and empty, it goes before a login.
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "")
    assert len(found(**wanted)) == 1
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-token")
    assert found(**wanted) == []


@pytest.mark.parametrize(
    ("stages", "chosen", "told"),
    [
        (["data", "train", "publish"], [], []),
        (["data", "train", "publish"], ["adapter", "merged"], ["publish.artifacts: merged is made by no stage"]),
        (["data", "train", "merge", "export", "publish"], ["gguf", "bnb4"], ["publish.artifacts: bnb4 is made by no"]),
        (["publish"], ["merged"], ["publish.artifacts: merged is made by no stage"]),
        (["publish"], [], ["publish.repo: there is nothing to publish."]),
    ],
)
def test_what_is_published_is_made_by_a_stage_or_there(stages, chosen, told, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    run_dir = tmp_path / "run"
    wanted = {"stages": stages, "publish": {"repo": "a/b", "artifacts": chosen}, "run_dir": str(run_dir)}
    problems = found(**wanted)
    assert len(problems) == len(told)
    assert all(problem.startswith(start) for problem, start in zip(problems, told, strict=True))
    for folder in ("merged", "export/bnb4"):
        (run_dir / folder).mkdir(parents=True)
    assert found(**wanted) == []


@pytest.mark.parametrize("run_dir", ["rows.jsonl", "rows.jsonl/run"])
def test_a_run_directory_that_cannot_be_made_is_noticed(run_dir, tmp_path):
    assert found(run_dir=str(tmp_path / run_dir)) == [
        f"run_dir: {tmp_path / 'rows.jsonl'} is a file. Name another folder."
    ]


def test_a_full_disk_is_noticed_before_the_run(monkeypatch):
    monkeypatch.setattr(readiness.machines, "free_bytes", lambda path: 1000)
    (problem,) = found()
    assert problem.startswith("run_dir: the run writes about ")
    assert problem.endswith("Free some space, or set run_dir to another disk.")


def test_a_teachers_key_has_to_be_there_when_it_is_asked(monkeypatch):
    answer = {
        "answer__url": "https://api.example.com/v1",
        "answer__model": "big",
        "answer__prompts": ["rows.jsonl"],
        "answer__api_key_env": "MY_KEY",
        "stages": ["answer", "data"],
    }
    for value in ("", " padded", "schlüssel"):
        monkeypatch.setenv("MY_KEY", value)
        (problem,) = found(**answer)
        assert problem.startswith("answer.api_key_env: the environment variable MY_KEY holds no key")
    monkeypatch.setenv("MY_KEY", "sk-1")
    assert found(**answer) == []
    monkeypatch.delenv("MY_KEY")
    assert found(**{**answer, "stages": ["data", "train"]}) == []
    (problem,) = found(**{**answer, "answer__api_key_env": None, "answer__prompts": ["gone.txt"]})
    assert problem == "answer.prompts: there is no file or folder gone.txt."


def test_evaluation_tasks_need_their_package(monkeypatch):
    here = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else here(name))
    (problem,) = found(eval__lm_eval=["hellaswag"])
    assert problem == "eval.lm_eval: lm_eval is not installed. Install it: pip install 'tunerun[lm-eval]'"
    assert found(eval__lm_eval=["hellaswag"], stages=["data", "train"]) == []


@pytest.mark.parametrize(
    ("changes", "wheres"),
    [
        ({}, ["hardware.gpu"]),
        ({"hardware__gpu": "h200"}, []),
        ({"hardware__device": "cpu"}, []),
        ({"hardware__device": "cuda"}, []),
        ({"hardware__strategy": "ddp", "hardware__gpu": "h200"}, ["hardware.processes"]),
    ],
)
def test_a_plan_for_nodes_elsewhere_takes_nothing_from_this_machine(changes, wheres):
    made = config(**changes, cluster__kind="slurm")
    built = build.build(made, build.Facts(machine=CPU, data=None))
    assert [problem.where for problem in readiness.problems(made, built, None)] == wheres
