from __future__ import annotations

import pytest

from tunerun.config.data_sources import at_commit, data_paths, with_paths
from tunerun.config.schema import DataConfig, SourceConfig

COMMITS = {"org/name": "c1", "org/name@main:small:train": "c2", "org/name:small": "c3"}


@pytest.mark.parametrize(
    ("path", "pinned"),
    [
        ("org/name", "org/name@c1"),
        ("org/name@main:small:train", "org/name@c2:small:train"),
        ("org/name:small", "org/name@c3:small"),
        ("org/other", "org/other"),
        ("/data/a:b.jsonl", "/data/a:b.jsonl"),
    ],
)
def test_only_what_was_read_from_a_hub_is_pinned(path, pinned):
    assert at_commit(path, COMMITS) == pinned


def test_paths_are_changed_wherever_data_are_named():
    data = DataConfig(path=("a",), eval_path=("b",), sources={"x": SourceConfig(path=("c", "d"))})
    changed = with_paths(data, str.upper)
    assert changed.path == ("A",)
    assert [path for _, path in data_paths(changed)] == ["C", "D", "B"]
