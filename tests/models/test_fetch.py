import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT
from tests.hub_server import COMMIT, Hub
from tunerun.artifacts import read_json
from tunerun.base_model import read_base, read_teacher
from tunerun.commands import pull
from tunerun.config.schema import ModelConfig
from tunerun.errors import MissingExtra, StageError, UserError
from tunerun.models import hub
from tunerun.models.fetch import fetch, run
from tunerun.plan.steps import ModelStep

OTHER = "89abcdef0123456789abcdef0123456789abcdef"
REPO = "org/model"
SMALL = {
    "config.json": b'{"architectures": ["Qwen2ForCausalLM"]}',
    "tokenizer.json": b'{"version": "1.0"}',
    "README.md": b"# not needed",
    "original/model.safetensors": b"another format",
}
LARGE = {"model.safetensors": bytes(range(256)) * 4096}


@pytest.fixture
def server(monkeypatch, tmp_path):
    from huggingface_hub import constants

    made = Hub(REPO, {**SMALL, **LARGE}, {"v1": OTHER})
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "memo"))
    monkeypatch.setattr(hub, "WAIT_SECONDS", 0.01)
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_download_holds_what_is_needed_and_no_more(server):
    base = fetch(REPO)
    assert base.revision == COMMIT
    assert sorted(file.name for file in base.folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (base.folder / "model.safetensors").read_bytes() == LARGE["model.safetensors"]


def test_the_cache_is_one_that_other_tools_of_the_hub_find(server):
    from huggingface_hub import try_to_load_from_cache

    base = fetch(REPO)
    assert try_to_load_from_cache(REPO, "config.json") == str(base.folder / "config.json")


def test_without_weights_only_texts_are_downloaded(server):
    base = fetch(REPO, weights=False)
    assert not (base.folder / "model.safetensors").exists()
    assert sum("safetensors" in path for path, _ in server.downloads()) == 0


def test_a_second_time_nothing_is_downloaded(server):
    first = fetch(REPO)
    count = len(server.downloads())
    assert fetch(REPO) == first
    assert len(server.downloads()) == count


def test_another_model_or_teacher_than_the_lock_has_is_refused(tmp_path):
    folders = [tmp_path / name for name in ("model", "teacher")]
    for folder in folders:
        folder.mkdir()
        for name, content in {**SMALL, **LARGE}.items():
            if "/" not in name:
                (folder / name).write_bytes(content)
        (folder / "tokenizer.json").write_text(f'{{"version": "{folder.name}"}}')
    model, teacher = (fetch(str(folder)).sha256 for folder in folders)
    step = ModelStep(
        model=ModelConfig(path=str(folders[0])),
        cache_dir=None,
        weights=True,
        sha256=model,
        teacher=str(folders[1]),
        teacher_sha256=teacher,
    )
    run(step, tmp_path)
    assert (read_base(tmp_path).sha256, read_teacher(tmp_path).sha256) == (model, teacher)
    with pytest.raises(UserError, match=r"lock\.model_sha256: .*model has sha256 .*unlock: '~lock\.model_sha256'"):
        run(replace(step, sha256="0" * 64), tmp_path)
    with pytest.raises(UserError, match=r"lock\.teacher_sha256: .*teacher has .*unlock: '~lock\.teacher_sha256'"):
        run(replace(step, teacher_sha256="0" * 64), tmp_path)


def test_a_commit_in_the_cache_needs_no_request_at_all(server):
    fetch(REPO)
    server.requests.clear()
    assert fetch(REPO, revision=COMMIT).revision == COMMIT
    assert server.requests == []


def test_a_tag_is_resolved_to_its_commit(server):
    assert fetch(REPO, revision="v1").revision == OTHER


def test_a_broken_connection_is_taken_up_where_it_broke(server):
    server.cut_after = [300_000, 200_000]
    base = fetch(REPO)
    ranges = [asked for path, asked in server.downloads() if path.endswith("model.safetensors")]
    assert ranges[0] is None
    assert len(ranges) == 3
    assert all(asked is not None for asked in ranges[1:])
    assert (base.folder / "model.safetensors").read_bytes() == LARGE["model.safetensors"]


def test_a_later_run_goes_on_with_a_download_that_was_given_up(server):
    server.cut_after = [600_000] + [0] * 3
    with pytest.raises(StageError, match="Run it again to go on"):
        fetch(REPO)
    server.requests.clear()
    base = fetch(REPO)
    (asked,) = [asked for path, asked in server.downloads() if path.endswith("model.safetensors")]
    assert asked is not None
    assert (base.folder / "model.safetensors").read_bytes() == LARGE["model.safetensors"]


def test_a_server_without_ranges_sends_the_file_again(server):
    server.cut_after, server.ignore_range = [300_000], True
    assert (fetch(REPO).folder / "model.safetensors").read_bytes() == LARGE["model.safetensors"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_changed_bytes_are_refused_and_not_kept(server, name):
    good = server.files[name]
    announced = server.listing(COMMIT)
    server.files[name] = good[:-1] + b"?"
    server.listing = lambda commit: announced
    with pytest.raises(StageError, match=f"{name}: what arrived is not the file"):
        fetch(REPO)
    server.files[name] = good
    assert (fetch(REPO).folder / name).read_bytes() == good


def test_offline_takes_what_is_in_the_cache(server, monkeypatch):
    first = fetch(REPO)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    server.requests.clear()
    assert fetch(REPO) == first
    assert server.requests == []


def test_offline_without_a_copy_is_one_clear_error(server, monkeypatch):
    fetch(REPO, weights=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StageError, match=r"org/model at main is not in .* HF_HUB_OFFLINE"):
        fetch(REPO)


def test_a_hub_that_is_down_is_replaced_by_the_cache_and_said(server, capsys):
    first = fetch(REPO)
    server.status = 503
    assert fetch(REPO) == first
    assert f"taking the copy in the cache, commit {COMMIT}" in capsys.readouterr().out


def test_a_hub_that_is_down_without_a_copy_is_one_clear_error(server):
    server.status = 503
    with pytest.raises(StageError, match=r"answers with HTTP 503.*HF_ENDPOINT"):
        fetch(REPO)


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "there is no model org/model"), (403, "is gated"), (404, "there is no model"), (418, "HTTP 418")],
)
def test_a_refusal_says_what_to_do(server, status, message):
    server.status = status
    with pytest.raises(StageError, match=message):
        fetch(REPO)


