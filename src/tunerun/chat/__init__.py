"""Chat templates as servers render them, and which of their tokens are trained. No torch, no transformers."""
