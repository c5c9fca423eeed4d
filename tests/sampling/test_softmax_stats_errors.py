import pytest
import torch
from tamis.sampling import disagreement, linear_softmax_stats, softmax_stats

X = torch.zeros(2, 4)
STATS = [
    ({"logits": [[1.0]]}, TypeError, "logits: expected a Tensor, got list"),
    ({"logits": X.long()}, TypeError, "logits: expected float32, .*got torch.int64"),
    ({"logits": torch.zeros(2, 0)}, ValueError, r"logits: expected \[\*, classes\] with at least one class"),
    ({"logits": torch.tensor(1.0)}, ValueError, r"logits: expected \[\*, classes\]"),
    ({"logits": X.to_sparse()}, TypeError, "logits: expected a dense tensor"),
    ({"target": torch.tensor([0, 4])}, ValueError, "target: expected 0 to 3, got 4"),
    ({"target": torch.tensor([-100, 0])}, ValueError, "target: expected 0 to 3, got -100"),
    ({"target": torch.tensor([0.0, 1.0])}, TypeError, "target: expected integers"),
    ({"target": torch.tensor([0])}, ValueError, r"target: expected shape \[2\], got \[1\]"),
    ({"temperature": 0.0}, ValueError, "temperature: expected a number within 1e-36..1e36, got 0.0"),
    ({"temperature": "hot"}, TypeError, "temperature: expected a number, got str"),
    ({"temperature": torch.ones(3)}, ValueError, r"temperature: expected shape \[2\], got \[3\]"),
    ({"temperature": torch.tensor([1.0, -1.0])}, ValueError, "temperature: expected a number within .*, got -1.0"),
    ({"valid_mask": torch.ones(4)}, TypeError, "valid_mask: expected bool, got torch.float32"),
    ({"valid_mask": torch.ones(3, dtype=torch.bool)}, ValueError, r"valid_mask: .* broadcasts to \[2, 4\], got \[3\]"),
    ({"valid_mask": torch.ones(1, 2, 4, dtype=torch.bool)}, ValueError, r"valid_mask: .*got \[1, 2, 4\]"),
    ({"valid_mask": [True]}, TypeError, "valid_mask: expected a Tensor, got list"),
    ({"softcap": 0.0}, ValueError, "softcap: expected a number within"),
    ({"logit_scale": float("inf")}, ValueError, "logit_scale: expected a number within"),
    ({"impl": "fast"}, ValueError, "impl: expected auto or"),
    ({"impl": "cuda"}, ValueError, "impl: expected an op with a CUDA C"),
]


@pytest.mark.parametrize(("change", "error", "words"), STATS)
def test_softmax_stats(change, error, words):
    arguments = {"logits": X} | change
    with pytest.raises(error, match=f"tamis.softmax_stats: {words}"):
        softmax_stats(arguments.pop("logits"), **arguments)


LINEAR = [
    ({"hidden": "text"}, TypeError, "hidden: expected a Tensor, got str"),
    ({"hidden": torch.zeros(3, 0)}, ValueError, r"hidden: expected \[\*, H\] with H at least 1"),
    ({"weight": torch.zeros(5, 3)}, ValueError, r"weight: expected \[classes, 2\]"),
    ({"weight": torch.zeros(5, 2).double()}, TypeError, "weight: expected hidden's torch.float32"),
    ({"bias": torch.zeros(4)}, ValueError, r"bias: expected \[5\], got \[4\]"),
    ({"chunk_size": 0}, ValueError, "chunk_size: expected at least 1, got 0"),
    ({"target": torch.tensor([0, 5, 1])}, ValueError, "target: expected 0 to 4, got 5"),
    ({"valid_mask": torch.ones(4, dtype=torch.bool)}, ValueError, r"valid_mask: .* broadcasts to \[3, 5\]"),
    ({"impl": "triton"}, (ValueError, ImportError), "impl: expected"),
]


