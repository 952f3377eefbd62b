import io
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tunerun.launch import process
from tunerun.launch.command import Launch
from tunerun.launch.process import StopSignals, Supervision
from tunerun.launch.terminal import Terminal


class Screen(io.StringIO):
    pass


@pytest.fixture
def child(tmp_path):
    """Runs Python code as a child; returns how it ended, what was printed, and the log."""
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)

    def run(code, *, stop=None, judge=None, grace_seconds=5.0, clean=str):
        out, errors = Screen(), Screen()
        ended = process.run(
            Launch(argv=(sys.executable, "-c", code), env={"GREETING": "hello"}, without=("FAREWELL",)),
            log=tmp_path / "logs/child.log",
            terminal=Terminal(out, errors),
            supervision=Supervision(stop=stop or StopSignals(), judge=judge),
            clean=clean,
            lock=lock,
            grace_seconds=grace_seconds,
        )
        return ended, out.getvalue(), errors.getvalue(), (tmp_path / "logs/child.log").read_text()

    yield run
    os.close(lock)


def test_output_goes_to_terminal_and_log_and_errors_to_the_error_stream(child):
    ended, out, errors, log = child("import os, sys; print(os.environ['GREETING']); print('oh', file=sys.stderr)")
    assert (ended.exit_code, out, errors) == (0, "hello\n", "oh\n")
    assert sorted(log.splitlines()) == ["hello", "oh"]


def test_variables_can_be_kept_from_the_child(child, monkeypatch):
    monkeypatch.setenv("FAREWELL", "bye")
    assert child("import os; print('FAREWELL' in os.environ)")[1] == "False\n"


def test_the_code_of_the_child_is_returned(child):
    assert child("raise SystemExit(7)")[0].exit_code == 7


def test_a_child_killed_by_a_signal_has_its_negative_number(child):
    assert child("import os; os.kill(os.getpid(), 11)")[0].exit_code == -signal.SIGSEGV


def test_much_output_and_a_last_line_without_an_end_arrive_whole(child):
    _, out, _, log = child(
        "print('x' * 99 + '\\n' * 1, end='') or [print('y' * 999) for _ in range(2000)]; print('z', end='')"
    )
    assert len(out.splitlines()) == 2002
    assert log.splitlines()[-1] == "z"


def test_bytes_that_are_no_text_are_replaced(child):
    assert child("import os; os.write(1, b'\\xff\\xfe ok\\n')")[1] == "\ufffd\ufffd ok\n"


def test_of_a_rewritten_line_the_last_state_is_kept(child):
    assert child("print('10%\\r20%\\r30%')")[1] == "30%\n"


def test_every_line_is_cleaned(child):
    _, out, _, log = child("print('key=abc')", clean=lambda line: line.replace("abc", "*"))
    assert (out, log) == ("key=*\n", "key=*\n")


def test_progress_is_shown_and_not_logged(child):
    code = (
        "import time\nfrom tunerun.progress import Progress\n"
        "with Progress('load', total=2, unit='files') as p:\n  time.sleep(2.1); p.advance(2)"
    )
    _, out, _, log = child(code)
    assert out.startswith("load: 2 files in 0:02")
    assert log == ""


def test_a_child_that_closes_its_output_is_still_waited_for(child):
    ended, *_ = child("import os, time; os.close(1); os.close(2); time.sleep(0.5); os._exit(3)")
    assert ended.exit_code == 3
    assert ended.seconds >= 0.5


def test_a_process_that_the_child_left_running_is_killed_and_does_not_hold_the_pipes(child):
    code = (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\nprint(p.pid)"
    )
    started = time.monotonic()
    _, out, _, _ = child(code)
    assert time.monotonic() - started < 10
    with pytest.raises(ProcessLookupError):
        while time.monotonic() - started < 10:
            os.kill(int(out), 0)
            time.sleep(0.02)


def test_the_child_has_a_session_of_its_own(child):
    out = child("import os; print(os.getsid(0), os.getpid())")[1]
    assert len(set(out.split())) == 1


def test_the_first_signal_is_passed_on_once(child):
    code = (
        "import signal, time, sys\nseen = []\n"
        "signal.signal(signal.SIGTERM, lambda *a: seen.append(1))\n"
        "import os; os.kill(os.getppid(), signal.SIGINT)\n"
        "time.sleep(1); time.sleep(0.5); print(len(seen))"
    )
    with StopSignals() as stop:
        ended, out, _, _ = child(code, stop=stop)
    assert (ended.exit_code, out) == (0, "1\n")
    assert stop.received == [signal.SIGINT]


def test_a_child_that_ignores_signals_is_killed_when_the_grace_is_over(child):
    code = (
        "import signal, time, os\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    )
    with StopSignals() as stop:
        ended, *_ = child(code, stop=stop, grace_seconds=0.5)
    assert ended.exit_code == -signal.SIGKILL
    assert ended.seconds < 10


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_an_ignored_hang_up_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_program_that_is_not_there_is_an_error(tmp_path, child):
    with pytest.raises(FileNotFoundError):
        process.run(
            Launch(argv=("/nonexistent/python",), env={}, without=()),
            log=tmp_path / "log",
            terminal=Terminal(Screen(), Screen()),
            supervision=Supervision(stop=StopSignals()),
            clean=str,
            lock=0,
        )


def test_no_descriptor_stays_open(child):
    before = len(list(Path("/proc/self/fd").iterdir()))
    child("print(1)")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


ASKING = """
from tunerun.progress import goes_on
print([goes_on(step, 1.0 / step) for step in (1, 2, 4)])
"""


def test_a_judge_answers_each_measurement_before_the_child_goes_on(child):
    asked = []

    def judge(step, loss):
        asked.append((step, loss))
        return step != 2

    assert child(ASKING, judge=judge)[1] == "[True, False, True]\n"
    assert asked == [(1, 1.0), (2, 0.5), (4, 0.25)]


def test_without_a_judge_everything_goes_on(child):
    assert child(ASKING)[1] == "[True, True, True]\n"
