"""What an installed package must do, with no test library at hand: python tests/smoke.py"""

import subprocess
import sys

import tamis
import torch
from tamis.distill import deviation_stats, distill_loss
from tamis.testing import op_examples

for name, examples in op_examples().items():
    for example in examples:
        args, kwargs = example()
        out = getattr(torch.ops.tamis, name)(*args, **kwargs)
        assert all(x.isfinite().all() for x in ([out] if isinstance(out, torch.Tensor) else out)), name
student, teacher = torch.randn(64, 5000, requires_grad=True), torch.randn(64, 5000)
results = []
for impl in ("auto", "reference"):
    loss = distill_loss(student, teacher, temperature=2.0, impl=impl)
    results.append((loss.detach(), *torch.autograd.grad(loss, student)))
torch.testing.assert_close(*results)
assert deviation_stats(student, teacher).agree.dtype == torch.bool
for command in (["doctor"], ["reproduce", "--list"], ["data", "list"]):
    subprocess.run([sys.executable, "-m", "tamis.cli", *command], check=True, stdout=subprocess.DEVNULL)
print(f"tamis {tamis.__version__} with torch {torch.__version__} in {tamis.__file__}: right")
