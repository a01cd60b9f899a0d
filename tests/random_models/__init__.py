"""Random models against themselves: squeezed, they give the same output, and what plainly can be
merged is.

Run from the repository: `python -m tests.random_models --cases 500 --seed 0`.
"""
