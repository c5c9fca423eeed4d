import numpy as np
import pytest
import torch
from helpers import INF, NAN, pair
from tamis.distill import DistillationLoss, distill_loss, reference

WIDE = torch.ones(2, dtype=torch.float64)
NESTED = torch.nested.nested_tensor([torch.zeros(4), torch.zeros(4)])


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"student_logits": [[1.0]]}, TypeError, "student_logits: expected a Tensor, got list"),
            (
                {"student_logits": torch.zeros(2, 4, dtype=torch.int64)},
                TypeError,
                "student_logits: expected float32, .*got torch.int64",
            ),
            ({"student_logits": torch.zeros(())}, ValueError, r"student_logits: expected \[\*, classes\]"),
            (
                {"student_logits": torch.zeros(2, 0), "teacher_logits": torch.zeros(2, 0)},
                ValueError,
                r"student_logits: expected \[\*, classes\] with at least one class",
            ),
            (
                {"teacher_logits": torch.zeros(3, 4)},
                ValueError,
                r"teacher_logits: expected leading axes \[2\], got \[3\]",
            ),
            ({"teacher_logits": torch.zeros(2, 5)}, ValueError, "vocab_size: expected the classes to read of 4 and 5"),
            (
                {"teacher_logits": torch.zeros(2, 4).double()},
                TypeError,
                "teacher_logits: expected float64 beside float64",
            ),
            (
                {"teacher_logits": torch.zeros(2, 4, device="meta")},
                ValueError,
                "teacher_logits: expected device cpu, got meta",
            ),
            ({"vocab_size": 5}, ValueError, "vocab_size: expected 1 to 4, got 5"),
            ({"vocab_size": 2.0}, TypeError, "vocab_size: expected an integer, got float"),
            ({"vocab_size": 0}, ValueError, "vocab_size: expected at least 1, got 0"),
            ({"temperature": 0.0}, ValueError, "temperature: expected a number within 1e-37..1e37, got 0.0"),
            ({"temperature": float("nan")}, ValueError, "temperature: expected a number within 1e-37..1e37, got nan"),
            ({"temperature": float("inf")}, ValueError, "temperature: expected a number within 1e-37..1e37, got inf"),
            ({"temperature": 10**400}, ValueError, "temperature: expected a number within 1e-37..1e37, got inf"),
            ({"temperature": 1e-50}, ValueError, "temperature: expected a number within 1e-37..1e37, got 1e-50"),
            (
                {"temperature": torch.tensor([1.0, -1.0])},
                ValueError,
                "temperature: expected a number within .*, got -1.0",
            ),
            ({"temperature": torch.tensor(INF)}, ValueError, "temperature: expected a number within .*, got inf"),
            ({"temperature": torch.tensor(2j)}, TypeError, "temperature: expected float32, .* got torch.complex64"),
            ({"temperature": torch.tensor(True)}, TypeError, "temperature: expected float32, .* got torch.bool"),
            ({"temperature": torch.ones(2).to_sparse()}, TypeError, "temperature: expected a dense tensor"),
            ({"temperature": torch.tensor(1.0, device="meta")}, ValueError, "temperature: expected device cpu, got me"),
            ({"alpha": torch.tensor(1.0).to(torch.float8_e4m3fn)}, TypeError, "alpha: expected .* got torch.float8_e4"),
            ({"temperature": torch.ones(3)}, ValueError, r"temperature: expected shape \[2\], got \[3\]"),
            ({"temperature": "hot"}, TypeError, "temperature: expected a number, got str"),
            ({"alpha": 0.5}, ValueError, "target: expected a target for alpha=0.5"),
            ({"alpha": torch.tensor([1.0, 0.5])}, ValueError, "target: expected a target"),
            ({"alpha": 1.5}, ValueError, "alpha: expected 0 to 1, got 1.5"),
            ({"alpha": -1}, ValueError, "alpha: expected 0 to 1, got -1"),
            ({"alpha": "a"}, TypeError, "alpha: expected a number, got str"),
            ({"alpha": torch.tensor([1.0, NAN])}, ValueError, "alpha: expected 0 to 1, got nan"),
            ({"target": torch.tensor([0, 4])}, ValueError, "target: expected 0 to 3, or -100, got 4"),
            ({"target": torch.tensor([0, -1])}, ValueError, "target: expected 0 to 3, or -100, got -1"),
            ({"target": torch.tensor([0.0, 1.0])}, TypeError, "target: expected integers, .*got torch.float32"),
            ({"target": torch.tensor([0, 1]).to(torch.uint16)}, TypeError, "target: expected integers, .*torch.uint16"),
            ({"target": torch.tensor([0])}, ValueError, r"target: expected shape \[2\], got \[1\]"),
            ({"ignore_index": 1.5}, TypeError, "ignore_index: expected an integer, got float"),
            ({"ignore_index": 2**70}, ValueError, "ignore_index: expected an integer of 64 bits"),
            ({"beta": "a"}, TypeError, "beta: expected a number, got str"),
            ({"label_smoothing": None}, TypeError, "label_smoothing: expected a number, got NoneType"),
            ({"divergence": "kl"}, ValueError, "divergence: expected forward_kl or .*, got 'kl'"),
            ({"divergence": "jsd", "beta": 1.5}, ValueError, "beta: expected 0 to 1, got 1.5"),
            ({"reduction": "avg"}, ValueError, "reduction: expected mean or sum or none, got 'avg'"),
            ({"reduction": "sum", "num_items_in_batch": 3}, ValueError, "num_items_in_batch: expected reduction mean"),
            ({"num_items_in_batch": 0}, ValueError, "num_items_in_batch: expected a number within 1e-37..1e37, got 0"),
            ({"num_items_in_batch": "3"}, TypeError, "num_items_in_batch: expected a number, got str"),
            (
                {"num_items_in_batch": torch.tensor(1j)},
                TypeError,
                "num_items_in_batch: expected float32, .* got torch.complex64",
            ),
            ({"num_items_in_batch": torch.tensor(2, device="meta")}, ValueError, "num_items_in_batch: expected device"),
            ({"num_items_in_batch": torch.tensor(INF)}, ValueError, "num_items_in_batch: expected a number within"),
            ({"num_items_in_batch": torch.ones(2)}, ValueError, r"num_items_in_batch: expected one number, got \[2\]"),
            ({"label_smoothing": 1.5}, ValueError, "label_smoothing: expected 0 to 1"),
            ({"row_weight": torch.ones(3)}, ValueError, r"row_weight: expected shape \[2\]"),
            ({"row_weight": [1.0, 1.0]}, TypeError, "row_weight: expected a Tensor, got list"),
            ({"row_weight": torch.ones(2) * 1j}, TypeError, "row_weight: expected float32, .* got torch.complex64"),
            ({"row_weight": torch.ones(2).to(torch.uint16)}, TypeError, "row_weight: expected .* got torch.uint16"),
            (
                {"row_weight": torch.tensor([1.0, -2.0])},
                ValueError,
                "row_weight: expected 0 or a number within .*, got -2.0",
            ),
            (
                {"row_weight": WIDE * 1e300},
                ValueError,
                "row_weight: expected 0 or a number within .* got 1e\\+300",
            ),
            ({"row_weight": WIDE * 1e-300}, ValueError, "row_weight: expected 0 or a number within .* got 1e-300"),
            ({"row_weight": NESTED}, TypeError, "row_weight: expected a dense tensor, got a nested one"),
            ({"target": torch.ones(2).long().to_sparse()}, TypeError, "target: expected a dense tensor"),
            ({"temperature": NESTED}, TypeError, "temperature: expected a dense tensor, got a nested one"),
            (
                {"num_items_in_batch": 1e-320},
                ValueError,
                "num_items_in_batch: expected a number within 1e-37..1e37, got 1e-",
            ),
            (
                {"row_weight": torch.tensor([1.0, NAN])},
                ValueError,
                "row_weight: expected 0 or a number within .*, got nan",
            ),
            ({"target": torch.tensor([0, 156]).to(torch.uint8)}, ValueError, "target: expected 0 to 3, .* got 156"),
            ({"student_softcap": -1.0}, ValueError, "student_softcap: expected a number within 1e-37..1e37, got -1.0"),
            (
                {"student_softcap": 1e-60},
                ValueError,
                "student_softcap: expected a number within 1e-37..1e37, got 1e-60",
            ),
            (
                {"teacher_softcap": 1e39},
                ValueError,
                "teacher_softcap: expected a number within 1e-37..1e37, got 1e\\+39",
            ),
            (
                {"student_logit_scale": 1e60},
                ValueError,
                "student_logit_scale: expected a number within -1e37..1e37, got 1e\\+60",
            ),
            ({"student_softcap": "a"}, TypeError, "student_softcap: expected a number, got str"),
            ({"student_logit_scale": "a"}, TypeError, "student_logit_scale: expected a number, got str"),
            ({"student_logits": torch.zeros(2, 4).to_sparse()}, TypeError, "student_logits: expected a dense tensor"),
            (
                {"teacher_logits": NESTED},
                TypeError,
                "teacher_logits: expected a dense tensor, got a nested one",
            ),
            ({"return_stats": "x"}, TypeError, "return_stats: expected True or False, got 'x'"),
            ({"overwrite_logits": 1}, TypeError, "overwrite_logits: expected True or False, got 1"),
            ({"divergence": 3}, ValueError, "divergence: expected forward_kl or .*, got 3"),
            (
                {"teacher_logit_scale": float("inf")},
                ValueError,
                "teacher_logit_scale: expected a number within -1e37..1e37, got inf",
            ),
            ({"impl": "cuda"}, ValueError, "impl: expected an op with a CUDA"),
            ({"impl": "fast"}, ValueError, "impl: expected auto or"),
        ],
    )
    def test_names_the_argument(self, change, error, words):
        arguments = {"student_logits": torch.zeros(2, 4), "teacher_logits": torch.zeros(2, 4)} | change
        with pytest.raises(error, match="tamis.distill_loss: " + words):
            distill_loss(arguments.pop("student_logits"), arguments.pop("teacher_logits"), **arguments)

    @pytest.mark.parametrize(
        "options",
        [{"temperature": 0}, {"alpha": 2}, {"beta": "a"}, {"vocab_size": 0}, {"impl": "fast"}, {"reduction": 1}],
    )
    def test_the_module_refuses_at_once(self, options):
        with pytest.raises((TypeError, ValueError), match=f"tamis.distill_loss: {next(iter(options))}: expected"):
            DistillationLoss(**options)

    def test_numpy_numbers_and_bool_masks_will_do(self):
        s, t = pair(2, 5)
        got = distill_loss(s, t, temperature=np.float32(2), row_weight=torch.tensor([True, False]))
        assert got == distill_loss(s, t, temperature=2.0, row_weight=torch.tensor([1.0, 0.0]))
        assert distill_loss(s, t, vocab_size=np.int64(4)) == distill_loss(s, t, vocab_size=4)

    def test_pending_negation_is_not_overwritten(self):
        logits = torch.view_as_complex(torch.zeros(2, 4, 2, requires_grad=True) + 1).conj().imag
        assert logits.is_neg()
        with pytest.raises(ValueError, match="overwrite_logits: expected student_logits without a pending negation"):
            distill_loss(logits, torch.zeros(2, 4), overwrite_logits=True)
        assert distill_loss(logits, torch.zeros(2, 4)) == 0

    @pytest.mark.parametrize("impl", ["cpu", "reference"])
    @pytest.mark.parametrize(
        "bad",
        [
            {"temperature": 0.0},
            {"temperature": INF},
            {"alpha": 1.5},
            {"alpha": NAN},
            {"row_weight": -1.0},
            {"target": 9},
        ],
    )
    def test_values_that_nobody_checks_make_their_row_nan(self, impl, bad):
        s, t = pair(3, 5)
        rows = {"temperature": torch.ones(3), "alpha": torch.full([3], 0.5), "row_weight": torch.ones(3)}
        rows["target"] = torch.arange(3)
        ((name, value),) = bad.items()
        rows[name][1] = value
        options = (rows["target"], rows["temperature"], rows["alpha"], "forward_kl", 0.5, 0.0, -100, "none")
        op = torch.ops.tamis.distill_loss.default if impl == "cpu" else reference.distill_loss
        (losses,) = op(s, t, *options, rows["row_weight"])
        losses.sum().backward()
        for got in (losses, s.grad.sum(1)):
            assert got.isnan().tolist() == [False, True, False]

    @pytest.mark.parametrize(
        ("student", "teacher", "words"),
        [
            (torch.zeros(2, 4).long(), torch.zeros(2, 4), "student_logits: expected float32, .*, got Long"),
            (torch.zeros(2, 4), torch.zeros(2, 4).long(), "teacher_logits: expected float32, .*, got Long"),
            (torch.zeros(2, 4), torch.zeros(2, 5), "vocab_size: expected a number for 4 and 5 classes"),
            (torch.zeros(2, 4), torch.zeros(3, 4), "teacher_logits: expected the leading axes .* 2 rows, got 3"),
            (torch.zeros(2, 4), torch.zeros(2, 4).double(), "teacher_logits: expected float64 beside float64"),
            (torch.zeros(()), torch.zeros(()), r"student_logits: expected \[\*, classes\] .*, got a number"),
            (torch.zeros(2, 0), torch.zeros(2, 0), r"student_logits: expected \[\*, classes\] .*, got none"),
        ],
    )
    def test_raw_op_checks_for_itself(self, student, teacher, words):
        one = torch.tensor(1.0)
        with pytest.raises(RuntimeError, match="tamis.distill_loss: " + words):
            torch.ops.tamis.distill_loss(student, teacher, None, one, one)
        with pytest.raises(RuntimeError, match="tamis.deviation_stats: " + words):
            torch.ops.tamis.deviation_stats(student, teacher)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"target": torch.zeros(2, 1).long()}, "target: expected one number per row in the shape of the leading"),
            ({"target": torch.zeros(2)}, "target: expected int64, got Float"),
            ({"temperature": torch.ones(1)}, "temperature: expected a number or one per row in the shape"),
            ({"row_weight": torch.tensor(1.0)}, "row_weight: expected one number per row in the shape"),
            ({"num_items_in_batch": torch.ones(2)}, "num_items_in_batch: expected a number in the shape"),
            ({"label_smoothing": -3.0}, "label_smoothing: expected 0 to 1, got -3"),
            ({"divergence": "kl"}, "divergence: expected forward_kl, .* got kl"),
            ({"divergence": "jsd", "beta": float("nan")}, "beta: expected 0 to 1, got nan"),
            ({"alpha": torch.tensor(1.0, device="meta")}, "alpha: expected device cpu, got meta"),
        ],
    )
    def test_raw_op_checks_what_goes_with_the_logits(self, change, words):
        one = torch.tensor(1.0)
        arguments = {"target": torch.zeros(2).long(), "temperature": one, "alpha": one} | change
        error = ValueError if "meta" in words else RuntimeError
        with pytest.raises(error, match="tamis.distill_loss: " + words):
            torch.ops.tamis.distill_loss(torch.zeros(2, 4), torch.zeros(2, 4), **arguments)

    def test_raw_op_changes_no_argument(self):
        one = torch.tensor(1.0)
        with pytest.raises(RuntimeError, match="overwrite_logits"):
            torch.ops.tamis.distill_loss(torch.zeros(2, 4), torch.zeros(2, 4), None, one, one, overwrite_logits=True)
