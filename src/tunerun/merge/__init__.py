"""The merge stage: a base model and an adapter become one model folder."""
