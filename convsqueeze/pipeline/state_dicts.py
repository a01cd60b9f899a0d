"""From a state dict in memory to another."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convsqueeze.checkpoint import edited_state_dict, from_state_dict
from convsqueeze.device import Device, device_named
from convsqueeze.manifest import Border, Manifest, manifest_from_data
from convsqueeze.paths import anchored
from convsqueeze.pipeline.merging import MergeReport, planned, squeeze_checkpoint
from convsqueeze.plan import Growth
from convsqueeze.verify import Settings


def merge_state_dict(
    state_dict: Mapping[str, Any],
    manifest: Manifest | Mapping[str, Any] | str | Path,
    *,
    border: Border | None = None,
    growth: Growth = "refuse",
    widen: bool = False,
    verify: bool = True,
    device: Device = "cpu",
) -> tuple[OrderedDict[str, Any], MergeReport]:
    """A new state dict with the manifest's layers merged, and the report; the given one is kept.

    `manifest` is a Manifest, plain data, or the path of a YAML file. `border` and `growth` override
    what it says; `widen` as for `squeeze_checkpoint`. The `device` (cpu, cuda or cuda:N) merges and
    verifies; merged tensors are given on the CPU, wherever the state dict's are.

    Raises CheckpointError for what is no state dict, ManifestError and PlanError with every problem
    of the manifest, TensorDataError for values that no exact merge can be made of, DeviceError
    where the device does not compute, and VerificationError unless `verify` is False.
    """
    place = device_named(device)
    if isinstance(manifest, str):
        manifest = anchored(manifest)
    elif not isinstance(manifest, Manifest | Path):
        manifest = manifest_from_data(manifest)
    checkpoint = from_state_dict(state_dict)
    plan = planned(manifest, checkpoint, border, growth)
    result = squeeze_checkpoint(
        plan,
        checkpoint,
        border=border,
        growth=growth,
        widen=widen,
        settings=Settings() if verify else None,
        device=place,
    )
    merged = edited_state_dict(checkpoint, result.edits, result.recipe.to_json())
    notes, widened = (*plan.notes, *result.notes), result.widened
    return merged, MergeReport(plan, result.verification, notes, widened=widened, device=str(place))
