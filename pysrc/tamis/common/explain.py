"""Which implementation a call would take, and why."""

import torch
from torch import Tensor

from .backend import Choice, choose, isa
from .checks import check_choice


def explain(op: str, *args: object, impl: str = "auto", **kwargs: object) -> Choice:
    """Choice(backend, kernel, reason) of `tamis.<family>.<op>(*args, impl=impl, **kwargs)`, which is not run.

    Raises:
        ValueError: no such public op, no tensor among the arguments, or an `impl` that cannot serve them.
    """
    public = [name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("tamis::")]
    check_choice("explain", "op", op, sorted(name for name in public if not name.startswith("_")))
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if not tensors:
        raise ValueError(f"tamis.explain: args: expected a Tensor among the arguments of {op}, got none")
    choice = choose(op, impl, tensors[0])
    return choice._replace(kernel=f"{choice.kernel} {isa()}") if choice.backend == "cpu" else choice
