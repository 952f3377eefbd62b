from pathlib import Path

import pytest

from tunerun import artifacts
from tunerun.errors import UserError
from tunerun.run import record
from tunerun.run.record import Invocation, Record, StageRecord

GOLDEN = Path(__file__).parent / "golden/run-1.json"

EXPECTED = Record(
    name="quickstart",
    status="preempted",
    created="2026-11-21T04:00:00.000+00:00",
    finished="2026-11-21T04:01:00.000+00:00",
    tunerun="0.1.0",
    seed=42,
    threads=2,
    base_model={"path": "org/model", "revision": "0123456", "sha256": "aa"},
    data={"data.path /data/rows.jsonl": "bb"},
    provenance={"git": None, "packages": {"torch": "2.13.0"}},
    invocations=(
        Invocation(
            command=("tunerun", "+recipe=quickstart"),
            directory="/home/someone",
            started="2026-11-21T04:00:00.000+00:00",
            finished="2026-11-21T04:01:00.000+00:00",
            exit_code=75,
        ),
    ),
    stages={
        "data": StageRecord(
            status="done",
            started="2026-11-21T04:00:01.000+00:00",
            finished="2026-11-21T04:00:02.000+00:00",
            seconds=1.0,
            exit_code=0,
            fingerprint="cc",
            keys={"data.max_length": 512, "data.path": ["/data/rows.jsonl"], "data.eval_fraction": 0.1},
            inputs={"model": "aa"},
            files={"data.path /data/rows.jsonl": "bb"},
            artifacts=(artifacts.Artifact(kind="data", path="data", sha256="dd", bytes=123),),
        ),
        "train": StageRecord(
            status="preempted",
            started="2026-11-21T04:00:02.000+00:00",
            fingerprint="ee",
            keys={},
            inputs={"data data": "dd"},
            files={},
            error="stopped at step 7",
        ),
    },
)


def test_the_golden_file_of_schema_1_is_read():
    assert record.read_file(GOLDEN) == EXPECTED


def test_what_is_written_is_the_golden_file(tmp_path):
    record.write(tmp_path, EXPECTED)
    assert (tmp_path / "run.json").read_text() == GOLDEN.read_text()


def test_a_newer_schema_is_refused(tmp_path):
    artifacts.write_json(tmp_path / "run.json", {**artifacts.read_json(GOLDEN), "schema": 2})
    with pytest.raises(UserError, match="written by a newer tunerun"):
        record.read(tmp_path)


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"schema": 1, ')
    with pytest.raises(UserError, match=r"run\.json: is damaged"):
        record.read(tmp_path)


def test_a_folder_without_a_record_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"it has no run\.json"):
        record.read(tmp_path)
