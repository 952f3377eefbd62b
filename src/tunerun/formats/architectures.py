"""Which models are written as GGUF, by the class that config.json names. Read by plans and by the export."""

GGUF_ARCHITECTURES = ("Qwen2ForCausalLM",)
