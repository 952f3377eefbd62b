"""File formats: safetensors, GGUF and the token store. No torch."""
