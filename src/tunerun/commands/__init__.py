"""One module for each verb: `main(argv) -> int`."""
