"""The export stage: GGUF files, quantised folders, and what servers have to know of them."""
