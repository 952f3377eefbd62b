"""File formats: safetensors, GGUF, adapters, the token store, and records that stages leave for others. No torch."""
