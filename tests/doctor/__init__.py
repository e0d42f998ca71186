"""The doctor, and the waits of init containers."""
