"""The export stage: GGUF files, an Ollama Modelfile and what a server has to know."""
