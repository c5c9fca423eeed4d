"""Which implementation a call would take, and why."""

import torch

from .backend import Choice, choose, isa
from .checks import check_choice, check_tensor


def explain(op: str, *args: object, impl: str = "auto", **kwargs: object) -> Choice:
    """Choice(backend, kernel, reason) of `tamis.<family>.<op>(*args, impl=impl, **kwargs)`, which is not run.

    The op's first argument decides, by its device; the others are taken as they are, not checked.

    Raises:
        TypeError: that argument is no tensor.
        ValueError: no such public op, or an `impl` that cannot serve the device.
    """
    public = [name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("tamis::")]
    check_choice("explain", "op", op, sorted(name for name in public if not name.startswith("_")))
    first = getattr(torch.ops.tamis, op).default._schema.arguments[0].name
    choice = choose(op, impl, check_tensor(op, first, args[0] if args else kwargs.get(first)))
    return choice._replace(kernel=f"{choice.kernel} {isa()}") if choice.backend == "cpu" else choice
