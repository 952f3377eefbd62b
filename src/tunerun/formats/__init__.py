"""Files that stages hand to each other: token store, safetensors, GGUF."""
