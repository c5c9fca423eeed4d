"""topk_distill_loss: what it refuses, what it overwrites, and how it compiles."""

import pytest
import tamis
import torch
import torch.autograd.forward_ad as fwAD
from helpers import pair
from tamis.distill import reference_topk, topk_distill_loss

INDICES = torch.tensor([[0, 2], [1, 3]])
TABLE = [
    ({"student_logits": [[1.0]]}, TypeError, "student_logits: expected a Tensor, got list"),
    ({"student_logits": torch.zeros(2, 0)}, ValueError, r"student_logits: expected \[\*, classes\] with at least one"),
    ({"teacher_topk_values": [1.0]}, TypeError, "teacher_topk_values: expected a Tensor, got list"),
    ({"teacher_topk_values": torch.zeros(2, 2).long()}, TypeError, "teacher_topk_values: expected float32"),
    (
        {"teacher_topk_values": torch.zeros(2, 2).double()},
        TypeError,
        "teacher_topk_values: expected float64 beside float64 and only there, got torch.float64",
    ),
    (
        {"teacher_topk_values": torch.zeros(3, 2)},
        ValueError,
        r"teacher_topk_values: expected \[\*, K\] with the leading axes \[2\] and K of 1 to 4, got \[3, 2\]",
    ),
    ({"teacher_topk_values": torch.zeros(2, 5)}, ValueError, r"teacher_topk_values: .*K of 1 to 4, got \[2, 5\]"),
    ({"teacher_topk_values": torch.zeros(2, 0)}, ValueError, r"teacher_topk_values: .*K of 1 to 4, got \[2, 0\]"),
    ({"teacher_topk_values": torch.zeros(2)}, ValueError, r"teacher_topk_values: expected \[\*, K\] .*got \[2\]"),
    ({"vocab_size": 1}, ValueError, r"teacher_topk_values: .*K of 1 to 1, got \[2, 2\]"),
    (
        {"teacher_topk_values": torch.zeros(2, 2, device="meta")},
        ValueError,
        "teacher_topk_values: expected device cpu, got meta",
    ),
    ({"teacher_topk_indices": torch.zeros(2, 2)}, TypeError, "teacher_topk_indices: expected integers, .*float32"),
    ({"teacher_topk_indices": torch.zeros(2, 2) > 0}, TypeError, "teacher_topk_indices: expected integers, .*bool"),
    ({"teacher_topk_indices": INDICES[:, :1]}, ValueError, r"teacher_topk_indices: expected shape \[2, 2\], got"),
    (
        {"teacher_topk_indices": torch.tensor([[0, 2], [1, 4]])},
        ValueError,
        "teacher_topk_indices: expected 0 to 3, got 4",
    ),
    ({"vocab_size": 3}, ValueError, "teacher_topk_indices: expected 0 to 2, got 3"),
    (
        {"teacher_topk_indices": torch.tensor([[0, -100], [1, 2]])},
        ValueError,
        "teacher_topk_indices: expected 0 to 3, got -100",
    ),
    (
        {"teacher_topk_indices": torch.tensor([[0, 2], [3, 3]], dtype=torch.int32)},
        ValueError,
        "teacher_topk_indices: expected each class at most once a row, got 3 again",
    ),
    ({"teacher_logsumexp": 3.0}, TypeError, "teacher_logsumexp: expected a Tensor, got float"),
    ({"teacher_logsumexp": torch.ones(2, 1)}, ValueError, r"teacher_logsumexp: expected shape \[2\], got \[2, 1\]"),
    (
        {"teacher_logsumexp": torch.tensor([2.0, 0.69])},
        ValueError,
        "teacher_logsumexp: expected at least 0.6931.*, the logsumexp of the row's values / temperature, got 0.6899",
    ),
    ({"tail": "rest"}, ValueError, "tail: expected bucket or renorm, got 'rest'"),
    ({"tail": "renorm", "divergence": "jsd"}, ValueError, "divergence: expected forward_kl for tail='renorm', got"),
    ({"divergence": "logit_mse"}, ValueError, "divergence: expected any but logit_mse, which needs every logit"),
    ({"divergence": "kl"}, ValueError, "divergence: expected forward_kl or"),
    ({"vocab_size": 5}, ValueError, "vocab_size: expected 1 to 4, got 5"),
    ({"temperature": 0.0}, ValueError, "temperature: expected a number within"),
    ({"alpha": 0.5}, ValueError, "target: expected a target for alpha=0.5"),
    ({"target": torch.tensor([0, 4])}, ValueError, "target: expected 0 to 3, or -100, got 4"),
    ({"reduction": "sum", "num_items_in_batch": 3}, ValueError, "num_items_in_batch: expected reduction mean"),
    ({"row_weight": torch.tensor([1.0, -2.0])}, ValueError, "row_weight: expected 0 or a number within"),
    ({"student_softcap": -1.0}, ValueError, "student_softcap: expected a number within"),
    ({"overwrite_logits": 1}, TypeError, "overwrite_logits: expected True or False, got 1"),
    ({"impl": "fast"}, ValueError, "impl: expected auto or"),
]


