"""Random manifests against torch: exact is exact, and what is refused is refused rightly.

Run from the repository: `python -m tests.random_networks --cases 2500 --seed 0`, and with
`--verified --cases 5000` for what verification says of them.
"""
