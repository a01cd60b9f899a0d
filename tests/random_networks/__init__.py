"""Random manifests against torch: exact is exact, and what is refused is refused rightly.

Run from the repository: `python -m tests.random_networks --cases 2500 --seed 0`.
"""
