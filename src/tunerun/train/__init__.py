"""Training: what is learned (objectives), how weights move (loop, optim), and how it survives (checkpoint, health)."""
