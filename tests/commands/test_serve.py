"""What `tunerun serve` takes from a run's own config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tunerun import artifacts
from tunerun.commands import serve
from tunerun.config import typed
from tunerun.config.schema import RunConfig, ServeConfig
from tunerun.errors import UserError


def recorded(folder: Path, **keys: Any) -> Path:
    """A run whose config has a `serve` section."""
    folder.mkdir()
    (folder / artifacts.MODEL).write_text("{}")
    config = typed.plain(RunConfig(serve=ServeConfig(**keys)))
    (folder / artifacts.CONFIG).write_text(yaml.safe_dump(config))
    return folder


def test_a_run_is_served_as_its_config_says_and_the_command_line_goes_before(tmp_path, capsys):
    run = recorded(tmp_path / "run", engine="transformers", batching="continuous", context=128, max_n=2)
    found = serve._config([run], ["serve.context=64", "env.serve.python=python3"])
    assert found.serve == ServeConfig(engine="transformers", batching="continuous", context=64, max_n=2)
    assert found.env.serve.python == "python3"
    told = capsys.readouterr().err
    assert str(run / artifacts.CONFIG) in told
    assert "serve.batching='continuous'" in told
    assert "serve.context" not in told


def test_another_engine_on_the_command_line_leaves_the_keys_of_the_runs_behind(tmp_path, capsys):
    run = recorded(tmp_path / "run", engine="vllm", gpus=2, max_n=2)
    assert serve._config([run], ["serve.engine=llamacpp"]).serve == ServeConfig(engine="llamacpp", max_n=2)
    capsys.readouterr()
    kept = serve._config([run], ["serve.extra_args.max_num_seqs=4"]).serve
    told = capsys.readouterr().err
    assert "serve.gpus=2" in told
    assert "max_num_seqs" not in told
    assert (kept.engine, kept.gpus, kept.extra_args) == ("vllm", 2, {"max_num_seqs": 4})


def test_a_runs_config_opens_nothing_to_others(tmp_path, capsys):
    # As somebody may have written it who wants to be let in.
    run = recorded(
        tmp_path / "run", host="0.0.0.0", port=80, api_key_env="HOME", cors_origins=("https://evil.example",)
    )
    assert serve._config([run], []).serve == ServeConfig()
    assert capsys.readouterr().err == ""
    assert serve._config([run], ["serve.port=8001"]).serve == ServeConfig(port=8001)


def test_a_runs_config_names_nothing_to_run(tmp_path):
    # vLLM takes middleware, and code of a model's repository.
    run = recorded(tmp_path / "run", engine="vllm", extra_args={"middleware": ["evil.app"], "trust_remote_code": True})
    config = yaml.safe_load((run / artifacts.CONFIG).read_text())
    config["env"]["serve"]["python"] = "/tmp/evil"
    (run / artifacts.CONFIG).write_text(yaml.safe_dump(config))
    found = serve._config([run], [])
    assert found.env.serve.python is None
    assert found.serve == ServeConfig(engine="vllm")


def test_of_several_targets_the_first_run_decides(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    runs = [recorded(tmp_path / name, max_n=number) for name, number in (("a", 3), ("b", 4))]
    assert serve._config([folder, *runs], []).serve.max_n == 3
    assert serve._config([folder], []).serve == ServeConfig()


def test_what_a_damaged_or_newer_config_holds_is_told_with_its_file(tmp_path):
    run = recorded(tmp_path / "run")
    for text in ("serve: {contxt: 5}", "serve: {context: five}", "serve: 5", "[1]", "{", ""):
        (run / artifacts.CONFIG).write_text(text)
        with pytest.raises(UserError, match=str(run / artifacts.CONFIG)):
            serve._config([run], [])


def test_a_secret_that_another_section_lost_is_not_needed(tmp_path):
    run = recorded(tmp_path / "run", max_n=3)
    config = yaml.safe_load((run / artifacts.CONFIG).read_text())
    config["model"]["path"] = "[redacted]"
    (run / artifacts.CONFIG).write_text(yaml.safe_dump(config))
    assert serve._config([run], []).serve.max_n == 3
