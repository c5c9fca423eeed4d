import pytest
import torch
from tamis.distill import distill_loss


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
            ({"temperature": 0.0}, ValueError, "temperature: expected above 0, got 0.0"),
            ({"temperature": float("nan")}, ValueError, "temperature: expected above 0, got nan"),
            ({"temperature": torch.tensor([1.0, -1.0])}, ValueError, "temperature: expected above 0, got -1.0"),
            ({"temperature": torch.ones(3)}, ValueError, r"temperature: expected shape \[2\], got \[3\]"),
            ({"temperature": "hot"}, TypeError, "temperature: expected a number, got str"),
            ({"alpha": 0.5}, ValueError, "target: expected a target for alpha=0.5"),
            ({"alpha": torch.tensor([1.0, 0.5])}, ValueError, "target: expected a target"),
            ({"alpha": 1.5}, ValueError, "alpha: expected 0 to 1, got 1.5"),
            ({"target": torch.tensor([0, 4])}, ValueError, "target: expected 0 to 3, or -100, got 4"),
            ({"target": torch.tensor([0, -1])}, ValueError, "target: expected 0 to 3, or -100, got -1"),
            ({"target": torch.tensor([0.0, 1.0])}, TypeError, "target: expected integers, got torch.float32"),
            ({"target": torch.tensor([0])}, ValueError, r"target: expected shape \[2\], got \[1\]"),
            ({"divergence": "kl"}, ValueError, "divergence: expected forward_kl or .*, got 'kl'"),
            ({"divergence": "jsd"}, NotImplementedError, "divergence: jsd is not yet implemented"),
            ({"reduction": "avg"}, ValueError, "reduction: expected mean or sum or none, got 'avg'"),
            ({"reduction": "sum", "num_items_in_batch": 3}, ValueError, "num_items_in_batch: expected reduction mean"),
            ({"num_items_in_batch": 0}, ValueError, "num_items_in_batch: expected above 0, got 0"),
            ({"label_smoothing": 1.5}, ValueError, "label_smoothing: expected 0 to 1"),
            ({"row_weight": torch.ones(3)}, ValueError, r"row_weight: expected shape \[2\]"),
            ({"student_softcap": -1.0}, ValueError, "student_softcap: expected a finite number above 0, got -1.0"),
            (
                {"teacher_logit_scale": float("inf")},
                ValueError,
                "teacher_logit_scale: expected a finite number, got inf",
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
        ("student", "teacher"),
        [
            (torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4)),
            (torch.zeros(2, 4), torch.zeros(2, 5)),
            (torch.zeros(2, 4), torch.zeros(3, 4)),
            (torch.zeros(2, 4), torch.zeros(2, 4).double()),
            (torch.zeros(()), torch.zeros(())),
        ],
    )
    def test_raw_op_checks_for_itself(self, student, teacher):
        one = torch.tensor(1.0)
        with pytest.raises(RuntimeError, match=r"tamis.distill_loss"):
            torch.ops.tamis.distill_loss(student, teacher, None, one, one)

    def test_raw_op_changes_no_argument(self):
        one = torch.tensor(1.0)
        with pytest.raises(RuntimeError, match="overwrite_logits"):
            torch.ops.tamis.distill_loss(torch.zeros(2, 4), torch.zeros(2, 4), None, one, one, overwrite_logits=True)
