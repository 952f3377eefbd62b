import datetime
import gzip
import io
import itertools
import json
import os
import subprocess
import sys
import time

import httpx
import pyarrow
import pyarrow.parquet
import pytest

from tests.conftest import ROOT
from tests.hub_server import COMMIT, Hub
from tunerun.base_model import BaseModel, write_base
from tunerun.data.read import find_files, read_file, read_rows, remote
from tunerun.errors import StageError, UserError
from tunerun.models import hub

REPO = "org/rows"
OTHER = "89abcdef0123456789abcdef0123456789abcdef"
PAIRS = b'{"question": "q1", "answer": "007"}\n\n{"question": "NA", "answer": "2024-01-31"}\n'
CARD = b"""---
configs:
- config_name: one
  data_files: one/*.jsonl
- config_name: two
  data_files:
  - split: first
    path: two/a.jsonl
  - split: second
    path: two/b.jsonl
---
# A data set
"""
CONFIGS = {"README.md": CARD, "one/x.jsonl": PAIRS, "two/a.jsonl": PAIRS, "two/b.jsonl": PAIRS}


def parquet(rows) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


@pytest.fixture
def server(monkeypatch, tmp_path):
    from huggingface_hub import constants

    made = Hub(REPO, {"train.jsonl": PAIRS, "test.jsonl": PAIRS, "rows.py": b"evil"}, {"v1": OTHER}, "dataset")
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "WAIT_SECONDS", 0.01)
    yield made
    made.server.shutdown()
    made.server.server_close()


def rows_of(path=REPO):
    return [row for file in find_files([path]) for row in read_rows(file.path, file.name)]


def fetched(server):
    return [path.rpartition(f"{COMMIT}/")[2] for path, _ in server.downloads()]


def test_the_train_split_is_read_with_its_values_and_lines(server):
    rows = rows_of()
    assert [row.value for row in rows] == [
        {"question": "q1", "answer": "007"},
        {"question": "NA", "answer": "2024-01-31"},
    ]
    assert [(row.file, row.line) for row in rows] == [("org/rows/train.jsonl", 1), ("org/rows/train.jsonl", 3)]
    assert fetched(server) == ["train.jsonl"]


def test_a_table_keeps_its_texts(server):
    server.files = {"data.csv": b"question,answer\n007,NA\n1e5,\n"}
    assert [row.value for row in rows_of()] == [
        {"question": "007", "answer": "NA"},
        {"question": "1e5", "answer": ""},
    ]


def test_parquet_shards_are_read_in_order_without_the_nulls_of_arrow(server):
    calls = [{"name": "f", "arguments": {"a": "007"}}, {"name": "g", "arguments": {"b": 1}}]
    values = [{"messages": [{"role": "assistant", "tool_calls": [call]}], "n": None} for call in calls]
    server.files = {f"data/train-0000{part}-of-00002.parquet": parquet(values) for part in range(2)}
    rows = rows_of()
    assert [row.value for row in rows] == values * 2
    assert [row.line for row in rows] == [1, 2, 1, 2]
    assert rows[-1].file == "org/rows/data/train-00001-of-00002.parquet"


def test_values_that_json_lacks_become_texts(server):
    day = datetime.date(2024, 1, 31)
    server.files = {"a.parquet": parquet([{"day": day, "picture": b"x", "n": 1.5, "yes": True, "text": "007"}])}
    assert rows_of()[0].value == {"day": "2024-01-31", "picture": None, "n": 1.5, "yes": True, "text": "007"}


def test_several_configurations_need_one_named(server):
    server.files = dict(CONFIGS)
    with pytest.raises(UserError, match=r"several configurations: one, two\. Write org/rows:one\."):
        find_files([REPO])
    assert [row.file for row in rows_of("org/rows:one")] == ["org/rows/one/x.jsonl"] * 2
    with pytest.raises(UserError, match=r"no configuration three\. It has one, two\."):
        find_files(["org/rows:three"])


def test_several_splits_without_train_need_one_named(server):
    server.files = dict(CONFIGS)
    with pytest.raises(UserError, match=r"splits first, second, and none is train\. Write org/rows:two:first\."):
        find_files(["org/rows:two"])
    assert rows_of("org/rows:two:second")[0].file == "org/rows/two/b.jsonl"
    with pytest.raises(UserError, match=r"no split third\. It has first, second\."):
        find_files(["org/rows:two:third"])


