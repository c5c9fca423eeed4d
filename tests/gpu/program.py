"""What compute-sanitizer watches: every op, forward and backward, on small inputs: python -m gpu.program, in tests/."""

import torch
from gpu.calls import evaluate, given
from tamis.testing import op_examples

for name, examples in op_examples().items():
    for example in examples:
        evaluate(name, given(name, example, "cuda"))
        with torch.no_grad():  # topk_mlp has other kernels then
            evaluate(name, given(name, example, "cuda"))
        torch.cuda.synchronize()
    print(name, flush=True)
