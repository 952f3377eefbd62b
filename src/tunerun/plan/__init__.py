"""The plan: what a run will do, as a frozen value."""
