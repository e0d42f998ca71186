"""The tool lane's tests."""
