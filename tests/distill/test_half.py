import pytest
import torch


@pytest.mark.parametrize("factor", [1.0, 1 / 3, -(2.0**-10), 3.7, 2.0**-14, 1e4, 2.0**13])
def test_every_half_is_scaled_and_rounded_as_torch_does(isa, factor):
    """Each float16 there is, times a factor: normal, subnormal, halfway, overflowing, infinite, NaN."""
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).reshape(64, 1024)
    got = torch.ops.tamis._scale_rows(halves, torch.tensor(factor), torch.tensor(1.0))
    torch.testing.assert_close(got, (halves.float() * factor).half(), rtol=0, atol=0, equal_nan=True)