def test_an_unknown_repository_and_an_unknown_revision_differ(server):
    with pytest.raises(StageError, match="there is no model org/other"):
        fetch("org/other")
    with pytest.raises(StageError, match="has no revision 'v9'"):
        fetch(REPO, revision="v9")


def test_a_disk_that_is_too_small_is_told_before_the_download(server, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StageError, match=r"needs 0.0 GB.*env.cache_dir"):
        fetch(REPO)
    assert server.downloads() == []


def test_pickled_weights_are_refused_before_the_download(server):
    server.files = {**SMALL, "pytorch_model.bin": b"pickle"}
    with pytest.raises(StageError, match=r"pickles \(pytorch_model.bin\)"):
        fetch(REPO)
    assert server.downloads() == []


def test_names_that_would_leave_the_cache_are_not_used(server):
    server.files = {**server.files, "model/../../../x.safetensors": b"evil"}
    assert fetch(REPO).revision == COMMIT
    listing = server.listing(COMMIT)
    listing["siblings"][0]["blobId"] = "../../x"
    server.listing = lambda commit: listing
    with pytest.raises(StageError, match="not that of a hub"):
        fetch(REPO, revision="v1")


def test_the_folder_for_downloads_can_be_chosen(server, tmp_path):
    assert fetch(REPO, cache_dir=tmp_path / "mine").folder.is_relative_to(tmp_path / "mine")


def test_an_unreachable_hub_is_told_at_once(tmp_path):
    seconds = []
    for offline, message in (("1", "HF_HUB_OFFLINE"), ("0", "127.0.0.1:9 cannot be reached")):
        # A port that nothing listens on, in a process of its own: the hub's variables are read at import.
        environment = {
            **os.environ,
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": offline,
            "PYTHONPATH": str(ROOT / "src"),
        }
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", "import tunerun.cli; tunerun.cli.main()", "pull", REPO],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        seconds.append(time.monotonic() - started)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    # Beside a process that asks nobody: the machine may be busy.
    assert seconds[1] < 2 * seconds[0] + 3


