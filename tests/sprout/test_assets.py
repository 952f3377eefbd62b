import json
from pathlib import Path

import tunerun

ASSETS = Path(tunerun.__file__).parent / "assets"


def test_identity_rows_are_alpaca_rows_with_placeholders_in_both_languages():
    rows = [json.loads(line) for line in (ASSETS / "identity.jsonl").open(encoding="utf-8")]
    assert len(rows) >= 120
    assert all(set(row) == {"instruction", "input", "output"} for row in rows)
    assert len({row["instruction"] for row in rows}) == len(rows)
    assert all("{{name}}" in row["output"] or "{{author}}" in row["output"] for row in rows)
    chinese = [row for row in rows if not row["output"].isascii()]
    assert 50 <= len(chinese) <= len(rows) - 50
