"""What a model is run on: parsed, drawn, or guessed without values."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from convsqueeze.errors import ModelInputError
from convsqueeze.models import guess_inputs, inputs_of, load_model, parsed_inputs
from tests.command_line import SAMPLES


def test_shapes_and_dtypes_are_parsed() -> None:
    inputs = parsed_inputs(["1,3,224,224", "1, 77:int64", "2,:bool", "4:float16"])
    assert str(inputs) == "1,3,224,224 1,77:int64 2:bool 4:float16"
    tensors = inputs.drawn(0)
    assert [tuple(x.shape) for x in tensors] == [(1, 3, 224, 224), (1, 77), (2,), (4,)]
    assert [x.dtype for x in tensors] == [torch.float32, torch.int64, torch.bool, torch.float16]
    assert [x.dtype for x in inputs.drawn(0, torch.float64)][::3] == [torch.float64] * 2


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no shape"),
        ("1x3", "no shape"),
        ("1,-3", "no shape"),
        ("1,3:float", "float is no dtype"),
        ("1,3:", "nothing is no dtype"),
        ("1,0", "no values"),
    ],
)
def test_other_texts_are_refused(text: str, word: str) -> None:
    with pytest.raises(ModelInputError, match=word):
        parsed_inputs([text])


def test_the_seed_decides() -> None:
    inputs = parsed_inputs(["2,3", "2,9:int64"])
    one, again, other = inputs.drawn(1), inputs.drawn(1), inputs.drawn(2)
    assert all(a.equal(b) for a, b in zip(one, again, strict=True))
    assert not any(a.equal(b) for a, b in zip(one, other, strict=True))
    assert set(one[1].unique().tolist()) <= {0, 1}


def test_examples_keep_their_values() -> None:
    x = torch.arange(6).reshape(2, 3)
    inputs = inputs_of([x, 3])
    assert inputs.first()[0].equal(x)
    drawn = inputs.drawn(0)
    assert drawn[1] == 3
    assert not drawn[0].equal(x)
    assert drawn[0].flatten().sort().values.equal(x.flatten())


class Fixed(nn.Module):
    """Takes images of one size, like a vision transformer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.stem = nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        if x.shape[-1] != self.size:
            raise ValueError(f"images of {self.size} only")
        return self.stem(x) * scale


class Caching(nn.Module):
    """Keeps something of its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 3)
        self.table = torch.ones(1)
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.conv(x) * self.table
        return self.seen


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(5, 1, 3)), "1,5,64,64"),
        (lambda: nn.Sequential(nn.Conv1d(2, 1, 3)), "1,2,16000"),
        (lambda: nn.Sequential(nn.Conv3d(2, 1, 3)), "1,2,16,16,16"),
        (lambda: nn.Sequential(nn.ConvTranspose2d(6, 1, 3)), "1,6,64,64"),
        (lambda: nn.Sequential(nn.BatchNorm2d(7), nn.Conv2d(7, 1, 1)), "1,7,64,64"),
        (lambda: nn.Sequential(nn.Linear(9, 2)), "1,9"),
        (lambda: nn.Sequential(nn.Embedding(9, 2)), "1,16:int64"),
        (lambda: nn.Conv2d(1, 1, 1).double(), "1,1,64,64:float64"),
        (lambda: Fixed(224), "1,3,224,224"),
        (lambda: Fixed(28), "1,3,28,28"),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 30 * 30, 5)),
            "1,1,32,32",
        ),
        (lambda: load_model(f"{SAMPLES}/sesr/network.py:SESR"), "1,1,64,64"),
    ],
)
def test_a_guess_is_an_input_that_the_model_takes(
    build: Callable[[], nn.Module], shape: str
) -> None:
    model = build()
    guess = guess_inputs(model)
    assert str(guess.inputs) == shape
    assert guess.note.startswith(f"input {shape}: guessed from")
    with torch.no_grad():
        model(*guess.inputs.drawn(0))


def test_guessing_leaves_no_trace_and_takes_no_memory() -> None:
    model = Caching()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    guess_inputs(model)
    assert model.seen is None
    assert model.training
    assert all(type(p) is nn.Parameter for p in model.parameters())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    guess_inputs(nn.Conv2d(1 << 16, 1 << 16, 3, device="meta"))


class Two(nn.Conv2d):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * mask


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Two(1, 1, 1), ["needs 2 arguments (x, mask)", "Give --input"]),
        (nn.ReLU, ["no layer of it tells", "Give --input"]),
        (lambda: Fixed(100), ["takes none of the inputs", "images of 100 only", "1,3,224,224"]),
    ],
)
def test_no_guess_says_to_give_inputs(build: Callable[[], nn.Module], words: list[str]) -> None:
    with pytest.raises(ModelInputError) as refusal:
        guess_inputs(build())
    for word in words:
        assert word in str(refusal.value)
