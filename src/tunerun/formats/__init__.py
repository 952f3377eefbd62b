"""File formats that several stages read or write, without torch."""
