"""Copies of a process with its imports done: they run, report, crash and stop like fresh ones, to the same bits."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.train.runs import LORA, make_run, train_step
from tunerun import worker
from tunerun.artifacts import PLAN
from tunerun.base_model import read_base, write_base
from tunerun.commands.prepare import prepare
from tunerun.config.resolve import resolve
from tunerun.launch import forks, process
from tunerun.launch.command import Launch, command
from tunerun.launch.forks import ForkServers
from tunerun.launch.process import Process, Start, StopSignals, Supervision
from tunerun.launch.terminal import Terminal
from tunerun.plan import steps
from tunerun.run import runner

STAGE = """
import json, os, signal, sys, time
from pathlib import Path
from tunerun.progress import goes_on
loaded = os.getpid()
def run(step, out):
    (out / "facts.json").write_text(json.dumps({
        "loaded": loaded, "pid": os.getpid(), "parent": os.getppid(), "group": os.getpgid(0),
        "parallelism": os.environ["TOKENIZERS_PARALLELISM"], "input": sys.stdin.read()}))
    print("out", flush=True)
    print("err", file=sys.stderr, flush=True)
    what = (out / "what").read_text()
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "ask":
        print([goes_on(1, 0.5), goes_on(2, 0.25)])
    if what == "sleep":
        time.sleep(60)
    return []
"""


@pytest.fixture
def servers(tmp_path, monkeypatch):
    """Servers of a stage that stands in for a slow import."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/slow_stage.py").write_text(STAGE)
    (tmp_path / "modules/sitecustomize.py").write_text(
        "import tunerun.worker\ntunerun.worker.STAGES['data'] = 'slow_stage:run'\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'modules'}:{os.environ.get('PYTHONPATH', '')}:{_source()}")
    monkeypatch.setattr(forks, "_STAGES", ("data",))
    monkeypatch.setattr(forks, "_LIGHT", ())
    with ForkServers() as found:
        yield found


def _source() -> str:
    return str(Path(worker.__file__).parents[1])


def started(folder: Path, servers: ForkServers, what: str = "", **options: object):
    """Runs the stage in a folder; returns how it ended, what it printed, and what it knew."""
    folder.mkdir()
    (folder / "what").write_text(what)
    (folder / PLAN).write_text(json.dumps({"steps": [_step()]}))
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    out, errors = io.StringIO(), io.StringIO()
    env = {"TOKENIZERS_PARALLELISM": options.pop("parallelism", "true")}
    ended = process.run(
        Launch(argv=(sys.executable, "-P", "-m", "tunerun.worker", str(folder), "data"), env=env, without=()),
        log=folder / "log",
        terminal=Terminal(out, errors),
        supervision=Supervision(stop=options.pop("stop", StopSignals()), start=servers.start, **options),
        clean=str,
        lock=lock,
    )
    os.close(lock)
    facts = folder / "facts.json"
    return ended.exit_code, out.getvalue() + errors.getvalue(), json.loads(facts.read_text()) if facts.exists() else {}


def _step() -> dict:
    from tests.run import scenario

    made = scenario.config("rows", "model")
    return steps.to_json(scenario.plan("run", made).steps[1])


def test_a_stage_runs_in_a_copy_of_a_process_that_imported_it_before(tmp_path, servers):
    code, said, first = started(tmp_path / "one", servers)
    _, _, second = started(tmp_path / "two", servers, parallelism="false")
    assert (code, said) == (0, "out\nerr\n")
    assert json.loads((tmp_path / "one/status/data.json").read_text())["exit_code"] == 0
    assert first["loaded"] == first["parent"] == second["loaded"] == second["parent"]
    assert first["pid"] != second["pid"]
    assert first["group"] == first["pid"]
    assert first["input"] == ""
    assert (first["parallelism"], second["parallelism"]) == ("true", "false")


def test_another_environment_has_another_server(tmp_path, servers, monkeypatch):
    _, _, first = started(tmp_path / "one", servers)
    monkeypatch.setenv("READ_AT_IMPORT", "1")
    _, _, second = started(tmp_path / "two", servers)
    assert first["loaded"] != second["loaded"]


