"""Other libraries' arrays, as CuPy's, pass through DLPack without a copy. NumPy stands for them on the CPU."""

import numpy as np
import pytest
import torch
from tamis.sampling import softmax_stats
from tamis.sparse_mlp import topk


def test_arrays_come_in_and_go_out_without_a_copy():
    array = np.random.default_rng(0).standard_normal((5, 300)).astype(np.float32)
    tensor = torch.from_dlpack(array)
    assert tensor.data_ptr() == array.ctypes.data
    values = topk(tensor, 7).values
    back = np.from_dlpack(values)
    assert back.ctypes.data == values.data_ptr()
    np.testing.assert_array_equal(back, -np.sort(-array, axis=1)[:, :7])
    array[0] = 1.0  # seen there: it is the same memory
    assert softmax_stats(tensor).entropy[0].item() == pytest.approx(np.log(300))


class Array:
    """What has nothing but the protocol."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


def test_an_array_itself_is_refused_with_the_way():
    x = torch.randn(3, 9)
    with pytest.raises(
        TypeError, match=r"topk: x: expected a Tensor, got Array \(torch.from_dlpack shares its memory\)"
    ):
        topk(Array(x), 2)
    assert torch.equal(topk(torch.from_dlpack(Array(x)), 2).values, topk(x, 2).values)
