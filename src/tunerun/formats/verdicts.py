"""What verify/report.json says of a run's model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunerun import artifacts

VERIFY_REPORT = f"{artifacts.VERIFY}/{artifacts.STAGE_REPORT}"
_VERIFIED = (artifacts.ADAPTER, artifacts.MERGED, artifacts.EXPORT)
"""What the verify stage compares, by its name in the run directory."""


def failed_gates(run: Path) -> list[str]:
    """Returns the names of the gates that failed; none when nothing was verified.

    Args:
        run: The run directory.

    Raises:
        UserError: The report is damaged.
    """
    report = _read(run)
    return [] if report is None or report["passed"] else _gates(report, "fail")


def unverified(run: Path) -> str:
    """Says why a run's model should not be trusted; empty when nothing speaks against it."""
    failed = failed_gates(run)
    if not failed:
        return ""
    return f"the run failed {len(failed)} of its verify gates: {', '.join(failed)} ({run / VERIFY_REPORT})"


def unchecked(run: Path) -> str:
    """Says that a run's model was never verified; empty when it was, with whatever result."""
    return "" if (run / VERIFY_REPORT).is_file() else f"{run} was never verified"


def verified_run(path: Path) -> Path | None:
    """Returns the run whose verify stage speaks of a model's file or folder; None for those that no run made."""
    place = artifacts.locate(path)
    return place[0] if place is not None and place[1] in _VERIFIED else None


def unproved(run: Path) -> str:
    """Says what no gate has shown of a run's model, although none failed; empty when all of them passed.

    Raises:
        UserError: The report is damaged.
    """
    report = _read(run)
    if report is None:
        return "the run was not verified"
    open_gates = _gates(report, "not_proved")
    count = "1 gate" if len(open_gates) == 1 else f"{len(open_gates)} gates"
    return f"{count} not proved: {', '.join(open_gates)}" if open_gates else ""


def _gates(report: Mapping[str, Any], verdict: str) -> list[str]:
    return [gate["name"] for gate in report["gates"] if gate["verdict"] == verdict]


def _read(run: Path) -> Mapping[str, Any] | None:
    path = run / VERIFY_REPORT
    return artifacts.read_versioned(path, artifacts.REPORT_SCHEMA)[1] if path.is_file() else None
