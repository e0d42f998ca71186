"""The ground every role stands on: words, bus, journal, errors, settings, telemetry, the service loop. It imports no other package."""
