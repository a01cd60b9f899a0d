"""All targets by name."""

from . import indexes, manifests, onnx_models, pickles, recipes, safetensors_files
from .commands import use_checkpoint, use_manifest, use_onnx, use_recipe
from .search import Target

TARGETS = {
    target.name: target
    for target in (
        Target("safetensors", safetensors_files.make, use_checkpoint),
        Target("zip", pickles.make_zip, use_checkpoint),
        Target("legacy", pickles.make_legacy, use_checkpoint),
        Target("index", indexes.make, use_checkpoint),
        Target("manifest", manifests.make, use_manifest),
        Target("recipe", recipes.make, use_recipe),
        Target("onnx", onnx_models.make, use_onnx),
    )
}
