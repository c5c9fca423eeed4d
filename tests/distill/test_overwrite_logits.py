import pytest
import torch
import torch.autograd.forward_ad as fwAD
from helpers import loss_and_gradient, pair
from tamis.distill import DistillationLoss, distill_loss


class TestOverwriteLogits:
    @pytest.mark.parametrize("factor", [1.0, 3.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_logits_hold_the_gradient(self, isa, dtype, factor):
        student, teacher = pair(5, 600, dtype)
        target = torch.arange(5)
        want = torch.autograd.grad(
            distill_loss(student, teacher, target, alpha=0.5, temperature=2.0) * factor, student
        )[0]
        logits = student * 1
        loss = distill_loss(logits, teacher, target, alpha=0.5, temperature=2.0, overwrite_logits=True)
        assert torch.equal(loss, distill_loss(student, teacher, target, alpha=0.5, temperature=2.0))
        (loss * factor).backward()
        torch.testing.assert_close(student.grad, want, rtol=1e-2 if dtype != torch.float32 else 1e-6, atol=1e-7)
        assert torch.equal(logits.detach(), student.grad)

    def test_softcapped(self, isa):
        student, teacher = pair(5, 600)
        kwargs = {"student_softcap": 4.0, "temperature": 2.0}
        _, want = loss_and_gradient(student, teacher, **kwargs)
        distill_loss(student * 1, teacher, overwrite_logits=True, **kwargs).backward()
        assert torch.equal(student.grad, want)

    def test_overlapping_groups_are_refused_and_transposed_ones_are_not(self):
        teacher = pair(6, 4, seed=1)[1].view(2, 3, 4)
        overlapping = (torch.randn(16, requires_grad=True) * 1).as_strided((2, 3, 4), (4, 4, 1))
        with pytest.raises(RuntimeError, match="rows that do not overlap"):
            distill_loss(overlapping, teacher, overwrite_logits=True)
        leaf = torch.randn(3, 2, 4, requires_grad=True)
        distill_loss((leaf * 1).transpose(0, 1), teacher, overwrite_logits=True).backward()
        torch.testing.assert_close(leaf.grad.transpose(0, 1), loss_and_gradient(leaf.transpose(0, 1), teacher)[1])

    def test_under_compile_the_gradient_is_a_new_tensor(self):
        student, teacher = pair(3, 5)
        compiled = torch.compile(
            lambda s: distill_loss(s * 1, teacher, overwrite_logits=True), fullgraph=True, backend="aot_eager"
        )
        compiled(student).backward()
        torch.testing.assert_close(student.grad, loss_and_gradient(student, teacher)[1])

    def test_overlapping_rows_are_refused(self):
        student = torch.randn(1, 50, requires_grad=True)
        with pytest.raises(RuntimeError, match="rows that do not overlap"):
            distill_loss((student * 1).expand(3, 50), torch.randn(3, 50), overwrite_logits=True)

    def test_second_backward_raises(self):
        student, teacher = pair(3, 50)
        loss = distill_loss(student * 1, teacher, overwrite_logits=True)
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="expected one backward"):
            loss.backward()

    def test_second_slice_of_one_tensor_is_refused_in_backward(self):
        student, teacher = pair(4, 50)
        logits = student * 1
        losses = [distill_loss(part, teacher[:2], overwrite_logits=True) for part in (logits[:2], logits[2:])]
        with pytest.raises(RuntimeError, match="got a change to their memory"):
            losses[0].backward()

    def test_arguments_within_the_logits(self):
        student, teacher = pair(4, 9)
        options = {"reduction": "none"}
        for name, pick in (("temperature", lambda x: x[0, 0]), ("row_weight", lambda x: x[0, :4])):
            student.data.abs_()
            logits = student * 1
            want = distill_loss(student, teacher, **{name: pick(student.detach())}, **options)
            got = distill_loss(logits, teacher, **{name: pick(logits.detach())}, **options, overwrite_logits=True)
            assert torch.equal(got, want)

    def test_refused_forward_mode_changes_nothing(self):
        student, teacher = pair(3, 9)
        with fwAD.dual_level():
            for student_tangent in (True, False):
                logits, other = student * 1, teacher
                if student_tangent:
                    given = fwAD.make_dual(logits, torch.ones(3, 9)), other
                else:
                    given = logits, fwAD.make_dual(other, torch.ones(3, 9))
                with pytest.raises(NotImplementedError, match="tamis.distill_loss: forward-mode"):
                    distill_loss(*given, overwrite_logits=True)
                assert torch.equal(logits, student)

    def test_leaf_is_refused(self):
        student, teacher = pair(3, 50)
        with torch.no_grad():
            assert distill_loss(student, teacher, overwrite_logits=True) == distill_loss(student, teacher)
        with pytest.raises(ValueError, match="overwrite_logits: expected student_logits that are not a leaf"):
            distill_loss(student, teacher, overwrite_logits=True)

    def test_teacher_in_the_same_memory_is_refused(self):
        logits = torch.randn(7, 50, requires_grad=True) * 1
        for teacher in (logits.detach()[:-1], logits.detach()[1:]):
            with pytest.raises(RuntimeError, match="expected teacher_logits in memory apart from student_logits"):
                distill_loss(logits[1:], teacher, overwrite_logits=True)

    def test_view_of_a_leaf_is_refused(self):
        student, teacher = pair(3, 50)
        for view in (student[:, :], student.view(3, 50)):
            with pytest.raises(ValueError, match="overwrite_logits: expected student_logits that are not a leaf"):
                distill_loss(view, teacher, overwrite_logits=True)

    def test_whoever_saved_the_logits_is_told(self):
        student, teacher = pair(3, 50)
        logits = student.exp()  # saves its result
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            distill_loss(logits, teacher, overwrite_logits=True).backward()

    def test_without_a_gradient_nothing_is_written(self):
        student, teacher = pair(3, 50)
        before = student.detach().clone()
        with torch.no_grad():
            distill_loss(student * 1, teacher, overwrite_logits=True)
        assert torch.equal(student, before)

    def test_module(self):
        student, teacher = pair(3, 50)
        DistillationLoss(overwrite_logits=True)(student * 1, teacher).backward()
        assert torch.equal(student.grad, loss_and_gradient(student, teacher)[1])
