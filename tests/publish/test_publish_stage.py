"""A run's files reach a hub once, whole, and only when nothing speaks against it."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import SMALL_BYTES, UploadHub
from tunerun import artifacts
from tunerun.config.schema import PublishConfig
from tunerun.errors import StageError, UserError
from tunerun.plan.steps import PublishStep
from tunerun.publish.files import collect
from tunerun.publish.stage import run

REPO = "someone/small"
CONFIG = PublishConfig(repo=REPO)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run directory with a merged model of two large files, an adapter and an export."""
    folder = tmp_path / "run"
    for name, size in (
        ("merged/model-00001.safetensors", SMALL_BYTES + 1),
        ("merged/model-00002.safetensors", SMALL_BYTES + 2),
        ("merged/config.json", 0),
        ("adapter/adapter_model.safetensors", SMALL_BYTES + 3),
        ("export/small-f16.gguf", SMALL_BYTES + 4),
        ("export/Modelfile", 0),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name[-1:].encode() * size or b"{}\n")
    (folder / "publish").mkdir()
    (folder / "publish" / "README.md").write_text("---\nlibrary_name: transformers\n---\n\n# small\n")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> UploadHub:
    hub = UploadHub(REPO)
    from huggingface_hub import constants, hf_api

    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hf_api.constants, "ENDPOINT", hub.url)
    return hub


def step(publish: PublishConfig = CONFIG, *chosen: Any) -> PublishStep:
    return PublishStep(publish=publish, name="small", artifacts=chosen)


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "publish" / "report.json").read_text())


def sent(hub: UploadHub) -> list[str]:
    return [path for path, _ in hub.requests if path.startswith("PUT")]


def test_a_run_is_uploaded_in_one_commit(out: Path, hub: UploadHub) -> None:
    made = run(step(CONFIG, "merged", "gguf"), out)
    files = hub.branches["main"]
    assert sorted(files) == [
        "README.md",
        "config.json",
        "gguf/Modelfile",
        "gguf/small-f16.gguf",
        "model-00001.safetensors",
        "model-00002.safetensors",
    ]
    assert files["model-00001.safetensors"] == (out / "merged" / "model-00001.safetensors").read_bytes()
    assert files["README.md"] == (out / "publish" / "README.md").read_bytes()
    assert hub.commits == [("main", "Upload small with tunerun")]
    assert hub.private is True
    assert [item.path for item in made] == ["publish/report.json"]
    upload = report(out)["upload"]
    assert upload["commit"] == f"{1:040x}"
    assert {item["name"] for item in upload["files"]} == set(files)
    digest = hashlib.sha256(files["gguf/small-f16.gguf"]).hexdigest()
    assert digest in [item["sha256"] for item in upload["files"]]


def test_a_second_upload_sends_nothing_and_a_change_sends_that_file_alone(out: Path, hub: UploadHub) -> None:
    run(step(CONFIG, "merged"), out)
    hub.requests.clear()
    run(step(CONFIG, "merged"), out)
    assert len(hub.commits) == 1
    assert sent(hub) == []
    assert report(out)["upload"]["uploaded"] == []
    (out / "merged" / "config.json").write_text('{"a": 1}')
    run(step(CONFIG, "merged"), out)
    assert len(hub.commits) == 2
    assert report(out)["upload"]["uploaded"] == ["config.json"]
    assert sent(hub) == []


def test_an_upload_that_broke_off_shows_nothing_and_goes_on_where_it_stopped(out: Path, hub: UploadHub) -> None:
    hub.refuse_blobs_after = 1
    with pytest.raises(StageError, match=r"someone/small: .*out of order"):
        run(step(CONFIG, "merged"), out)
    assert hub.branches["main"] == {}
    assert len(hub.blobs) == 1
    hub.refuse_blobs_after = None
    hub.requests.clear()
    run(step(CONFIG, "merged"), out)
    assert len(sent(hub)) == 1
    assert len(hub.branches["main"]) == 4


