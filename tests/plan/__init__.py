"""Which parts of a chain or sum are best merged, held against every way that there is."""
