"""What the base model went through when an adapter was trained on it, written beside the adapter.

peft's own files do not say it, and an adapter of QLoRA fits the quantised base better than the one it was made from.
"""

from __future__ import annotations

from pathlib import Path

from tunerun import artifacts
from tunerun.config import typed
from tunerun.errors import UserError
from tunerun.plan.steps import Quantisation

BASE_QUANTISATION = "base_quantisation.json"
_SCHEMA = 1


def write_quantisation(adapter: Path, quantisation: Quantisation) -> None:
    """Writes how the base's linear layers were held while the adapter was trained."""
    artifacts.write_json(adapter / BASE_QUANTISATION, {"schema": _SCHEMA, **typed.plain(quantisation)})


def read_quantisation(adapter: Path) -> Quantisation | None:
    """Returns how the base's linear layers were held while an adapter was trained; None where nothing says so.

    Raises:
        UserError: It is damaged, or was written by a newer tunerun.
    """
    file = adapter / BASE_QUANTISATION
    if not file.is_file():
        return None
    _, data = artifacts.read_versioned(file, _SCHEMA)
    found, problems = typed.build(Quantisation, data, str(file))
    if problems:
        raise UserError(problems)
    return found
