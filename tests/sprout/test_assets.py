import json
from pathlib import Path

import tunerun
from tunerun.sprout.tokenizer import VOCABULARY_SIZE

ASSETS = Path(tunerun.__file__).parent / "assets"


def test_identity_rows_are_alpaca_rows_with_placeholders_in_both_languages():
    rows = [json.loads(line) for line in (ASSETS / "identity.jsonl").open(encoding="utf-8")]
    assert len(rows) >= 120
    assert all(set(row) == {"instruction", "input", "output"} for row in rows)
    assert len({row["instruction"] for row in rows}) == len(rows)
    assert all("{{name}}" in row["output"] or "{{author}}" in row["output"] for row in rows)
    chinese = [row for row in rows if not row["output"].isascii()]
    assert 50 <= len(chinese) <= len(rows) - 50


def test_the_shipped_model_is_within_its_size():
    files = [path for path in (ASSETS / "sprout").iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    assert json.loads((ASSETS / "sprout" / "config.json").read_text(encoding="utf-8"))["vocab_size"] == VOCABULARY_SIZE
