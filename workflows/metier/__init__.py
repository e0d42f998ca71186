"""What authors import."""
