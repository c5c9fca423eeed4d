"""Which implementation a call would take, and why."""

from collections.abc import Callable
from typing import Any

import torch

from .backend import Choice, choose, isa
from .checks import check_choice, check_tensor

_more: dict[str, Callable[..., Choice]] = {}


def explained_by(op: str, more: Callable[..., Choice]) -> None:
    """more(choice, *args, **kwargs), the public function's arguments, says what the op's own rule adds to a choice."""
    _more[op] = more


def explain(op: str, *args: object, impl: str = "auto", **kwargs: object) -> Choice:
    """Choice(backend, kernel, reason) of `tamis.<family>.<op>(*args, impl=impl, **kwargs)`, which is not run.

    The op's first argument decides, by its device, and for the linear losses all arguments, by their shapes, dtypes and
    options. No value is checked but the first argument's type.

    Raises:
        TypeError: that argument is no tensor; for the linear losses, a missing or an unknown argument.
        ValueError: no such public op, or an `impl` that cannot serve the device.
    """
    public = [name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("tamis::")]
    check_choice("explain", "op", op, sorted(name for name in public if not name.startswith("_")))
    first = getattr(torch.ops.tamis, op).default._schema.arguments[0].name
    choice = choose(op, impl, check_tensor(op, first, args[0] if args else kwargs.get(first)))
    if choice.backend == "cpu":
        choice = choice._replace(kernel=f"{choice.kernel} {isa()}")
    more: Any = _more.get(op)
    if not more or choice.backend == "reference":
        return choice
    try:
        explained: Choice = more(choice, *args, **kwargs)
    except TypeError as error:
        raise TypeError(f"tamis.explain: {op}: {error}") from error
    return explained
