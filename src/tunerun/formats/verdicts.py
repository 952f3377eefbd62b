"""What verify/report.json says of a run's model."""

from __future__ import annotations

import json
from pathlib import Path

from tunerun import artifacts
from tunerun.errors import Problem, UserError

VERIFY_REPORT = f"{artifacts.VERIFY}/report.json"


def failed_gates(run: Path) -> list[str]:
    """Returns the names of the gates that failed; none when nothing was verified.

    Args:
        run: The run directory.

    Raises:
        UserError: The report is damaged.
    """
    report = run / VERIFY_REPORT
    if not report.is_file():
        return []
    try:
        data = artifacts.read_json(report)
    except json.JSONDecodeError as error:
        raise UserError(Problem(where=str(report), what=f"is not valid JSON: {error}.")) from error
    return [] if data["passed"] else [gate["name"] for gate in data["gates"] if gate["verdict"] == "fail"]


def unverified(run: Path) -> str:
    """Says why a run's model should not be trusted; empty when nothing speaks against it."""
    failed = failed_gates(run)
    if not failed:
        return ""
    return f"the run failed {len(failed)} of its verify gates: {', '.join(failed)} ({run / VERIFY_REPORT})"
