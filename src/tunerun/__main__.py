"""Lets `python -m tunerun` stand for `tunerun`."""

from tunerun.cli import main

main()
