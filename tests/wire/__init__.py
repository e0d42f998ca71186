"""The wire formats of models' providers, as a bare server says them."""
