"""Where a squeezed layer differs from the layers it replaced, and by how much: a picture's data.

Measures only; knows nothing of drawing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from convsqueeze.algebra.border.mismatches import Mismatch, mismatches, wrong_rows
from convsqueeze.errors import GeometryError
from convsqueeze.formatting import format_size
from convsqueeze.module import SqueezedConv
from convsqueeze.plan import Merge
from convsqueeze.plan.wording import kernel, part_name
from convsqueeze.verify.comparison import comparison
from convsqueeze.verify.effort import is_affordable
from convsqueeze.verify.outcome import rows_mask
from convsqueeze.verify.probes import Size, random_image, sizes_of, telling_size
from convsqueeze.verify.reference import Load


@dataclass(frozen=True, eq=False)
class DifferenceMap:
    """How far a squeezed layer is from the original layers at each place of its output.

    `difference` (*output_size) is the largest over channels and random inputs of `size`, infinite
    where an output is no number; `differs` says where it is more than rounding. `largest` is the
    original's largest output. `predicted` are the outputs on each axis that the plan says may
    differ, `mismatches` the same by sides, both for this size; `meant` is the manifest's input
    size.
    """

    name: str
    sources: tuple[str, ...]
    kernel: str
    size: Size
    meant: Size | None
    difference: Tensor
    differs: Tensor
    largest: float
    predicted: tuple[frozenset[int], ...]
    mismatches: tuple[Mismatch, ...]

    @property
    def share(self) -> Tensor:
        """`difference / largest`; infinite where it is not zero and the largest is."""
        return torch.where(self.difference > 0, self.difference / self.largest, 0.0)

    @property
    def excused(self) -> Tensor:
        """Where the plan says that the output may differ, bool (*output_size)."""
        return rows_mask(self.difference.shape, self.predicted)

    @property
    def stray(self) -> str | None:
        """What is more than rounding and not predicted, if anything is."""
        wrong = (self.differs & ~self.excused).nonzero()
        if not len(wrong):
            return None
        worst = float(self.difference[~self.excused].max())
        size = format_size(self.size) or "one vector"
        return (
            f"differs by up to {worst:.3e} in {len(wrong)} places that the border does not excuse, "
            f"random input of {size}, first at {wrong[0].tolist()}"
        )


def difference_map(
    merge: Merge, module: SqueezedConv, load: Load, *, trials: int, seed: int
) -> DifferenceMap | None:
    """Run both on `trials` random inputs of one telling size; None where the squeezed one fails to.

    `load` gives the original's stored tensors.
    """
    tree = merge.geometry_tree
    size = telling_size(tree, merge.input_size)
    if not is_affordable(merge, size):
        _, size = sizes_of(tree, merge.corrections, merge.input_size, merge.border)
    both = comparison(merge, module, load, "affine")
    generator = torch.Generator().manual_seed(seed)
    differences, differing, largest = [], [], 0.0
    for _ in range(trials):
        x = random_image(merge.geometry, size, generator, 1)
        try:
            expected, _, difference, bound = both(x)
        except GeometryError:
            return None
        differences.append(difference.amax((0, 1)).cpu())
        wrong = (difference > bound) | difference.isinf()
        differing.append(wrong.any(0).any(0).cpu())
        largest = max(largest, float(expected.abs().max()))
    excused = merge.border == "interior"
    axes = enumerate(size) if excused else ()
    rows = {axis: wrong_rows(tree, axis, n) for axis, n in axes}
    return DifferenceMap(
        name=merge.into,
        sources=tuple(part_name(leaf, f"{merge.into}.") for leaf in merge.layers),
        kernel=kernel(merge.geometry),
        size=size,
        meant=merge.input_size,
        difference=torch.stack(differences).amax(0),
        differs=torch.stack(differing).any(0),
        largest=largest,
        predicted=tuple(rows.get(axis, frozenset()) for axis in range(len(size))),
        mismatches=mismatches(tree, size) if excused else (),
    )
