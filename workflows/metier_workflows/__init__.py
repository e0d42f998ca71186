"""Workflows: the graph vocabulary, runs, the orchestrator and routing. Never imports a tool or an agent."""
