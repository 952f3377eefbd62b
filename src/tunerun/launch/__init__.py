"""From steps to processes."""
