"""Choosing whom to ask: what is learned from outcomes, and how it decides. Pure; `metier_workflows.routing` and the commands of `metier` call it."""
