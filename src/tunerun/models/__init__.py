"""Model folders and what is done with them: find, load, adapt, generate."""
