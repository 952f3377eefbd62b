"""Evaluation: loss, answers and tasks of the base model and of the tuned one."""
