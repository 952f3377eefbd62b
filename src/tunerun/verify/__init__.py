"""Verification: the exported model is the trained one, as far as it can be shown."""
