"""What ships as an example: the workflow `specialists`, its three agents, and the recordings that they answer from."""