def test_a_light_stage_starts_no_server_and_uses_one_of_any_number_of_threads(tmp_path, servers, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    _, _, first = started(tmp_path / "one", servers)
    monkeypatch.setattr(forks, "_LIGHT", ("data",))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    _, _, second = started(tmp_path / "two", servers)
    assert first["loaded"] == second["loaded"]
    monkeypatch.setenv("READ_AT_IMPORT", "1")
    code, _, _ = started(tmp_path / "three", servers)
    assert code == 1
    assert len(servers._servers) == 1


def test_a_light_stage_does_not_wait_for_the_imports_of_others(tmp_path, servers, monkeypatch):
    gate = tmp_path / "modules/gate"
    (tmp_path / "modules/slow_import.py").write_text(
        f"import time\nfrom pathlib import Path\nwhile not Path({str(gate)!r}).exists():\n    time.sleep(0.01)\n"
        "from slow_stage import run\n"
    )
    (tmp_path / "modules/sitecustomize.py").write_text(
        "import tunerun.worker\ntunerun.worker.STAGES |= {'train': 'slow_import:run', 'data': 'slow_stage:run'}\n"
    )
    monkeypatch.setattr(forks, "_STAGES", ("data", "train"))
    monkeypatch.setattr(forks, "_LIGHT", ("data",))
    env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "2"}
    argv = (sys.executable, "-P", "-m", "tunerun.worker", "run")
    servers.begin((*argv, "verify"), env)
    assert not servers._servers
    servers.begin((*argv, "train"), env)
    servers.begin((*argv, "train"), env)
    (server,) = servers._servers.values()
    # A fresh process knows nothing of the stand-in.
    code, _, _ = started(tmp_path / "one", servers)
    assert code == 1
    gate.touch()
    while not server.is_ready():
        time.sleep(0.01)
    _, _, second = started(tmp_path / "two", servers)
    assert second["loaded"] == server.process.pid


def test_a_stage_that_needs_what_the_server_left_out_becomes_a_fresh_process(tmp_path, servers):
    hooks = tmp_path / "modules/sitecustomize.py"
    hooks.write_text(
        f"{hooks.read_text()}tunerun.worker.misses = lambda run_dir, stage: True\n"
        f"import os\nopen({str(tmp_path / 'starts')!r}, 'a').write(f'{{os.getpid()}} ')\n"
    )
    code, said, _ = started(tmp_path / "one", servers)
    (server,) = servers._servers.values()
    starts = (tmp_path / "starts").read_text().split()
    assert len(set(starts)) == 2
    assert starts[0] == str(server.process.pid)
    # It knows nothing of the stand-in, and says what the stage itself lacks.
    told = json.loads((tmp_path / "one/status/data.json").read_text())
    assert code == told["exit_code"] == 1
    assert "model.json" in said


def test_a_server_that_nobody_asked_does_not_keep_its_sweep_from_ending(tmp_path, servers, monkeypatch):
    (tmp_path / "modules/slow_stage.py").write_text("import time\ntime.sleep(60)\n")
    servers.begin((sys.executable, "-P", "-m", "tunerun.worker", "run", "data"), os.environ)
    (server,) = servers._servers.values()
    servers.__exit__(None, None, None)
    assert server.process.returncode == -signal.SIGKILL


def test_a_crash_is_that_of_one_copy(tmp_path, servers):
    code, _, first = started(tmp_path / "one", servers, "crash")
    assert code == -signal.SIGSEGV
    code, _, second = started(tmp_path / "two", servers)
    assert code == 0
    assert first["loaded"] == second["loaded"]


def test_a_server_that_died_is_started_again(tmp_path, servers):
    _, _, first = started(tmp_path / "one", servers)
    os.kill(first["loaded"], signal.SIGKILL)
    code, _, second = started(tmp_path / "two", servers)
    assert code == 0
    assert second["loaded"] != first["loaded"]


