"""tunerun: one composed recipe from data to a checked, servable model."""

__version__ = "0.1.0"
