"""Evaluation: loss and answers of the base model and of the tuned one."""