def test_a_split_of_the_default_configuration_can_be_named(server):
    assert rows_of("org/rows:default:test")[0].file == "org/rows/test.jsonl"


def test_a_revision_is_resolved_to_its_commit(server):
    assert find_files([REPO])[0].revision == COMMIT
    assert find_files([f"{REPO}@v1"])[0].revision == OTHER


def test_no_code_of_a_data_set_is_downloaded(server):
    server.files = {"README.md": b"# A data set", "rows.py": b"raise SystemExit"}
    with pytest.raises(UserError, match="finds no files of rows in org/rows"):
        find_files([REPO])
    assert fetched(server) == ["README.md"]


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (b"---\nconfigs: [\n---\n", "finds no files of rows"),
        (b"---\nconfigs:\n- config_name: a\n  data_files: ../../*\n---\n", "finds no files of rows|outside"),
        (b"---\nconfigs:\n- config_name: a\n  data_files: no/*.json\n---\n", "finds no files of rows"),
    ],
)
def test_a_card_that_names_no_files_is_told(server, card, message):
    server.files = {"README.md": card, "a.jsonl": PAIRS}
    with pytest.raises(UserError, match=message):
        find_files([REPO])


def test_names_that_would_leave_the_cache_are_left_out(server):
    server.files = {"train.jsonl": PAIRS, "../../train.jsonl": b"evil", "/train.jsonl": b"evil"}
    assert len(rows_of()) == 2


def test_files_of_another_kind_are_refused_before_the_download(server):
    server.files = {"train.tar": b"pictures"}
    with pytest.raises(UserError, match=r"not read, such as train\.tar"):
        find_files([REPO])
    assert fetched(server) == []


def test_offline_takes_what_is_in_the_cache(server, monkeypatch):
    server.files = dict(CONFIGS)
    first = find_files(["org/rows:two:first"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    server.requests.clear()
    assert find_files(["org/rows:two:first"]) == first
    with pytest.raises(StageError, match=r"one/x\.jsonl of the data set org/rows is not in .*HF_HUB_OFFLINE"):
        find_files(["org/rows:one"])
    assert server.requests == []


def test_a_commit_in_the_cache_needs_no_request(server):
    find_files([REPO])
    server.requests.clear()
    assert find_files([f"{REPO}@{COMMIT}"])[0].revision == COMMIT
    assert server.requests == []


def test_a_hub_that_is_down_is_replaced_by_the_cache_and_said(server, capsys):
    first = find_files([REPO])
    server.status = 503
    assert find_files([REPO]) == first
    assert "taking the copy of org/rows in the cache" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "message"), [(404, "no data set org/rows"), (403, "is gated"), (503, "answers with HTTP 503")]
)
def test_a_refusal_says_what_to_do(server, status, message):
    server.status = status
    with pytest.raises(StageError, match=message):
        find_files([REPO])


def test_a_local_folder_comes_before_a_hub(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / REPO).mkdir(parents=True)
    (tmp_path / REPO / "a.jsonl").write_bytes(PAIRS)
    assert find_files([REPO])[0].revision is None
    assert server.requests == []


def test_a_path_that_is_neither_is_the_users_mistake():
    with pytest.raises(UserError, match="neither a file or folder"):
        find_files(["my rows/a"])
    with pytest.raises(UserError, match="does not exist"):
        find_files(["./org/rows"])


BIG = b"".join(b'{"question": "q%d", "answer": "%s"}\n' % (number, b"007" * 60) for number in range(5000))


def streamed(path=REPO, rows=None):
    found = (row for file in find_files([path], streaming=True) for row in read_file(file))
    return list(itertools.islice(found, rows))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", PAIRS),
        ("train.jsonl", BIG),
        ("train.json", b'[{"question": "2024-01-31"},\n{"answer": "007"}]'),
        ("train.csv", b"question,answer\n007,NA\n1e5,\n"),
        ("train.jsonl.gz", gzip.compress(BIG)),
        ("train.csv.zst", pyarrow.Codec("zstd").compress(b"question,answer\n007,NA\n", asbytes=True)),
        ("train.parquet", parquet([{"question": "007", "n": 1}] * 3000)),
    ],
)
def test_rows_that_are_streamed_are_those_of_the_file(server, tmp_path, name, content):
    server.files = {name: content}
    rows = streamed()
    assert not list(tmp_path.rglob(name)), "a copy was kept"
    assert rows == rows_of()
    assert rows[0].file.startswith(f"org/rows/{name}")