def local(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes(SMALL[name])
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_local_folder_is_taken_and_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "memo"))
    folder = local(tmp_path / "model")
    step = ModelStep(model=ModelConfig(path=str(folder)), cache_dir=None, weights=True)
    (artifact,) = run(step, tmp_path)
    assert artifact.path == "model.json"
    base = read_base(tmp_path)
    assert (base.folder, base.path, base.revision) == (folder, str(folder), None)


def test_the_same_files_have_the_same_hash_wherever_they_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "memo"))
    first, second = local(tmp_path / "a"), local(tmp_path / "b")
    assert fetch(str(first)).sha256 == fetch(str(second)).sha256
    (second / "model.safetensors").write_bytes(b"others")
    assert fetch(str(first)).sha256 != fetch(str(second)).sha256
    assert len(read_json(tmp_path / "memo/tunerun/hashes.json")["sha256"]) == 7


def test_a_damaged_memo_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "memo"))
    folder = local(tmp_path / "a")
    good = fetch(str(folder)).sha256
    (tmp_path / "memo/tunerun/hashes.json").write_text("[")
    assert fetch(str(folder)).sha256 == good


@pytest.mark.parametrize(
    ("removed", "added", "message"),
    [
        ("config.json", None, "there is no config.json"),
        ("tokenizer.json", None, "there is no tokenizer"),
        ("model.safetensors", None, "there are no weights"),
        ("model.safetensors", "pytorch_model.bin", "the weights are pickles"),
        ("model.safetensors", "model.safetensors.index.json", "is damaged"),
    ],
)
def test_a_local_folder_that_is_no_model_is_refused(tmp_path, removed, added, message):
    folder = local(tmp_path / "model")
    (folder / removed).unlink()
    if added:
        (folder / added).write_bytes(b"{}")
    with pytest.raises(UserError, match=message):
        fetch(str(folder))


def test_a_missing_shard_is_named(tmp_path):
    folder = local(tmp_path / "model")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"missing: model-00002-of-00002.safetensors"):
        fetch(str(folder))


def test_a_folder_that_does_not_exist_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        fetch(str(tmp_path / "nothing"))


def test_modelscope_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(MissingExtra, match=r"tunerun\[hub\]"):
        fetch("org/model", hub_kind="modelscope")


def stand_in(monkeypatch, download) -> None:
    """Puts modules with modelscope's names in place: the real one has no way to name another server."""
    package, errors, snapshot = (
        ModuleType(f"modelscope{name}") for name in ("", ".hub.errors", ".hub.snapshot_download")
    )
    errors.HubError = type("HubError", (Exception,), {})
    snapshot.snapshot_download = download
    for module in (package, ModuleType("modelscope.hub"), errors, snapshot):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_modelscope_downloads_only_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "memo"))
    asked = {}

    def download(model_id, **options):
        asked.update(options, model_id=model_id)
        return str(local(tmp_path / "model"))

    stand_in(monkeypatch, download)
    base = fetch("org/model", hub_kind="modelscope", revision="v1", cache_dir=tmp_path)
    assert (base.folder, base.revision) == (tmp_path / "model", "v1")
    assert (asked["model_id"], asked["revision"], asked["cache_dir"]) == ("org/model", "v1", tmp_path)
    assert "model*.safetensors" in asked["allow_patterns"]


def test_a_failure_of_modelscope_is_one_clear_error(tmp_path, monkeypatch):
    def download(model_id, **options):
        raise sys.modules["modelscope.hub.errors"].HubError("no such model")

    stand_in(monkeypatch, download)
    with pytest.raises(StageError, match="org/model cannot be downloaded from ModelScope: no such model"):
        fetch("org/model", hub_kind="modelscope")


def test_pull_prints_the_commit_and_the_folder(server, capsys):
    assert pull.main([REPO, "--revision=v1"]) == 0
    folder = fetch(REPO, revision="v1").folder
    assert capsys.readouterr().out.splitlines() == [f"revision: {OTHER}", f"folder: {folder}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "takes one model"), ([REPO, "--hub=x"], "there is no hub")],
)
def test_pull_refuses_arguments_it_does_not_know(arguments, message):
    with pytest.raises(UserError, match=message):
        pull.main(arguments)
