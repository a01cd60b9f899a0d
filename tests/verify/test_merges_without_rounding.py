"""A merge that moves no number is verified like any other: its errors are all zero."""

import torch

from convsqueeze import merge_state_dict


def test_a_pad_before_a_depthwise_kernel_whose_outputs_all_touch_the_border() -> None:
    weight = torch.randn(144, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    layers = [{"type": "pad", "padding": 1}, {"name": "conv", "groups": 144}]
    merged, report = merge_state_dict(
        {"conv.weight": weight}, {"version": 1, "pairs": [{"chain": layers}]}
    )
    assert torch.equal(merged["conv.weight"], weight)
    assert report.verification is not None
    (seen,) = report.verification.layers
    assert (seen.ok, seen.worst.share, seen.worst.place != "") == (True, 0.0, True)
