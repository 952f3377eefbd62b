from __future__ import annotations

import pytest

from tunerun import paths


@pytest.mark.parametrize(
    "path",
    ["./rows", "/data", "~/rows", "rows", "a/b/c", "tunerun://sprout", "model/small.gguf"]
    + [f"data/rows{suffix}" for suffix in (*paths.DATA_SUFFIXES, ".jsonl.gz", ".txt.zst")],
)
def test_what_no_hub_can_have_is_local(path):
    assert paths.looks_local(path)


@pytest.mark.parametrize("path", ["org/name", "org/name:config:train", "org/name@main", "Qwen/Qwen2.5-0.5B-Instruct"])
def test_what_a_hub_may_have_is_not(path):
    assert not paths.looks_local(path)
