"""Promises under faults: real roles on real services, judged by the checks of `metier chaos`."""
