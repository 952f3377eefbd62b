"""Several runs of one recipe with different keys."""
