"""What a merged kernel gets wrong at the borders of an image, and what makes it right.

`trace` says which sample every combination of taps reads; `leaks` where a plain merge is wrong and
why, in words for people; `taps` what is to be added, as sums of combinations, `values` these sums;
`corrections` what is stored and for which input sizes; `strips` runs it.
"""