def test_a_copy_whose_server_dies_is_over(tmp_path, servers):
    def kill() -> None:
        facts = tmp_path / "one/facts.json"
        while not facts.exists() or not facts.read_text():
            time.sleep(0.02)
        os.kill(json.loads(facts.read_text())["loaded"], signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    code, _, facts = started(tmp_path / "one", servers, "sleep")
    assert code == -signal.SIGKILL
    # It was killed, and is gone as soon as it gets a processor to die on.
    ended = time.monotonic() + 10
    while state(facts["pid"]) not in ("", "Z"):
        assert time.monotonic() < ended
        time.sleep(0.02)


def state(pid: int) -> str:
    return subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()


def test_a_signal_reaches_the_copy(tmp_path, servers):
    stop = StopSignals()

    def ask() -> None:
        while not (tmp_path / "one/facts.json").exists():
            time.sleep(0.02)
        stop.received.append(signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    code, _, _ = started(tmp_path / "one", servers, "sleep", stop=stop)
    assert code == 75


def test_a_copy_is_judged_like_a_fresh_process(tmp_path, servers):
    _, said, _ = started(tmp_path / "one", servers, "ask", judge=lambda step, loss: loss > 0.3)
    assert "[True, False]" in said


def test_other_stages_get_a_process_of_their_own(tmp_path, servers, monkeypatch):
    monkeypatch.setattr(forks, "_STAGES", ("train",))
    code, said, _ = started(tmp_path / "one", servers)
    assert code == 1
    assert "model.json" in said
    assert servers._servers == {}


def test_no_server_outlives_the_runner(tmp_path, servers):
    _, _, facts = started(tmp_path / "one", servers)
    servers.__exit__(None, None, None)
    assert subprocess.run(["ps", "-p", str(facts["loaded"])], stdout=subprocess.DEVNULL).returncode != 0


def test_training_in_a_copy_gives_the_bits_of_training_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = ["+recipe=quickstart", "data.vars.name=A", "data.vars.author=B", "stages=[data,train]"]
    wanted += ["train.max_steps=3", "train.eval_steps=1", "method.dropout=0.1"]

    def weights(name: str, supervision: Supervision | None) -> str:
        prepared = prepare(resolve([*wanted, f"run_dir={name}"]))
        code = runner.execute(prepared.plan, config=prepared.config, supervision=supervision)
        assert code == 0
        files = [(tmp_path / name / "adapter/adapter_model.safetensors").read_bytes()]
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return files, [row["eval_loss"] for row in rows if "eval_loss" in row]

    alone = weights("alone", None)
    with ForkServers() as servers, StopSignals() as stop:
        shared = [weights(name, Supervision(stop=stop, start=servers.start)) for name in ("first", "second")]
    assert shared == [alone, alone]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_base_model_is_read_once_and_each_copy_finds_it_as_it_was(tmp_path, precision):
    step = train_step(LORA, max_steps=3, threads=2, precision=precision)

    def trained(name: str, start: Callable[[Start], Process]) -> bytes:
        out = make_run(tmp_path / name)
        # One base for all, which the last one does not find on the disk any more.
        write_base(out, replace(read_base(out), folder=tmp_path / "alone/base"))
        (out / PLAN).write_text(json.dumps({"steps": [steps.to_json(step)]}))
        lock = os.open(out / "lock", os.O_CREAT | os.O_RDWR)
        ended = process.run(
            command(step, out),
            log=out / "log",
            terminal=Terminal(io.StringIO(), io.StringIO()),
            supervision=Supervision(stop=StopSignals(), start=start),
            clean=str,
            lock=lock,
        )
        os.close(lock)
        assert ended.exit_code == 0, (out / "log").read_text()
        return (out / "adapter/adapter_model.safetensors").read_bytes()

    alone = trained("alone", process.spawn)
    with ForkServers() as servers:
        assert trained("first", servers.start) == alone
        (tmp_path / "alone/base/model.safetensors").unlink()
        assert trained("second", servers.start) == alone
