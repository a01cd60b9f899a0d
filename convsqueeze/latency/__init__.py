"""How long layers take on this machine, apart and as one: what `--minimize latency` decides by.

Each part is run with random weights on one random image. Knows no checkpoint and no manifest.
"""

from convsqueeze.latency.timing import measuring

__all__ = ["measuring"]