@pytest.mark.parametrize(("change", "error", "words"), TABLE)
def test_names_the_argument(change, error, words):
    arguments = {
        "student_logits": torch.zeros(2, 4),
        "teacher_topk_values": torch.zeros(2, 2),
        "teacher_topk_indices": INDICES,
        "teacher_logsumexp": torch.ones(2),
    } | change
    with pytest.raises(error, match="tamis.topk_distill_loss: " + words):
        topk_distill_loss(**arguments)


def test_what_rounding_explains_is_no_error():
    student, teacher = pair(64, 3000, torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float32):
        for temperature in (0.5, 2.0):
            logsumexp = (teacher.double() / temperature).logsumexp(-1).to(dtype)
            values, indices = teacher.topk(3000)
            topk_distill_loss(student, values, indices, logsumexp, temperature=temperature)
            exact = teacher.float() * 1.0004  # what bfloat16 was rounded from
            values, indices = exact.topk(2000)
            logsumexp = (exact / temperature / 1.0004).logsumexp(-1).to(dtype)
            topk_distill_loss(student, values.bfloat16(), indices, logsumexp, temperature=temperature)
    with pytest.raises(ValueError, match="teacher_logsumexp: expected at least"):
        topk_distill_loss(student, *teacher.topk(2000), teacher.float().logsumexp(-1), temperature=0.9)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("tail", ["bucket", "renorm"])
def test_values_that_nobody_checks_make_their_row_nan(isa, impl, tail):
    student, teacher = pair(7, 700)
    values, indices = teacher.topk(20)
    indices[1, 19], indices[2, 0], indices[3, 7], indices[5] = 700, -1, 2**62, 11
    target, one = torch.arange(7), torch.ones(7)
    target[6] = 700
    op = torch.ops.tamis.topk_distill_loss.default if impl == "cpu" else reference_topk.topk_distill_loss
    options = ("forward_kl", 0.5, 0.0, -100, "none")
    (loss,) = op(student, values, indices, teacher.logsumexp(-1), target, tail, one, one / 2, *options)
    bad = [False, True, True, True, False, True, True]
    assert loss.isnan().tolist() == bad
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert gradient.isnan().all(-1).tolist() == bad
    assert gradient[[0, 4]].isfinite().all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"values": torch.zeros(2, 5)}, "teacher_topk_values: expected at most 4 a row, got 5"),
        (
            {"values": torch.zeros(3, 2)},
            "teacher_topk_values: expected the leading axes of student_logits, 2 rows, got 3",
        ),
        ({"values": torch.zeros(2, 2).double()}, "teacher_topk_values: expected float64 beside float64 and only there"),
        ({"values": torch.zeros(2, 2).long()}, "teacher_topk_values: expected float32, .*, got Long"),
        ({"values": torch.zeros(2, 0)}, r"teacher_topk_values: expected \[\*, classes\] .*, got none"),
        ({"indices": INDICES.int()}, "teacher_topk_indices: expected int64 on CPU in the shape of .*, got Int"),
        ({"indices": INDICES[0]}, "teacher_topk_indices: expected int64 on CPU in the shape of .*, got Long of 2"),
        ({"logsumexp": torch.ones(3)}, "teacher_logsumexp: expected one number per row"),
        ({"logsumexp": torch.tensor(1.0)}, "teacher_logsumexp: expected one number per row"),
        ({"target": torch.zeros(2)}, "target: expected int64, got Float"),
        ({"tail": "rest"}, "tail: expected bucket or renorm, got rest"),
        ({"divergence": "logit_mse"}, "divergence: expected any but logit_mse, got logit_mse"),
        ({"divergence": "jsd", "tail": "renorm"}, "divergence: expected forward_kl for tail renorm, got jsd"),
        ({"divergence": "kl"}, "divergence: expected forward_kl, .* got kl"),
    ],
)
def test_raw_op_checks_for_itself(change, words):
    one = torch.tensor(1.0)
    given = {"values": torch.zeros(2, 2), "indices": INDICES, "logsumexp": torch.ones(2), "target": None}
    given |= {"tail": "bucket", "temperature": one, "alpha": one, "divergence": "forward_kl"} | change
    with pytest.raises(RuntimeError, match="tamis.topk_distill_loss: " + words):
        torch.ops.tamis.topk_distill_loss(torch.zeros(2, 4), *given.values())