def test_a_branch_and_a_folder_are_made(out: Path, hub: UploadHub) -> None:
    publish = replace(CONFIG, revision="v2", folder="models/small", private=False)
    run(step(publish, "adapter"), out)
    assert hub.branches["main"] == {}
    assert sorted(hub.branches["v2"]) == ["models/small/README.md", "models/small/adapter_model.safetensors"]
    assert hub.private is False


def test_without_a_choice_there_is_taken_what_there_is(out: Path, hub: UploadHub) -> None:
    run(step(), out)
    names = set(hub.branches["main"])
    assert {"model-00001.safetensors", "gguf/small-f16.gguf"} < names
    assert not any("adapter" in name for name in names)


def test_a_dry_run_lists_and_sends_nothing(out: Path, hub: UploadHub, capsys: pytest.CaptureFixture[str]) -> None:
    run(step(replace(CONFIG, dry_run=True, ollama="small"), "merged"), out)
    assert hub.requests == []
    said = capsys.readouterr().out
    assert "65,537 bytes  model-00001.safetensors" in said
    assert "nothing was sent" in said
    assert report(out)["dry_run"] is True
    assert len(report(out)["upload"]["files"]) == 4


def test_a_failed_gate_is_refused_unless_it_is_forced(out: Path, hub: UploadHub) -> None:
    gates = [{"name": "merge_logits", "verdict": "fail"}, {"name": "files", "verdict": "pass"}]
    artifacts.write_json(out / "verify" / "report.json", {"schema": 1, "passed": False, "gates": gates})
    with pytest.raises(UserError, match=r"merge_logits.*publish.force=true"):
        run(step(), out)
    assert hub.requests == []
    run(step(replace(CONFIG, force=True)), out)
    assert "merge_logits" in report(out)["unverified"]
    assert len(hub.commits) == 1


def test_what_was_not_verified_is_said_and_recorded(
    out: Path, hub: UploadHub, capsys: pytest.CaptureFixture[str]
) -> None:
    dry = step(replace(CONFIG, dry_run=True))
    run(dry, out)
    assert "warning: the run was not verified" in capsys.readouterr().out
    assert report(out)["unproved"] == "the run was not verified"
    gates = [{"name": "llama-server:x.gguf", "verdict": "not_proved"}, {"name": "files", "verdict": "pass"}]
    artifacts.write_json(out / "verify" / "report.json", {"schema": 1, "passed": True, "gates": gates})
    run(dry, out)
    assert "warning: 1 gate not proved: llama-server:x.gguf" in capsys.readouterr().out
    artifacts.write_json(out / "verify" / "report.json", {"schema": 1, "passed": True, "gates": gates[1:]})
    run(dry, out)
    assert "warning" not in capsys.readouterr().out
    assert report(out)["unproved"] == ""


