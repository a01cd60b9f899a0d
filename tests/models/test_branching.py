"""Code that does something else for other sizes, batches or dtypes is compared there too."""

import random
from collections import Counter
from collections.abc import Callable
from math import isqrt
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

import convsqueeze
from convsqueeze.copying import Sandbox
from convsqueeze.errors import ConvsqueezeError, VerificationError
from convsqueeze.models import SqueezeReport
from convsqueeze.models.branching import SMALL, other_inputs
from convsqueeze.tracing.branches import SeenAs
from tests.command_line import run_here
from tests.scan.code import Code, image, made

X = image(1, 3, 16, 16)
Asks = Callable[[Tensor], Any]


def branching(
    asks: Asks, between: Callable[[Tensor], Tensor], first: Callable[..., Any] | None = None
) -> nn.Module:
    """Two convolutions, and `between` them something where the code finds what it `asks` for."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if first is not None:
            x = first(x)
        found = asks(x)
        y = self.expand(x)
        if found:
            y = between(y)
        result: Tensor = self.project(y)
        return result

    return made(
        lambda: Code(forward, expand=nn.Conv2d(3, 12, 3, padding=1), project=nn.Conv2d(12, 4, 1))
    )


def squeezed(model: nn.Module, *inputs: Tensor) -> SqueezeReport:
    return convsqueeze.squeeze(model, inputs or X)[1]


ASKED: dict[str, Asks] = {
    "wider": lambda x: x.shape[-1] > 40,
    "far wider": lambda x: x.size(3) >= 1000,
    "narrower": lambda x: x.shape[-1] < 9,
    "taller than wide": lambda x: x.shape[2] > x.shape[3],
    "area": lambda x: x.shape[2] * x.shape[3] > 5000,
    "numbers": lambda x: x.numel() > 10_000,
    "multiple": lambda x: x.shape[-1] % 32 == 0,
    "one size": lambda x: x.shape[2] in (24, 48),
    "halved": lambda x: int(x.shape[2] * 0.5) == 9,
    "largest": lambda x: max(x.shape) > 500,
    "behind another": lambda x: x.shape[2] > 20 and x.shape[2] > 30,
    "a size far below": lambda x: x.shape[-1] == 300,
    "a size far above": lambda x: x.shape[2] == 5,
    "one shape": lambda x: tuple(x.shape) == (2, 3, 20, 20),
    "one batch": lambda x: x.shape[0] == 7,
    "a multiple of a prime": lambda x: x.shape[-1] % 37 == 0,
    "a number and no symbol": lambda x: isinstance(x.shape[-1], int) and x.shape[-1] > 30,
    "batch of several": lambda x: x.shape[0] > 2,
    "large batch": lambda x: len(x) >= 16,
    "no single image": lambda x: x.shape[0] != 1,
    "even batch": lambda x: x.shape[0] % 2 == 0,
    "parts of a batch": lambda x: len(x.split(8)) > 1,
    "root of a size": lambda x: isqrt(x.shape[-1]) == 7,
    "root of a batch": lambda x: isqrt(x.shape[0]) == 3,
    "size that is looked up": lambda x: {64: True}.get(x.shape[-1]),
    "float16": lambda x: x.dtype == torch.float16,
    "bfloat16": lambda x: x.dtype in (torch.bfloat16, torch.float16),
    "name of a type": lambda x: x.type() == "torch.HalfTensor",
    "bytes of a number": lambda x: x.element_size() == 2,
}


@pytest.mark.parametrize("name", ASKED)
def test_an_activation_on_the_other_side_is_a_difference(name: str) -> None:
    with pytest.raises(VerificationError, match=r"on an input of .*\(test_branching.py:\d+\)"):
        squeezed(branching(ASKED[name], torch.relu))


@pytest.mark.parametrize("name", ASKED)
def test_what_merging_does_not_change_there_is_no_difference(name: str) -> None:
    found = squeezed(branching(ASKED[name], lambda y: y + 0.0))
    assert found.whole is not None
    assert found.whole.others
    assert all("(test_branching.py:" in other for other in found.whole.others[:-1])
    assert f"one of {found.whole.others[0]}" in str(found)


def test_a_number_made_of_the_batch_is_told() -> None:
    """Thirteen is no usual batch, and nothing says that it is asked for."""
    whole = squeezed(branching(lambda x: len(x) == 13, torch.relu)).whole
    assert whole is not None
    assert any("makes a number of its batch (test_branching.py:" in note for note in whole.notes)


RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "GRU": lambda: nn.GRU(4, 6),
    "GRU of several": lambda: nn.GRU(4, 6, num_layers=3, bidirectional=True, batch_first=True),
    "LSTM": lambda: nn.LSTM(4, 6, bias=False),
    "LSTM projected": lambda: nn.LSTM(4, 6, bidirectional=True, proj_size=2, batch_first=True),
    "tanh": lambda: nn.RNN(4, 6, num_layers=2),
    "relu": lambda: nn.RNN(4, 6, nonlinearity="relu", bidirectional=True),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_followed_in_one_step(name: str) -> None:
    """Torch itself takes a step for each of a sequence: two minutes for the sizes tried here."""
    layer, x = RECURRENT[name](), torch.randn(3, 7, 4)
    real = [leaf.shape for leaf in tree_leaves(layer(x))]
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, SeenAs(None, torch.float32) as seen:
        made = layer(fake.from_tensor(x))
    assert not {"linear", "chunk"} & {name for name, _ in seen.made}
    assert [leaf.shape for leaf in tree_leaves(made)] == real


def test_a_recurrent_head_takes_no_longer_than_its_layers() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 6, 1)
            self.read = nn.GRU(6, 5, batch_first=True, bidirectional=True)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.read(self.b(self.a(x)).mean(2).transpose(1, 2))[0]
            return y

    steps = Counter[str]()
    real = torch._decomp.decompositions.gru_cell
    with mock.patch.object(
        torch._decomp.decompositions,
        "gru_cell",
        lambda *a, **k: (steps.update(["gru"]), real(*a, **k))[1],
    ):
        report = squeezed(Reader(), image(1, 3, 8, 24))
    assert report.merged is not None
    assert steps["gru"] < 1000


def test_code_that_asks_for_nothing_is_run_on_another_size_and_batch_too() -> None:
    whole = squeezed(branching(lambda x: False, torch.relu)).whole
    assert whole is not None
    assert whole.others == ("2,3,17,17",)
    assert whole.runs == 3


@pytest.mark.parametrize(
    "sized",
    [
        lambda x, y: y * x.size(0),
        lambda x, y: y / x.shape[0],
        lambda x, y: y + (len(x) - 1),
        lambda x, y: y * (x.shape[-1] / 16),
        lambda x, y: F.pad(y, (0, x.size(0) - 1)),
        lambda x, y: F.pad(y, (0, -x.shape[-1] % 8)),
        lambda x, y: y[..., : x.shape[-1] // 16 * 16],
        lambda x, y: torch.relu(y) if f"{x.shape[-1]}" != "16" else y,
        lambda x, y: {16: y}.get(int(x.shape[-1]), torch.relu(y)),
        lambda x, y: F.avg_pool2d(y, len(x)),
    ],
)
def test_what_is_made_of_a_size_is_another_number_there(
    sized: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """An example of one image, of sizes that strides divide, shows none of it. It is a difference,
    or the layers are left apart.
    """

    def forward(self: Any, x: Tensor) -> Tensor:
        result: Tensor = self.project(sized(x, self.expand(x)))
        return result

    model = made(lambda: Code(forward, expand=nn.Conv2d(3, 12, 3), project=nn.Conv2d(12, 4, 1)))
    try:
        found = squeezed(model)
    except VerificationError as error:
        text = str(error)
    else:
        text = str(found.merged)
    assert text == "None" or "on an input of" in text


@pytest.mark.parametrize(
    "cut",
    [
        lambda y: y[..., :100],
        lambda y: y[..., -100:],
        lambda y: y[:, :, 0:50, :50],
        lambda y: y.narrow(2, 0, y.shape[2])[..., :90],
    ],
)
def test_a_slice_that_cuts_nothing_off_the_example_may_cut_off_others(
    cut: Callable[[Tensor], Tensor],
) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        result: Tensor = self.project(cut(self.expand(x)))
        return result

    model = made(lambda: Code(forward, expand=nn.Conv2d(3, 12, 3), project=nn.Conv2d(12, 4, 1)))
    found = squeezed(model)
    assert found.merged is None
    assert any("whatever the size is" in one.reason.text for one in found.scan.left)


def test_sizes_that_the_code_refuses_are_not_compared() -> None:
    def asks(x: Tensor) -> bool:
        assert x.shape[-1] <= 40, "too wide"
        return x.shape[0] > 3

    def harmless(x: Tensor) -> bool:
        assert x.shape[-1] % 8 == 0
        return False

    with pytest.raises(VerificationError, match="on an input of 4,3,16,16"):
        squeezed(branching(asks, torch.relu))
    assert squeezed(branching(harmless, torch.relu)).merged is not None


def test_where_strides_take_no_size_nearby_one_further_is_taken() -> None:
    def in_steps(x: Tensor) -> Tensor:
        assert x.shape[-1] % 32 == 16
        return x

    with pytest.raises(VerificationError, match="on an input of 1,3,16,48"):
        squeezed(branching(lambda x: x.shape[-1] > 40, torch.relu, in_steps))


def test_sizes_that_must_be_alike_change_together() -> None:
    def square(x: Tensor) -> Tensor:
        assert x.shape[2] == x.shape[3]
        return x

    with pytest.raises(VerificationError, match="on an input of 1,3,41,41"):
        squeezed(branching(lambda x: x.shape[-1] > 40, torch.relu, square))


def test_two_inputs_of_one_size_change_together() -> None:
    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        inner = self.expand(x + y)
        result: Tensor = self.project(torch.relu(inner) if y.shape[-1] > 40 else inner)
        return result

    model = made(
        lambda: Code(forward, expand=nn.Conv2d(3, 12, 3), project=nn.Conv2d(12, 4, 1)),
    )
    with pytest.raises(VerificationError, match="on an input of 1,3,41,41 1,3,41,41"):
        squeezed(model, X, X)


def test_the_other_side_may_be_too_far_to_be_compared() -> None:
    found = squeezed(branching(lambda x: x.shape[-1] > 30_000, torch.relu))
    assert found.whole is not None
    assert any("test_branching.py:" in note for note in found.whole.notes)
    assert "were not compared" in str(found)


def test_code_that_cannot_be_followed_is_compared_on_several_sizes() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        if x.abs().sum().item() < 0:
            return x
        y = self.expand(x)
        result: Tensor = self.project(torch.relu(y) if x.shape[-1] > 40 else y)
        return result

    model = made(lambda: Code(forward, expand=nn.Conv2d(3, 12, 3), project=nn.Conv2d(12, 4, 1)))
    merged = convsqueeze.merge_state_dict(
        model.state_dict(),
        {"version": 1, "pairs": [{"first": {"name": "expand"}, "second": {"name": "project"}}]},
    )[0]
    other = made(lambda: Code(forward, expand=nn.Conv2d(3, 4, 3), project=nn.Identity()))
    other.expand.weight.data = merged["expand.weight"]
    other.expand.bias.data = merged["expand.bias"]
    report = convsqueeze.models.verify_whole(model, other, convsqueeze.models.inputs_of(X))
    assert not report.ok
    assert "on an input of 2,3,48,48" in report.failures[0]


def test_the_command_refuses_it_and_tells_what_it_ran(tmp_path: Path) -> None:
    code = tmp_path / "sizes.py"
    code.write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1)\n"
        "    def forward(self, x):\n"
        "        y = self.a(x)\n"
        "        if x.shape[-1] > 40:\n"
        "            y = self.does(y)\n"
        "        return self.b(y)\n"
        "class Wrong(Net):\n"
        "    does = torch.nn.ReLU()\n"
        "class Right(Net):\n"
        "    does = torch.nn.Identity()\n"
    )
    model = tmp_path / "net.pt"
    torch.manual_seed(0)
    net = nn.Module()
    net.a, net.b = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1)
    torch.save(net.state_dict(), model)
    given = ("merge", model, "--input", "1,3,16,16", "-o", tmp_path / "out.pt")
    outcome = run_here(*given, "--model", f"{code}:Wrong")
    assert outcome.status == 1
    assert "on an input of 1,3,16,41 (sizes.py:9)" in outcome.errors[0]
    assert not (tmp_path / "out.pt").exists()
    outcome = run_here(*given, "--model", f"{code}:Right", "--json")
    assert outcome.status == 0
    told = outcome.data
    assert told["whole_model"]["others"] == ["1,3,16,41 (sizes.py:9)", "2,3,17,17"]
    assert any("looks at the size of its input" in note for note in told["notes"])


def test_what_torch_knows_of_a_size_hides_nothing_behind_it() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.expand(x)  # torch asks whether it is small
        result: Tensor = self.project(torch.relu(y) if x.shape[-1] > 4000 else y)
        return result

    model = made(lambda: Code(forward, expand=nn.Conv2d(3, 12, 3), project=nn.Conv2d(12, 4, 1)))
    with pytest.raises(VerificationError, match="on an input of 1,3,16,4001"):
        squeezed(model)


def test_random_numbers_that_move_no_output_are_told() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        result: Tensor = self.project(self.expand(x))
        return result if random.random() >= 0 else torch.relu(result)

    model = made(lambda: Code(forward, expand=nn.Conv2d(3, 12, 3), project=nn.Conv2d(12, 4, 1)))
    state = random.getstate()
    assert "draws random numbers" in str(squeezed(model))
    assert random.getstate() == state


def test_an_input_that_the_model_does_not_run_on_is_told() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.project(self.expand(x))
        if x.shape[-1] > 40 and type(x) is Tensor:
            raise ValueError("only without values")
        result: Tensor = y + 0 if x.shape[-1] > 40 else y
        return result

    model = made(lambda: Code(forward, expand=nn.Conv2d(3, 12, 3), project=nn.Conv2d(12, 4, 1)))
    assert "does not run on 1,3,16,41 (test_branching.py:" in str(squeezed(model))


@pytest.mark.parametrize(
    "reads",
    [
        lambda self, x: x.to(self.project.weight.dtype),
        lambda self, x: x.to(self.project.weight.device),
        lambda self, x: x * self.project.weight.shape[0],
        lambda self, x: x if self.project.bias is not None else -x,
        lambda self, x: x * len(self.inner.deep.weight),
    ],
)
def test_a_module_whose_parameters_other_code_looks_at_stays(
    reads: Callable[[Any, Tensor], Tensor],
) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        result: Tensor = self.project(self.inner.deep(self.expand(reads(self, x))))
        return result

    model = made(
        lambda: Code(
            forward,
            expand=nn.Conv2d(3, 12, 3),
            inner=nn.ModuleDict({"deep": nn.Conv2d(12, 12, 1)}),
            project=nn.Conv2d(12, 4, 1),
        )
    )
    found = squeezed(model)
    told = [one for one in found.scan.left if "code outside" in one.reason.text]
    assert told
    assert all("(test_branching.py:" in one.reason.text for one in told)


def test_a_cast_to_a_dtype_of_the_first_layer_is_a_cast() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        result: Tensor = self.project(
            self.expand(F.relu(self.first(x.to(self.first.weight.dtype))))
        )
        return result

    model = made(
        lambda: Code(
            forward,
            first=nn.Conv2d(3, 3, 3),
            expand=nn.Conv2d(3, 12, 3),
            project=nn.Conv2d(12, 4, 1),
        )
    )
    merged = squeezed(model).merged
    assert merged is not None
    assert [one.into for one in merged.plan.merges] == ["expand"]


def test_code_that_cuts_its_input_into_tiles_is_not_followed_for_thousands() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        tiles = [self.project(self.expand(tile)) for tile in x.split(16, -1)]
        return torch.cat(tiles, -1)

    model = made(lambda: Code(forward, expand=nn.Conv2d(3, 12, 3), project=nn.Conv2d(12, 4, 1)))
    found = other_inputs(Sandbox(model), convsqueeze.models.inputs_of(X))
    assert [str(one).partition(" ")[0] for one in found.found] == ["1,3,32,32", "2,3,48,48"]


def test_what_torch_has_to_run_is_not_run_on_far_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this operator torch knows the result by running it alone: of far sizes that is 20 GB."""
    ran: list[int] = []
    run = fake_tensor.run_fallback_kernel

    def recording(mode: Any, func: Any, flat: list[Any], *more: Any) -> Any:
        ran.append(max(one.numel() for one in flat if isinstance(one, Tensor)))
        return run(mode, func, flat, *more)

    def forward(self: Any, x: Tensor) -> Tensor:
        y = torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127)
        return torch.as_tensor(self.project(self.expand(y)))

    monkeypatch.setattr(fake_tensor, "run_fallback_kernel", recording)
    model = made(lambda: Code(forward, expand=nn.Conv2d(3, 12, 3), project=nn.Conv2d(12, 4, 1)))
    found = squeezed(model)
    assert found.merged is not None
    assert 0 < max(ran) <= SMALL


def test_what_code_keeps_outside_the_model_is_told() -> None:
    """Of a run without values there is a tensor without values in the cache."""
    kept: dict[int, Tensor] = {}

    def forward(self: Any, x: Tensor) -> Tensor:
        table = kept.setdefault(x.shape[-1], torch.arange(x.shape[-1]) + 1.0)
        return torch.as_tensor(self.project(self.expand(x)) * table)

    layers = {"expand": nn.Conv2d(3, 12, 3, padding=1), "project": nn.Conv2d(12, 4, 1)}
    model = made(lambda: Code(forward, **layers))
    with pytest.raises(
        ConvsqueezeError, match=r"keeps what it computes outside the model|fake tensor"
    ):
        squeezed(model)
