"""Factories and models that misbehave, by name: `corpus.py:where__what` is a model that does `what`
where `where` says, `corpus.py:name` one of those that do something of their own.

Each holds the weights of `Net`, two convolutions that can be merged.
"""

import os
import random
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1)

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return y

    def forward(self, x: Tensor) -> Any:
        return self.b(self.between(self.a(x), x))


class OwnError(BaseException):
    pass


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def _raises(error: BaseException | type[BaseException]) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


def _recurs() -> None:
    _recurs()


WHAT: dict[str, Callable[[], Any]] = {
    "exit_0": lambda: sys.exit(0),
    "exit_1": lambda: sys.exit(1),
    "exit_words": lambda: sys.exit("enough"),
    "exit_none": lambda: sys.exit(),
    "os_exit_0": lambda: os._exit(0),
    "value_error": _raises(ValueError("no good")),
    "own_base_error": _raises(OwnError("own")),
    "generator_exit": _raises(GeneratorExit),
    "stop_iteration": _raises(StopIteration),
    "silent_error": _raises(SilentError),
    "long_error": _raises(ValueError("x" * 1_000_000)),
    "odd_error": _raises(ValueError("\x1b[31m\x07\u202e\ud800\nsecond line")),
    "recursion": _recurs,
    "attribute_error": _raises(AttributeError("nothing")),
}
METHODS = (
    *("__init__", "forward", "__call__", "eval", "train", "state_dict", "load_state_dict"),
    *("__deepcopy__", "_apply", "named_modules", "parameters", "modules", "requires_grad_"),
)


def _in_method(method: str, does: Callable[[], Any]) -> type[Net]:
    def instead(self: Any, *args: Any, **kwargs: Any) -> Any:
        does()

    return type(f"In_{method}", (Net,), {method: instead})


def _later(does: Callable[[], Any], calls: int) -> type[Net]:
    """In the forward, from its so-manieth call on, whichever copy of the model is called."""
    made = [0]

    def between(self: Any, y: Tensor, x: Tensor) -> Tensor:
        made[0] += 1
        if made[0] >= calls:
            does()
        return y

    return type("Later", (Net,), {"between": between})


def __getattr__(name: str) -> Any:
    where, _, what = name.partition("__what__")
    if what not in WHAT:
        raise AttributeError(name)
    if where == "factory":

        def factory() -> None:
            WHAT[what]()

        return factory
    if where.startswith("later"):
        return _later(WHAT[what], int(where.removeprefix("later")))
    return _in_method(where, WHAT[what])


def names() -> list[str]:
    """Of every generated one."""
    places = ("factory", "later2", "later5", *METHODS)
    return [f"{where}__what__{what}" for where in places for what in WHAT]


# What is done beside building or running a model, and does no harm to what it computes


def _beside(does: Callable[[], Any]) -> Callable[[], Net]:
    def factory() -> Net:
        does()
        return Net()

    return factory


def _beside_forward(does: Callable[[], Any]) -> type[Net]:
    def between(self: Any, y: Tensor, x: Tensor) -> Tensor:
        does()
        return y

    return type("Beside", (Net,), {"between": between})


def _thread() -> None:
    threading.Thread(target=time.sleep, args=(600,)).start()


def _at_exit() -> None:
    import atexit

    atexit.register(lambda: os._exit(0))


def _no_open() -> None:
    warnings.simplefilter("error")
    warnings.warn("told", stacklevel=1)


BESIDE: dict[str, Callable[[], Any]] = {
    "prints": lambda: print("printed"),
    "writes": lambda: os.write(1, b"written\n"),
    "runs_echo": lambda: os.system("echo echoed"),
    "changes_folder": lambda: os.chdir("/"),
    "double_by_default": lambda: torch.set_default_dtype(torch.float64),
    "half_by_default": lambda: torch.set_default_dtype(torch.float16),
    "meta_by_default": lambda: torch.set_default_device("meta"),
    "no_gradients": lambda: torch.set_grad_enabled(False),
    "threads": lambda: torch.set_num_threads(2),
    "seeds": lambda: torch.manual_seed(random.randrange(1000)),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "recursion_limit": lambda: sys.setrecursionlimit(400),
    "environment": lambda: os.environ.clear(),
    "arguments": lambda: sys.argv.clear(),
    "path": lambda: sys.path.clear(),
    "warns": lambda: warnings.warn("odd", stacklevel=1),
    "closes_stdout": lambda: sys.stdout.close(),
    "stdout_none": lambda: setattr(sys, "stdout", None),
    "forks": lambda: os.fork(),
    "module_away": lambda: sys.modules.pop(__name__, None),
    "umask": lambda: os.umask(0o777),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "flushes": lambda: torch.set_flush_denormal(True),
    "no_profile": lambda: sys.settrace(None),
    "thread_that_stays": _thread,
    "exit_at_exit": _at_exit,
}
for _name, _does in BESIDE.items():
    globals()[f"factory_{_name}"] = _beside(_does)
    globals()[f"forward_{_name}"] = _beside_forward(_does)


# What the output depends on: a merge of both convolutions is wrong where an activation is between


