"""Serving: an OpenAI-compatible gateway and a terminal chat, both in front of one engine process."""
