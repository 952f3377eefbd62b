import pytest

from tunerun.plan.dataset import measure


def test_rows_are_counted_and_tokens_guessed(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "abc"}\n' * 5)
    size = measure((str(tmp_path),))
    assert size is not None
    assert (size.rows, size.tokens) == (5, 20)


@pytest.mark.parametrize("name", ["a.parquet", "data-00000-of-00001.arrow", "a.jsonl.gz"])
def test_compressed_files_tell_nothing(tmp_path, name):
    (tmp_path / name).write_bytes(b"\n" * 100)
    assert measure((str(tmp_path),)) is None


def test_a_hub_id_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert measure(("org/name",)) is None
