"""Serving: an OpenAI-compatible gateway, a terminal chat and comparisons, all in front of engine processes."""
