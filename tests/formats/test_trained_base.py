from __future__ import annotations

import pytest

from tunerun.errors import UserError
from tunerun.formats.trained_base import BASE_QUANTISATION, read_quantisation, write_quantisation
from tunerun.plan.steps import Quantisation


@pytest.mark.parametrize("quantisation", [Quantisation(bits=4, double=True), Quantisation(bits=8, double=False)])
def test_an_adapter_tells_how_its_base_was_quantised(tmp_path, quantisation):
    assert read_quantisation(tmp_path) is None
    write_quantisation(tmp_path, quantisation)
    assert read_quantisation(tmp_path) == quantisation


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"bits": 4, "double": true}',
        '{"schema": 1, "bits": 3, "double": true}',
        '{"schema": 1, "bits": 4}',
        '{"schema": 2, "bits": 4, "double": true}',
    ],
)
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / BASE_QUANTISATION).write_text(text)
    with pytest.raises(UserError, match=BASE_QUANTISATION):
        read_quantisation(tmp_path)
