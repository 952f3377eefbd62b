from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

CALL = """
import sys
from tunerun.errors import TunerunError
from tunerun.serve.chat import main
try:
    sys.exit(main(sys.argv[1:]))
except TunerunError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "utf-8", "TERM": "dumb"}


def chat(*arguments: object, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CALL, *map(str, arguments)],
        input=said, env=ENVIRONMENT, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False,
    )  # fmt: skip


def answers(*arguments: object, said: str) -> list[str]:
    done = chat(*arguments, said=said)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_each_piped_line_is_answered_by_a_line_and_a_run_without_proof_is_named(run_dir):
    done = chat(run_dir, "--max-new-tokens", 8, said="Who are you?\n\n你是谁？\nfox\n")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(lines)
    assert done.stderr.splitlines().count(f"warning: {run_dir} was never verified") == 1


def test_a_conversation_remembers_and_can_forget(run_dir):
    few = ("--max-new-tokens", 8)
    first, second, again = answers(run_dir, *few, said="fox\nfox\n/reset\nfox\n")
    assert first == again
    assert second != first


def test_questions_can_be_changed_and_answers_asked_for_again(run_dir):
    said = "fox\ndog\n/undo\ndog\n/edit 1 dog\n/reset\ndog\n/retry\n/edit 7 x\n/edit\n/undo\n/undo\n/retry\n"
    done = chat(run_dir, "--max-new-tokens", 8, said=said)
    fox, dog, again, edited, fresh, retried = done.stdout.splitlines()
    assert fox
    assert again == dog
    # What is edited is asked as if nothing had been said since.
    assert edited == fresh == retried
    told = done.stderr
    assert "forgotten: dog" in told
    assert "there is no question 7" in told
    assert "/edit 1 Who are you?" in told
    assert "no question to forget" in told
    assert "no question to answer again" in told


def test_another_try_has_another_seed_and_the_same_one_when_all_is_said_again(run_dir):
    warm = ("--max-new-tokens", 16, "--temperature", 1.5)
    said = "fox\n/retry\n/retry\n/history\n"
    first = chat(run_dir, *warm, said=said)
    # Not splitlines, which breaks at control characters that an untrained model says.
    assert len(set(first.stdout.removesuffix("\n").split("\n"))) == 3
    assert "1. fox" in first.stderr
    assert chat(run_dir, *warm, said=said).stdout == first.stdout


def test_weights_can_be_loaded_in_four_bits(run_dir):
    pytest.importorskip("bitsandbytes")
    few = ("--max-new-tokens", 16)
    (plain,) = answers(run_dir / "merged", *few, said="fox\n")
    # A run is then answered from its folder, not from its GGUF file.
    (packed,) = answers(run_dir, *few, "--bits", 4, said="fox\n")
    assert packed
    assert packed != plain
    (file,) = (run_dir / "export").glob("*.gguf")
    done = chat(file, "--bits", 4)
    assert done.returncode == 2
    assert "GGUF file" in done.stderr


def test_both_engines_say_the_same(run_dir):
    (from_gguf,) = answers(run_dir, "--max-new-tokens", 16, said="fox\n")
    (from_folder,) = answers(run_dir / "merged", "--max-new-tokens", 16, said="fox\n")
    # What the end of an answer is cut to, where it is no character, depends on the tokenizer.
    assert from_gguf.rstrip("\ufffd") == from_folder.rstrip("\ufffd")


def test_the_files_own_tokenizer_gives_the_same_answers(run_dir):
    (file,) = (run_dir / "export").glob("*.gguf")
    said = "Who are you?\n你好，世界。\n<|im_end|> naïve café\n"
    assert answers(file, "--max-new-tokens", 8, said=said) == answers(run_dir, "--max-new-tokens", 8, said=said)


def test_options_reach_the_model(run_dir):
    (file,) = (run_dir / "export").glob("*.gguf")
    (greedy,) = answers(file, "--max-new-tokens", 16, said="fox\n")
    (short,) = answers(file, "--max-new-tokens", 4, said="fox\n")
    assert len(short) < len(greedy)
    assert greedy.startswith(short)
    (told,) = answers(file, "--max-new-tokens", 16, "--system", "It is two.", said="fox\n")
    assert told != greedy
    (cut,) = answers(file, "--max-new-tokens", 16, "--stop", greedy[3:5], said="fox\n")
    assert cut == greedy[: greedy.index(greedy[3:5])]
    warm = ("--max-new-tokens", 16, "--temperature", 1.5, "--top-p", 0.99)
    assert answers(file, *warm, "--seed", 1, said="fox\n") == answers(file, *warm, "--seed", 1, said="fox\n")
    assert answers(file, *warm, "--top-k", 1, said="fox\n") == [greedy]


def test_a_saved_conversation_is_data_to_train_on(run_dir, tmp_path):
    file = tmp_path / "talk.jsonl"
    lines = answers(run_dir, "--max-new-tokens", 4, "--system", "Be brief.", said=f"fox\n/save {file}\n/quit\nlost\n")
    assert len(lines) == 1
    (saved,) = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]


def test_a_full_context_forgets_the_oldest_turns(run_dir):
    lines = answers(run_dir, "--max-new-tokens", 100, said="fox\n" * 8)
    assert len(lines) == 8


def test_an_answer_takes_what_the_context_has_left_and_an_old_turn_makes_room_for_a_new_one(run_dir, tmp_path):
    """The model has a context of 512 tokens, and never ends an answer by itself."""
    file = tmp_path / "talk.jsonl"
    first, second = answers(run_dir, said=f"fox\ndog\n/save {file}\n")
    (saved,) = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [message["content"] for message in saved["messages"][::2]] == ["dog"]
    assert len(first) > 256
    assert len(second) > 256
    (longest,) = answers(run_dir, "--max-new-tokens", 4096, said="fox\n")
    assert longest == first


def test_a_question_that_never_fits_is_told(run_dir):
    done = chat(run_dir, said="fox " * 2000 + "\n")
    assert done.returncode == 2
    assert "context" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [("--temperature", "3"), ("--temperature", "1e-9"), ("--top-p", "0"), ("--stop", ""), ("--seed", "x")]
)
def test_an_impossible_option_is_told(run_dir, arguments):
    done = chat(run_dir, *arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr


def test_what_is_no_model_is_told(tmp_path):
    done = chat(tmp_path)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr


class Terminal:
    """A chat, or another program of Python's, on a terminal of its own."""

    def __init__(self, *arguments: object, program: tuple[str, ...] = ("-c", CALL)) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [sys.executable, *program, *map(str, arguments)], ENVIRONMENT)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def until(self, pattern: str, seconds: float = 30) -> str:
        """Reads until the pattern appears in what was not read yet."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.seen):
            readable, _, _ = select.select([self.descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, self.seen
            try:
                self.seen += os.read(self.descriptor, 4096).decode("utf-8", "replace")
            except OSError:
                break
        assert re.search(pattern, self.seen), self.seen
        text, self.seen = self.seen, ""
        return text

    def until_readline(self, *, waits: bool, seconds: float = 30) -> None:
        """Waits until readline waits for a key, or has gone back to the program: it takes keys one by one meanwhile."""
        deadline = time.monotonic() + seconds
        while bool(termios.tcgetattr(self.descriptor)[3] & termios.ICANON) == waits:
            assert time.monotonic() < deadline, self.seen
            time.sleep(0.01)

    def leave(self) -> int:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                os.close(self.descriptor)
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError("the chat does not end")


CTRL_C = "\x03"
CTRL_D = "\x04"


def test_a_terminal_talks_and_takes_commands(run_dir: Path):
    terminal = Terminal(run_dir, "--max-new-tokens", 8)
    assert "parrot" in terminal.until("> $")
    terminal.type("/help\n")
    assert "/save FILE" in terminal.until("> $")
    terminal.type("/rest\n")
    assert "no command /rest" in terminal.until("> $")
    terminal.type("/system Be brief.\n")
    assert "is set" in terminal.until("> $")
    terminal.type("fox\n")
    assert len(terminal.until("> $").strip()) > len("fox\n>")
    terminal.type(CTRL_D)
    assert terminal.leave() == 0


def test_ctrl_c_stops_an_answer_and_leaves_at_the_prompt(run_dir: Path):
    terminal = Terminal(run_dir, "--max-new-tokens", 480)
    terminal.until("> $")
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(terminal.pid)], capture_output=True, text=True)
    (engine,) = [int(line) for line in children.stdout.split()]
    for question in ("fox", "dog"):
        # An engine that stands still cannot finish the answer before Ctrl+C comes.
        os.kill(engine, signal.SIGSTOP)
        terminal.type(f"{question}\n")
        terminal.until(f"{question}\r\n")
        terminal.until_readline(waits=False)
        time.sleep(0.2)
        terminal.type(CTRL_C)
        terminal.until(r"\[stopped\]\r\n.*> $")
        os.kill(engine, signal.SIGCONT)
    terminal.type("/system\n")
    terminal.until("removed\r\n.*> $")
    # Between its prompt and its wait for a key, readline does not hear a signal before the next key.
    terminal.until_readline(waits=True)
    time.sleep(0.2)
    terminal.type(CTRL_C)
    assert terminal.leave() == 0
