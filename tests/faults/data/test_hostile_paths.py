"""Paths and sizes that harm a careless reader: each is a clear error or read, in bounded memory and time."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.data.broken import first_fault
from tunerun.data.read import find_files, read_rows
from tunerun.errors import UserError

# Reads a file in a process of its own and prints rows, the first fault, seconds and what its memory grew by.
PROBE = """
import json, re, sys, time
sys.path[:0] = {paths!r}
import pyarrow
from pathlib import Path
from tunerun.data.read import read_rows
from tunerun.errors import UserError
list(read_rows(Path({small!r})))
def peak():
    # Not ru_maxrss, which starts from that of the parent.
    return int(re.search("VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
before, start, rows, fault = peak(), time.perf_counter(), 0, None
try:
    for row in read_rows(Path({path!r})):
        rows += 1
except UserError as error:
    fault = str(error)
print(json.dumps([rows, fault, time.perf_counter() - start, peak() - before]))
"""


def probe(path: Path) -> tuple[int, str, float, float]:
    """Returns rows, first fault, seconds, and MiB of memory beyond what a small file takes."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to measure peak memory")
    small = path.with_name("small.jsonl")
    small.write_text('{"a": 1}\n')
    code = PROBE.format(paths=[str(ROOT / "src")], small=str(small), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=True)
    return tuple(json.loads(done.stdout))


def fill(path: Path, parts) -> Path:
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
    return path


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    started = time.monotonic()
    assert first_fault(tmp_path / "a.jsonl") == (str(tmp_path / "a.jsonl"), "is not a file but a pipe. ")
    assert time.monotonic() - started < 10


def test_sockets_devices_and_folders_are_refused(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "a.json"))
        assert "but a socket" in first_fault(tmp_path / "a.json")[1]
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    assert "but a device" in first_fault(tmp_path / "zero.txt")[1]
    (tmp_path / "b.csv").mkdir()
    assert "but a folder" in first_fault(tmp_path / "b.csv")[1]


def test_links_that_lead_nowhere_or_round_are_refused(tmp_path):
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    (tmp_path / "a.json").symlink_to(tmp_path / "none.json")
    assert "symbolic links" in first_fault(tmp_path / "loop.json")[1]
    assert "a link to a file that does not exist" in first_fault(tmp_path / "a.json")[1]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "again").symlink_to(tmp_path / "folder")
    with pytest.raises(UserError, match="holds no data file"):
        find_files([str(tmp_path / "folder")])


def test_a_folder_or_file_without_read_permission_is_told(tmp_path):
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "a.jsonl").write_text("{}\n")
    (tmp_path / "b.jsonl").write_text("{}\n")
    for path in (tmp_path / "closed", tmp_path / "b.jsonl"):
        path.chmod(0)
    code = """
import os, sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from tunerun.data.read import find_files, read_rows
from tunerun.errors import UserError
if os.getuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
for path in sys.argv[2:]:
    try:
        for file in find_files([path]):
            list(read_rows(file.path))
    except UserError as error:
        print(error)
"""
    for folder in [tmp_path, *tmp_path.parents][:4]:
        if folder.stat().st_uid == os.getuid() and folder != Path("/tmp"):
            folder.chmod(0o755)
    # The modules are imported before the rights are given up.
    names = [str(tmp_path / name) for name in ("closed", "closed/a.jsonl", "b.jsonl")]
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "src"), *names], capture_output=True, text=True, timeout=60, check=False
    )
    (tmp_path / "closed").chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"data.path: {names[0]} cannot be read: Permission denied.",
        f"data.path: {names[1]} cannot be read: Permission denied.",
        f"{names[2]}: cannot be read: Permission denied.",
    ]


def test_a_file_that_is_deleted_while_it_is_read_is_read_to_its_end(tmp_path):
    path = fill(tmp_path / "a.jsonl", [b'{"a": 1}\n' * 200_000])
    rows = read_rows(path)
    next(rows)
    path.unlink()
    assert sum(1 for _ in rows) == 199_999
    assert first_fault(path)[1] == "does not exist. "