def test_streaming_stops_when_enough_rows_are_there(server):
    server.files = {f"data/train-0000{part}-of-00002.jsonl": BIG for part in range(2)}
    assert len(streamed(rows=3)) == 3
    assert fetched(server) == ["data/train-00000-of-00002.jsonl"]


def test_a_configuration_a_split_and_a_revision_can_be_streamed(server):
    server.files = dict(CONFIGS)
    assert [row.line for row in streamed("org/rows:two:second")] == [1, 3]
    (file,) = find_files(["org/rows@v1:one"], streaming=True)
    assert (file.revision, file.streamed, file.name, file.source) == (
        OTHER,
        True,
        "org/rows/one/x.jsonl",
        "org/rows@v1:one",
    )
    with pytest.raises(UserError, match=r"several configurations: one, two\. Write org/rows:one\."):
        streamed()


@pytest.mark.parametrize("ignore_range", [False, True])
def test_a_stream_that_breaks_is_taken_up_again(server, ignore_range):
    server.files = {"train.jsonl": BIG}
    server.cut_after = [100_000, 300_000]
    server.ignore_range = ignore_range
    rows = streamed()
    assert len(rows) == 5000
    assert [row.line for row in rows] == list(range(1, 5001))
    assert len(server.downloads()) == 3


def test_a_stream_that_breaks_time_and_again_is_told(server):
    server.files = {"train.jsonl": BIG}
    server.cut_after = [70_000] + [0] * 9
    with pytest.raises(StageError, match="the connection broke 4 times"):
        streamed()


def test_a_stream_outlives_a_network_that_is_gone_for_a_moment(monkeypatch):
    monkeypatch.setattr(hub, "WAIT_SECONDS", 0.01)

    def cut():
        yield b"0123"
        raise httpx.ReadError("reset")

    def later(request):
        assert request.headers["range"] == "bytes=4-"
        return httpx.Response(206, headers={"content-length": "6"}, content=iter([b"456789"]))

    answers = [
        lambda _: httpx.Response(200, headers={"content-length": "10"}, content=cut()),
        refuse(httpx.ConnectError("unreachable")),
        refuse(httpx.ConnectTimeout("")),
        later,
    ]
    with httpx.Client(transport=httpx.MockTransport(lambda request: answers.pop(0)(request))) as client:
        assert remote._RemoteFile(client, "http://hub/file").readall() == b"0123456789"


@pytest.mark.parametrize("error", [httpx.ConnectError("unreachable"), httpx.ConnectTimeout(""), httpx.ReadTimeout("")])
def test_a_stream_that_cannot_be_opened_is_told_without_a_traceback(error):
    with (
        httpx.Client(transport=httpx.MockTransport(refuse(error))) as client,
        pytest.raises(StageError, match="cannot be reached"),
    ):
        remote._RemoteFile(client, "http://hub/file")


def refuse(error):
    def answer(_):
        raise error

    return answer


def test_a_fault_in_a_stream_has_its_line(server):
    server.files = {"train.jsonl": BIG + b"{\n", "test.jsonl": PAIRS}
    assert (streamed()[-1].file, streamed()[-1].line) == ("org/rows/train.jsonl", 5001)


def test_streaming_offline_is_refused_though_a_copy_is_in_the_cache(server, monkeypatch):
    find_files([REPO])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StageError, match=r"HF_HUB_OFFLINE forbids that\. Unset it, or set data\.streaming=false"):
        streamed()


@pytest.mark.parametrize(
    ("status", "message"), [(404, "no data set org/rows"), (403, "is gated"), (503, "answers with HTTP 503")]
)
def test_a_refusal_to_stream_says_what_to_do(server, status, message):
    server.status = status
    with pytest.raises(StageError, match=message):
        streamed()


