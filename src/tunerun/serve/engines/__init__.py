"""Engines: what turns prompt tokens into answer tokens, each in a process of its own."""