def test_raw_op_overwrites_nothing():
    one = torch.tensor(1.0)
    options = ("forward_kl", 0.5, 0.0, -100, "mean", None, None, None, None, None, 1.0, 1.0, True)
    given = torch.zeros(2, 2), INDICES, torch.ones(2), None, "bucket", one, one, *options
    with pytest.raises(RuntimeError, match="overwrite_logits: the raw op changes no argument"):
        torch.ops.tamis.topk_distill_loss(torch.zeros(2, 4), *given)


class TestOverwriteLogits:
    def stored(self, teacher, temperature=1.0):
        return *teacher.topk(12), (teacher / temperature).logsumexp(-1)

    @pytest.mark.parametrize("factor", [1.0, 3.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("cap", [None, 4.0])
    def test_logits_hold_the_gradient(self, isa, dtype, factor, cap):
        student, teacher = pair(5, 600, dtype)
        target, entries = torch.arange(5), self.stored(teacher.float(), 2.0)
        entries = entries[0].to(dtype), entries[1], entries[2]
        options = {"alpha": 0.5, "temperature": 2.0, "student_softcap": cap}
        loss = topk_distill_loss(student, *entries, target, **options)
        (want,) = torch.autograd.grad(loss * factor, student)
        logits = student * 1
        got = topk_distill_loss(logits, *entries, target, overwrite_logits=True, **options)
        assert torch.equal(got, loss)
        (got * factor).backward(retain_graph=True)
        torch.testing.assert_close(student.grad, want, rtol=1e-2 if dtype != torch.float32 else 1e-6, atol=1e-7)
        assert torch.equal(logits.detach(), student.grad)
        with pytest.raises(
            RuntimeError, match="topk_distill_loss: overwrite_logits: expected one backward, got a second"
        ):
            got.backward()

    def test_leaves_overlaps_and_tangents_are_refused(self):
        student, teacher = pair(3, 50)
        entries = self.stored(teacher)
        with pytest.raises(
            ValueError, match="topk_distill_loss: overwrite_logits: expected student_logits that are not"
        ):
            topk_distill_loss(student, *entries, overwrite_logits=True)
        logits = student * 1
        inside = logits.detach().view(-1)[:36].view(3, 12), entries[1], torch.full((3,), 99.0)
        with pytest.raises(RuntimeError, match="expected teacher_topk_values in memory apart from student_logits"):
            topk_distill_loss(logits, *inside, overwrite_logits=True)
        with pytest.raises(RuntimeError, match="rows that do not overlap"):
            topk_distill_loss((student[:1] * 1).expand(3, 50), *entries, overwrite_logits=True)
        with fwAD.dual_level():
            dual = fwAD.make_dual(entries[2], torch.ones(3))
            with pytest.raises(NotImplementedError, match="topk_distill_loss: forward-mode"):
                topk_distill_loss(logits, *entries[:2], dual, overwrite_logits=True)
        assert torch.equal(logits, student)

    def test_arguments_within_the_logits(self):
        student, teacher = pair(4, 19)
        values, indices, _ = self.stored(teacher)
        student.data[0, :4] = values.logsumexp(-1) + 1
        want = topk_distill_loss(student, values, indices, student[0, :4], reduction="none")
        logits = student * 1
        got = topk_distill_loss(logits, values, indices, logits[0, :4], reduction="none", overwrite_logits=True)
        assert torch.equal(got, want)


class TestCompile:
    def loss(self, student, values, indices, logsumexp, target):
        return 3 * topk_distill_loss(
            2 * student, values, indices, logsumexp, target, alpha=0.5, temperature=2.0, divergence="jsd"
        )

    def test_loss_and_gradient(self):
        student, teacher = pair(6, 50)
        given = *teacher.topk(7), (teacher / 2).logsumexp(-1), torch.tensor([0, 1, 2, -100, 4, 5])
        want = self.loss(student, *given)
        torch._dynamo.reset()
        got = torch.compile(self.loss, fullgraph=True)(student, *given)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(*[torch.autograd.grad(out, student)[0] for out in (got, want)])

    def test_bad_index_is_a_nan_row(self):
        student, teacher = pair(3, 50)
        values, indices = teacher.topk(4)
        indices[1, 2] = 50
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda *given: topk_distill_loss(*given, reduction="none"), fullgraph=True, backend="aot_eager"
        )
        loss = compiled(student, values, indices, teacher.logsumexp(-1))
        assert loss.isnan().tolist() == [False, True, False]

    def test_exports(self):
        class Model(torch.nn.Module):
            def forward(self, student, values, indices, logsumexp):
                return topk_distill_loss(student, values, indices, logsumexp, tail="renorm")

        student, teacher = (x.detach() for x in pair(4, 9))
        program = torch.export.export(Model(), (student, *teacher.topk(3), teacher.logsumexp(-1)))
        given = teacher, *student.topk(3), student.logsumexp(-1)
        assert torch.equal(program.module()(*given), topk_distill_loss(*given, tail="renorm"))

    def test_autocast_keeps_float32_losses(self):
        hidden, weight = torch.randn(8, 16), torch.randn(32, 16, requires_grad=True)
        values, indices = torch.randn(8, 32).topk(4)
        with torch.autocast("cpu", torch.bfloat16):
            loss = topk_distill_loss(hidden @ weight.T, values, indices, values.logsumexp(-1) + 1)
        assert loss.dtype == torch.float32
        loss.backward()
        assert weight.grad.dtype == torch.float32


def test_only_the_student_gets_a_gradient_and_once():
    student, teacher = pair(4, 100)
    values, indices = teacher.topk(9)
    values.requires_grad_()
    logsumexp = teacher.logsumexp(-1).requires_grad_()
    loss = topk_distill_loss(student, values, indices, logsumexp)
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(NotImplementedError, match="tamis.topk_distill_loss: its second derivative"):
        gradient.sum().backward()
    topk_distill_loss(student, values, indices, logsumexp).backward()
    assert values.grad is logsumexp.grad is None
    assert torch.equal(student.grad, gradient.detach())
    with pytest.raises(NotImplementedError, match=r"tamis.topk_distill_loss: torch.func transforms"):
        torch.func.grad(topk_distill_loss)(student.detach(), values.detach(), indices, logsumexp.detach())


def test_explain():
    student, teacher = pair(2, 5)
    assert tamis.explain("topk_distill_loss", student, *teacher.topk(2)).backend == "cpu"
    assert tamis.explain("soft_cross_entropy", student, teacher).backend == "cpu"


def test_other_devices_have_the_reference():
    student = torch.zeros(2, 4, device="meta", requires_grad=True)
    meta = [torch.zeros(*shape, device="meta") for shape in ((2, 3), (2, 3), (2,))]
    topk_distill_loss(student, meta[0], meta[1].long(), meta[2]).backward()
    assert student.grad.shape == (2, 4)
