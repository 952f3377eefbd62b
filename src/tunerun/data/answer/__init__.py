"""A teacher behind an OpenAI-compatible endpoint answers prompts: rows to train on."""