@pytest.mark.parametrize(("change", "error", "words"), LINEAR)
def test_linear_softmax_stats(change, error, words):
    arguments = {"hidden": torch.zeros(3, 2), "weight": torch.zeros(5, 2), "bias": torch.zeros(5)} | change
    hidden, weight = arguments.pop("hidden"), arguments.pop("weight")
    with pytest.raises(error, match=f"tamis.linear_softmax_stats: {words}"):
        linear_softmax_stats(hidden, weight, arguments.pop("bias"), **arguments)


DISAGREEMENT = [
    ({"logits_b": torch.zeros(2, 5)}, ValueError, r"logits_b: expected shape \[2, 4\], got \[2, 5\]"),
    ({"logits_b": X.double()}, TypeError, "logits_b: expected float64 beside float64 and only there"),
    ({"logits_a": X.bool()}, TypeError, "logits_a: expected float32"),
    ({"target": None}, ValueError, "target: expected a tensor for entropy_term, got None"),
    ({"target": torch.tensor([0, 7])}, ValueError, "target: expected 0 to 3, got 7"),
    ({"kind": "kl"}, ValueError, "kind: expected entropy_term or max_abs or jsd, got 'kl'"),
]


@pytest.mark.parametrize(("change", "error", "words"), DISAGREEMENT)
def test_disagreement(change, error, words):
    arguments = {"logits_a": X, "logits_b": X, "target": torch.tensor([0, 1])} | change
    tensors = [arguments.pop(name) for name in ("logits_a", "logits_b", "target")]
    with pytest.raises(error, match=f"tamis.disagreement: {words}"):
        disagreement(*tensors, **arguments)


ONE = torch.ones(())
RAW = [
    ("softmax_stats", (X.long(), None, ONE), "logits: expected float32"),
    ("softmax_stats", (X, torch.tensor([0.0, 1.0]), ONE), "target: expected int64"),
    ("softmax_stats", (X, torch.tensor([0]), ONE), "target: expected one number per row"),
    ("softmax_stats", (X, None, torch.ones(3)), "temperature: expected a number or one per row"),
    ("softmax_stats", (X, None, ONE, torch.ones(4)), "valid_mask: expected bool"),
    ("softmax_stats", (X, None, ONE, torch.ones(3, dtype=torch.bool)), "valid_mask: expected a shape that broadcasts"),
    ("disagreement", (X, torch.zeros(2, 5), None, "jsd"), "logits_b: expected the shape of logits_a"),
    ("disagreement", (X, X, None, "entropy_term"), "target: expected a tensor"),
    ("disagreement", (X, X, None, "kl"), "kind: expected entropy_term, max_abs or jsd, got kl"),
    ("disagreement", (X, X.double(), None, "jsd"), "logits_b: expected float64"),
    ("_softmax_stats_backward", (X, None, ONE, None, None, 1.0, *[torch.ones(2)] * 2, torch.tensor([9, -1]),
                                 *[torch.ones(2)] * 3, None), None),
    ("_softmax_stats_backward", (X, None, ONE, None, None, 1.0, *[torch.ones(3)] * 2, torch.tensor([0, 1]),
                                 *[torch.ones(2)] * 3, None), "entropy: expected one number per row"),
    ("_softmax_stats_backward_", (X.T, None, ONE, None, None, 1.0, *[torch.ones(4)] * 2, torch.zeros(4).long(),
                                  *[torch.ones(4)] * 3, None), "logits: expected contiguous"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "words"), RAW)
def test_raw_ops_say_it_or_give_nan(name, arguments, words):
    op = getattr(torch.ops.tamis, name).default
    if words is None:
        assert op(*arguments).isnan().all()
        return
    with pytest.raises((RuntimeError, TypeError, ValueError), match=words):
        op(*arguments)


def test_nothing_is_no_error():
    for value in softmax_stats(torch.zeros(0, 5), target=torch.zeros(0, dtype=torch.long)):
        assert value.shape == (0,)
    assert disagreement(torch.zeros(3, 0, 5), torch.zeros(3, 0, 5), kind="jsd").shape == (3, 0)
    assert linear_softmax_stats(torch.zeros(0, 2), torch.zeros(5, 2)).entropy.shape == (0,)
    leaf = torch.zeros(0, 5, requires_grad=True)
    softmax_stats(leaf).entropy.sum().backward()
    assert leaf.grad.shape == (0, 5)
