"""Scanning models: what is found, what is left alone and why, and what squeezing makes of it."""
