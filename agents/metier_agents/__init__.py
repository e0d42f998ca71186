"""Agents: a model, a way of using tools, and limits; the loop that runs them and the worker that serves calls. Never imports a workflow."""