@pytest.mark.parametrize("secret", ["hf_" + "a1B2" * 8, "correct-horse-9"])
def test_a_secret_in_a_file_is_refused_by_name(
    out: Path, hub: UploadHub, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv("MY_API_KEY", "correct-horse-9")
    (out / "merged" / "generation_config.json").write_text(json.dumps({"note": secret}))
    with pytest.raises(UserError, match=r"generation_config.json: holds a secret") as caught:
        run(step(), out)
    assert secret not in str(caught.value)
    assert hub.requests == []


def test_words_of_a_vocabulary_are_no_secrets(out: Path, hub: UploadHub) -> None:
    (out / "merged" / "tokenizer.json").write_text('{"model": {"vocab": {"://": 1,"x": 2,"@": 3}}}')
    run(step(), out)
    assert "tokenizer.json" in hub.branches["main"]


def test_what_is_not_there_is_named(out: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="nothing to publish"):
        run(step(), tmp_path / "empty")
    subprocess.run(["rm", "-r", str(out / "export")], check=True)
    with pytest.raises(StageError, match="no export/"):
        run(step(CONFIG, "merged", "gguf"), out)


def test_files_for_servers_alone_are_no_gguf(out: Path) -> None:
    names = {file.name for file in collect(out, (), None)}
    assert any(name.startswith("gguf/") for name in names)
    (out / "export" / "serve.json").write_text("{}")
    for file in (out / "export").glob("*.gguf"):
        file.unlink()
    assert not any(file.name.startswith("gguf/") for file in collect(out, (), None))


def test_a_hub_that_refuses_the_token_says_so(out: Path, hub: UploadHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(StageError, match=r"someone/small: .*401"):
        run(step(), out)


def test_a_hub_that_cannot_be_reached_is_a_message(out: Path, hub: UploadHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(StageError, match=rf"127.0.0.1:{port}/someone/small: .*refused"):
        run(step(), out)


class ModelScope:
    """A stand-in for modelscope_hub.api.HubApi that keeps what it is given."""

    files: dict[str, bytes] | None = None
    uploads: list[str] = []  # noqa: RUF012 (one for each test)
    visibility: str | None = None
    fails = False

    def repo_exists(self, repo_id: str, repo_type: str) -> bool:
        return type(self).files is not None

    def create_repo(self, repo_id: str, repo_type: str, *, visibility: str) -> None:
        type(self).files, type(self).visibility = {}, visibility

    def list_repo_files(self, repo_id: str, repo_type: str, *, revision: str | None = None) -> list[Any]:
        assert self.files is not None
        return [
            types.SimpleNamespace(path=name, sha256=hashlib.sha256(data).hexdigest(), is_dir=False)
            for name, data in self.files.items()
        ]

    def list_repo_revisions(self, repo_id: str, repo_type: str) -> list[dict[str, str]]:
        return [{"Revision": "master"}, {"Revision": "small"}]

    def upload_file(
        self,
        repo_id: str,
        repo_type: str,
        path_or_fileobj: str,
        path_in_repo: str,
        *,
        commit_message: str,
        revision: str | None = None,
        disable_tqdm: bool = False,
    ) -> dict[str, Any]:
        if self.fails:
            raise HubError("no\nway")
        assert self.files is not None
        self.files[path_in_repo] = Path(path_or_fileobj).read_bytes()
        self.uploads.append(path_in_repo)
        return {}


class HubError(Exception):
    pass


@pytest.fixture
def modelscope(monkeypatch: pytest.MonkeyPatch) -> type[ModelScope]:
    client = type("Client", (ModelScope,), {"uploads": []})
    for name, values in {
        "modelscope_hub": {},
        "modelscope_hub.api": {"HubApi": client},
        "modelscope_hub.errors": {"HubError": HubError},
    }.items():
        module = types.ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return client


def test_modelscope_gets_each_file_once_and_the_card_last(out: Path, modelscope: type[ModelScope]) -> None:
    publish = replace(CONFIG, hub="modelscope")
    for _ in range(2):
        run(step(publish, "merged"), out)
    assert modelscope.uploads[-1] == "README.md"
    assert sorted(modelscope.uploads) == sorted(modelscope.files or {})
    assert len(modelscope.uploads) == 4
    assert modelscope.visibility == "private"


def test_a_branch_of_modelscope_has_to_be_there(out: Path, modelscope: type[ModelScope]) -> None:
    told = (
        r"ModelScope, someone/small: there is no branch new; there is master, small\. Make it .*publish\.revision=null"
    )
    with pytest.raises(StageError, match=told):
        run(step(replace(CONFIG, hub="modelscope", revision="new"), "merged"), out)
    assert modelscope.uploads == []
    run(step(replace(CONFIG, hub="modelscope", revision="small"), "merged"), out)
    assert len(modelscope.uploads) == 4


def test_a_fault_of_modelscope_is_a_message(out: Path, modelscope: type[ModelScope]) -> None:
    modelscope.fails = True
    with pytest.raises(StageError, match="ModelScope, someone/small: no way"):
        run(step(replace(CONFIG, hub="modelscope"), "merged"), out)
