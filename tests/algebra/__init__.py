"""Laws of the algebra, with torch in float64 as the oracle.

Weights and images hold small whole numbers wherever equality is asked for, so that float64 has
nothing to round and every comparison is exact.
"""