def _if(asks: Callable[[Tensor], Any]) -> type[Net]:
    def between(self: Any, y: Tensor, x: Tensor) -> Tensor:
        return torch.relu(y) if asks(x) else y

    return type("Depends", (Net,), {"between": between})


_CALLS = [0]


def _count() -> int:
    _CALLS[0] += 1
    return _CALLS[0]


class _Grown(Net):
    calls = 0

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.relu(y) if self.calls > 1 else y


class _Buffered(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        self.seen += 1
        return y * self.seen


DEPENDS: dict[str, Callable[[], nn.Module]] = {
    "wide": _if(lambda x: x.shape[-1] > 40),
    "far_wide": _if(lambda x: x.shape[-1] > 4000),
    "small": _if(lambda x: x.shape[-2] < 8),
    "area": _if(lambda x: x.shape[-2] * x.shape[-1] > 9000),
    "odd": _if(lambda x: x.shape[-1] % 2),
    "portrait": _if(lambda x: x.shape[-2] > x.shape[-1]),
    "elements": _if(lambda x: x.numel() > 30_000),
    "batch": _if(lambda x: x.shape[0] > 2),
    "batch_length": _if(lambda x: len(x) > 4),
    "batch_not_one": _if(lambda x: x.size(0) != 1),
    "half": _if(lambda x: x.dtype == torch.float16),
    "not_single": _if(lambda x: x.dtype != torch.float32),
    "not_double": _if(lambda x: x.dtype != torch.float64),
    "bytes": _if(lambda x: x.element_size() < 4),
    "values": _if(lambda x: x.mean() > 0),
    "values_item": _if(lambda x: x.mean().item() > 0),
    "values_listed": _if(lambda x: x.tolist()[0][0][0][0] > 0),
    "random": _if(lambda x: random.random() > 0.5),
    "random_torch": _if(lambda x: torch.rand(()).item() > 0.5),
    "noise": _if(lambda x: torch.rand(()) > 0.5),
    "time": _if(lambda x: time.perf_counter_ns() // 1000 % 2),
    "calls_even": _if(lambda x: _count() % 2),
    "calls_third": _if(lambda x: _count() % 3 == 0),
    "calls_fifth": _if(lambda x: _count() % 5 == 0),
    "calls_odd_halves": _if(lambda x: _count() // 2 % 2),
    "calls_uneven": _if(lambda x: _count() ** 2 * 7 % 31 > 15),
    "calls_self": _Grown,
    "calls_buffer": _Buffered,
    "gradients": _if(lambda x: torch.is_grad_enabled()),
    "compiling": _if(lambda x: torch.compiler.is_compiling()),
    "exporting": _if(lambda x: torch.compiler.is_exporting()),
    "not_exporting": _if(lambda x: not torch.compiler.is_exporting()),
    "not_compiling": _if(lambda x: not torch.compiler.is_compiling()),
    "fake": _if(lambda x: type(x) is not Tensor),
    "real": _if(lambda x: type(x) is Tensor),
    "default_dtype": _if(lambda x: torch.get_default_dtype() == torch.float64),
    "caller": _if(lambda x: "convsqueeze" in sys._getframe(5).f_code.co_filename),
}
for _name, _kind in DEPENDS.items():
    globals()[f"depends_{_name}"] = _kind


def no_model() -> None:
    pass


def a_class() -> Any:
    return Net


def a_thousand() -> Any:
    return [Net()] * 1000


def a_namespace() -> Any:
    return types.SimpleNamespace(forward=lambda x: x)


class NothingOut(Net):
    def forward(self, x: Tensor) -> Any:
        self.b(self.a(x))


class EndlessOut(Net):
    def forward(self, x: Tensor) -> Any:
        found: list[Any] = [self.b(self.a(x))]
        found.append(found)
        return found


class OddOut(Net):
    def forward(self, x: Tensor) -> Any:
        return object()


class NotFinite(Net):
    def forward(self, x: Tensor) -> Any:
        return self.b(self.a(x)) * float("nan")


class ChangesInput(Net):
    def forward(self, x: Tensor) -> Any:
        x.zero_()
        return self.b(self.a(x))


class ChangesWeights(Net):
    def forward(self, x: Tensor) -> Any:
        self.a.weight.data.mul_(2)
        return self.b(self.a(x))


class ReplacesLayer(Net):
    def forward(self, x: Tensor) -> Any:
        self.b = nn.Conv2d(12, 4, 1)
        return self.b(self.a(x))


class AsksSettings(Net):
    def forward(self, x: Tensor) -> Any:
        assert self.a.out_channels == 12
        assert self.b.kernel_size == (1, 1)
        return self.b(self.a(x))


class AsksKind(Net):
    def forward(self, x: Tensor) -> Any:
        return self.b(self.a(x) if isinstance(self.a, nn.Conv2d) else torch.relu(self.a(x)))


class InDouble(Net):
    def __init__(self) -> None:
        super().__init__()
        self.double()


def forks_and_waits() -> Net:
    if os.fork() == 0:
        time.sleep(1)
    return Net()


class ExitsAtExit(Net):
    def forward(self, x: Tensor) -> Any:
        _at_exit()
        raise RuntimeError("no good")


class StaysBehind(Net):
    def forward(self, x: Tensor) -> Any:
        _thread()
        raise RuntimeError("no good")
