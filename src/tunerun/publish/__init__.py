"""The publish stage: uploads a model to a hub, and gives it to Ollama."""
