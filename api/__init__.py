"""The HTTP service: validates, writes what is wanted in one transaction, reads. Trains nothing, waits for nobody."""
