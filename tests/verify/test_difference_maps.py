"""Where a squeezed layer differs, place by place: what a map holds and what it makes of it."""

import torch
from torch import Tensor

from convsqueeze.algebra.border.mismatches import mismatches, wrong_rows
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.manifest import manifest_from_data
from convsqueeze.module import SqueezedConv, module_of
from convsqueeze.plan import Merge, make_plan
from convsqueeze.squeezing import recipe_layer, squeeze_one
from convsqueeze.verify.comparison import comparison
from convsqueeze.verify.maps import DifferenceMap, difference_map
from convsqueeze.verify.probes import random_image, telling_size


def of(difference: list[list[float]], *rows: frozenset[int], largest: float = 4.0) -> DifferenceMap:
    values = torch.tensor(difference, dtype=torch.float64)
    return DifferenceMap(
        name="layer",
        sources=("0", "1"),
        kernel="3x3",
        size=(9, 10),
        meant=None,
        difference=values,
        differs=values > 0.5,
        largest=largest,
        predicted=rows or (frozenset(), frozenset()),
        mismatches=(),
    )


def test_shares_are_of_the_largest_output() -> None:
    assert of([[0.0, 1.0], [2.0, 8.0]]).share.tolist() == [[0.0, 0.25], [0.5, 2.0]]
    assert of([[0.0, 1.0]], largest=0.0).share.tolist() == [[0.0, torch.inf]]


def test_excused_are_the_predicted_rows_and_columns() -> None:
    found = of([[0.0] * 3] * 3, frozenset({0}), frozenset({2})).excused
    assert found.tolist() == [[True] * 3, [False, False, True], [False, False, True]]
    assert not of([[1.0, 1.0]]).excused.any()


def test_strays_are_differences_that_nothing_excuses() -> None:
    """The largest among them is told, and the first place."""
    within = of([[9.0, 9.0, 9.0], [0.25, 0.0, 9.0]], frozenset({0}), frozenset({2}))
    assert within.stray is None
    beyond = of(
        [[9.0, 9.0, 9.0], [0.0, 1.5, 9.0], [2.5, 0.25, 9.0]], frozenset({0}), frozenset({2})
    )
    assert beyond.stray == (
        "differs by up to 2.500e+00 in 2 places that the border does not excuse, "
        "random input of 9x10, first at [1, 1]"
    )


def twice(
    border: str, size: list[int] | None = None
) -> tuple[Merge, SqueezedConv, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(8)
    shapes = {
        "a.weight": (3, 2, 3, 3), "a.bias": (3,), "b.weight": (2, 3, 3, 3), "b.bias": (2,)
    }  # fmt: skip
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    layers = [{"name": "a", "padding": 1}, {"name": "b", "padding": 1}]
    pair = {"into": "merged", "chain": layers} | ({} if size is None else {"input": size})
    manifest = manifest_from_data({"version": 1, "border": border, "pairs": [pair]})
    checkpoint = from_state_dict(tensors)
    (merge,) = make_plan(manifest, checkpoint, growth="allow").merges
    module = module_of(recipe_layer(merge), squeeze_one(merge, checkpoint.load).tensors())
    return merge, module, tensors


def test_a_map_holds_the_largest_difference_of_all_trials_and_channels() -> None:
    merge, module, tensors = twice("interior")
    found = difference_map(merge, module, tensors.__getitem__, trials=3, seed=5)
    assert found is not None
    size = telling_size(merge.geometry_tree, None)
    assert (found.size, found.meant) == (size, None)
    both = comparison(merge, module, tensors.__getitem__, "affine")
    generator = torch.Generator().manual_seed(5)
    errors, wrong, largest = [], [], []
    for _ in range(3):
        x = random_image(merge.geometry, size, generator, 1)
        expected = both.original(x)
        difference = (both.squeezed(x) - expected).abs()
        errors.append(difference[0])
        wrong.append((difference > both.bound(x))[0])
        largest.append(expected.abs().max())
    assert torch.equal(found.difference, torch.cat(errors).amax(0))
    assert torch.equal(found.differs, torch.cat(wrong).any(0))
    assert found.largest == float(max(largest))
    assert found.predicted == tuple(
        wrong_rows(merge.geometry_tree, axis, n) for axis, n in enumerate(size)
    )
    assert found.mismatches == mismatches(merge.geometry_tree, size) != ()
    assert found.stray is None
    assert torch.equal(found.differs & found.excused, found.differs)
    assert found.differs.any()


def test_one_channel_of_one_trial_is_enough_to_differ() -> None:
    merge, module, tensors = twice("interior")
    with torch.no_grad():
        module.bias[1] += 3.0
    found = difference_map(merge, module, tensors.__getitem__, trials=2, seed=0)
    assert found is not None
    assert found.differs.all()
    assert found.stray is not None
    assert found.difference[~found.excused].min() > 2.9


def test_what_is_no_number_differs_infinitely() -> None:
    merge, module, tensors = twice("interior")
    for value in (torch.nan, torch.inf):
        with torch.no_grad():
            module.bias[0] = value
        found = difference_map(merge, module, tensors.__getitem__, trials=1, seed=0)
        assert found is not None
        assert found.difference.isinf().all()
        assert found.differs.all()


def test_any_other_policy_excuses_nothing() -> None:
    merge, module, tensors = twice("corrected", [5, 6])
    found = difference_map(merge, module, tensors.__getitem__, trials=1, seed=0)
    assert found is not None
    assert found.predicted == (frozenset(), frozenset())
    assert (found.mismatches, found.stray, found.meant) == ((), None, (5, 6))
    assert not found.differs.any()
    assert found.size == telling_size(merge.geometry_tree, (5, 6))


def test_a_layer_that_does_not_run_or_fit_has_no_map() -> None:
    merge, _, tensors = twice("interior")
    module = twice("corrected", [5, 6])[1]
    other = module.layer.model_copy(
        update={"corrections": None, "padding": ((0, 0), (0, 0)), "border": "interior"}
    )
    smaller = SqueezedConv(other, module.weight, module.bias)
    assert difference_map(merge, smaller, tensors.__getitem__, trials=1, seed=0) is None
