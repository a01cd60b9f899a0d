"""What a merged kernel gets wrong at the borders of an image, and what makes it right.

`mismatches` says where a plain merge is wrong and why; `trace` which sample every combination of
taps reads; `taps` what is to be added, as sums of combinations, and `values` these sums;
`corrections` what is stored and for which input sizes; `strips` runs it.
"""