def test_a_file_that_grows_while_it_is_read_gives_whole_rows(tmp_path):
    path = fill(tmp_path / "a.jsonl", [b'{"a": 1}\n' * 100_000])
    count = 0
    for count, _ in enumerate(read_rows(path), start=1):
        if count == 1:
            with path.open("ab") as file:
                file.write(b'{"a": 2}\n' * 5)
    assert count == 100_005


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_a_file_that_is_cut_while_it_is_read_is_told(tmp_path, name):
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    table = pyarrow.table({"q": [os.urandom(500).hex() for _ in range(4000)]})
    path = tmp_path / name
    if name == "a.parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=100)
    elif name == "a.arrow":
        with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=100)
    else:
        fill(path, [json.dumps(row).encode() + b"\n" for row in table.to_pylist()])
    rows = read_rows(path)
    next(rows)
    os.truncate(path, path.stat().st_size // 2 + 7)
    # A line that is cut is a bad row; the other files are refused as a whole.
    try:
        rest = list(rows)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert name == "a.jsonl"
        assert rest[-1].reason == "bad-json"


def test_a_field_of_ten_megabytes_is_read(tmp_path):
    text = "x" * (10 << 20)
    for name, content in (
        ("a.jsonl", json.dumps({"q": text}) + "\n"),
        ("a.json", json.dumps([{"q": text}])),
        ("a.csv", f'q\n"{text}"\n'),
    ):
        (tmp_path / name).write_text(content)
        (row,) = read_rows(tmp_path / name)
        assert row.value == {"q": text}


HEADS = [("a.jsonl", b'{"q": "'), ("a.json", b'[{"q": "'), ("a.csv", b'q\n"'), ("a.txt", b"")]


@pytest.mark.parametrize(
    ("name", "head", "packed"),
    [(*HEADS[0], ""), (*HEADS[0], ".gz"), (*HEADS[0], ".zst"), (*HEADS[1], ""), (*HEADS[2], "")],
)
def test_text_that_never_ends_is_refused_in_bounded_memory(tmp_path, name, head, packed):
    import pyarrow

    path = tmp_path / (name + packed)
    block = b"x" * (1 << 20)
    if packed == ".gz":
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(head)
            for _ in range(100):
                file.write(block)
    elif packed == ".zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
            file.write(head)
            for _ in range(100):
                file.write(block)
    else:
        fill(path, [head, *[block] * 100])
    rows, fault, seconds, grown = probe(path)
    assert rows == 0
    assert "longer than 64 MiB" in fault or "never closed" in fault
    assert grown < 600, grown
    assert seconds < 30, seconds


def test_a_table_of_many_rows_takes_little_memory(tmp_path):
    for name, head, line in (
        ("a.jsonl", b"", b'{"q": "%s"}\n' % (b"x" * 200)),
        ("a.csv", b"q,a\n", b"%s,y\n" % (b"x" * 200)),
        ("a.json", b"[1", b',{"q": "%s"}\n' % (b"x" * 200)),
    ):
        end = [b"]"] if name == "a.json" else []
        rows, fault, _, grown = probe(fill(tmp_path / name, [head, *[line * 1000] * 100, *end]))
        assert (rows, fault) == (100_000 + len(end), None)
        assert grown < 40, (name, grown)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), HEADS)
def test_a_line_of_a_gigabyte_is_refused_in_bounded_memory(tmp_path, name, head):
    rows, fault, seconds, grown = probe(fill(tmp_path / name, [head, *[b"x" * (1 << 20)] * 1024]))
    print(f"{name}: {seconds:.2f} s, {grown:.0f} MiB")
    assert rows == 0
    assert "longer than 64 MiB" in fault
    assert grown < 600, grown
    assert seconds < 30, seconds
