"""Eval sets: a user's own samples, how answers to them are scored, and what came of it. The commands `metier eval …` call it."""
