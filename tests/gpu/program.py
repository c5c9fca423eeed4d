"""What compute-sanitizer watches: every op, forward and backward, on small inputs and on the long rows of topk, whose
blocks meet in memory: python -m gpu.program, in tests/."""

import torch
from gpu.calls import WIDE, evaluate, given
from tamis.common.backend import ON_GPU, runs
from tamis.testing import op_examples


def watch(name, example, impl):
    try:
        evaluate(name, given(name, example, "cuda"), impl)
    except ValueError as error:  # of what the op's other kernels take
        if impl == "auto" or "CUDA C++ kernel" not in str(error):
            raise


for name, examples in op_examples().items():
    binary = "cuda" in ON_GPU.get(name, ()) and runs(name, torch.device("cuda"))
    for example in [*examples, *(WIDE["topk"][-1:] if name == "topk" else ())]:
        for impl in ("auto", "cuda") if binary else ("auto",):
            watch(name, example, impl)
            with torch.no_grad():  # topk_mlp has other kernels then
                watch(name, example, impl)
        torch.cuda.synchronize()
    print(name, flush=True)
