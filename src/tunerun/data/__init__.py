"""From files of rows to a token store, with a report that can fail the run. No torch."""
