"""The front door: command line and, with the service, client and embedded default. Light: no torch."""
