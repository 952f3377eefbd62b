"""Executes plans and keeps the record of what was run."""