@pytest.mark.parametrize(("status", "message"), [(403, "HTTP 403. Set HF_TOKEN"), (500, "HTTP 500")])
def test_a_refusal_of_a_file_is_told(server, status, message):
    (file,) = find_files([REPO], streaming=True)
    server.status = status
    with pytest.raises(StageError, match=message):
        list(read_file(file))


def test_a_data_set_of_code_cannot_be_streamed(server):
    server.files = {"README.md": b"# A data set", "rows.py": b"raise SystemExit"}
    with pytest.raises(UserError, match="finds no files of rows in org/rows"):
        streamed()


def test_a_local_path_is_read_as_ever_when_streaming(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(PAIRS)
    (file,) = find_files([str(tmp_path / "a.jsonl")], streaming=True)
    assert not file.streamed
    assert len(list(read_file(file))) == 2


@pytest.mark.parametrize("splits", [("train", "test"), ("only",)])
def test_a_folder_saved_by_datasets_is_read(tmp_path, splits):
    import datasets

    made = {name: datasets.Dataset.from_list([{"question": name, "answer": "007"}]) for name in splits}
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "several"))
    made[splits[0]].save_to_disk(str(tmp_path / "one"))
    for folder in ("several", "one"):
        rows = rows_of(str(tmp_path / folder))
        assert [(row.line, row.value) for row in rows] == [(1, {"question": splits[0], "answer": "007"})]


def test_a_saved_folder_without_train_needs_a_split(tmp_path):
    import datasets

    made = {name: datasets.Dataset.from_list([{"text": name}]) for name in ("a", "b")}
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="has the splits a, b, and none is train"):
        find_files([str(tmp_path / "saved")])
    assert rows_of(str(tmp_path / "saved" / "b"))[0].value == {"text": "b"}


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_cut_off_file_is_told(tmp_path, suffix, cut):
    import datasets

    datasets.Dataset.from_list([{"text": "x" * 99}] * 3).save_to_disk(str(tmp_path / "saved"))
    arrow = (tmp_path / "saved" / "data-00000-of-00001.arrow").read_bytes()
    whole = arrow if suffix == "arrow" else parquet([{"text": "x" * 99}] * 3)
    # Arrow's own end mark of 8 bytes may be missing: all rows are there.
    part = whole[:cut] if cut >= 0 or suffix == "parquet" else whole[: len(whole) // 2]
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(part)
    with pytest.raises(UserError) as caught:
        list(read_rows(file))
    assert caught.value.problems[0].where == str(file)


def worker(tmp_path, model, **variables):
    """Runs the data stage in a process of its own: the hub's variables are read at import."""
    from tunerun.config.schema import DataConfig, ObjectiveConfig
    from tunerun.plan import steps

    step = steps.DataStep(data=DataConfig(path=(REPO,)), objective=ObjectiveConfig(), chat_template=None, seed=0)
    (tmp_path / "plan.json").write_text(json.dumps({"schema": 1, "steps": [steps.to_json(step)]}))
    write_base(tmp_path, BaseModel(folder=model, path="small", revision=None, sha256=""))
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT / "src"), **variables}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tunerun.worker", str(tmp_path), "data"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done, time.monotonic() - started


def test_the_report_holds_the_commit(server, tmp_path, chat_folder):
    done, _ = worker(tmp_path, chat_folder, HF_ENDPOINT=server.url, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    (source,) = json.loads((tmp_path / "data" / "report.json").read_text())["sources"]
    assert source == {
        "file": REPO,
        "format": "columns",
        "why": "columns question, answer",
        "rows": 2,
        "weight": 1.0,
        "revision": COMMIT,
    }
    again, _ = worker(tmp_path, chat_folder, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr


def test_without_a_network_one_error_comes_at_once(tmp_path, chat_folder):
    seconds = []
    for offline, message in (("1", "HF_HUB_OFFLINE"), ("0", "127.0.0.1:9 cannot be reached")):
        done, took = worker(tmp_path, chat_folder, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE=offline)
        seconds.append(took)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    # Beside a process that asks nobody: the machine may be busy.
    assert seconds[1] < 2 * seconds[0] + 3
