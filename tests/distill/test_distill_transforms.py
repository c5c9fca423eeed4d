"""distill_loss under torch.compile, export, autocast, torch.func and forward mode."""

import pytest
import torch
from helpers import loss_and_gradient, pair
from tamis.distill import distill_loss


class TestTransforms:
    """Each by our own message; the reference, being plain torch, serves torch.func."""

    REFUSED = r"tamis.distill_loss: torch.func transforms .* got auto"

    def test_vmap(self):
        student, teacher = (x.detach().view(2, 3, 5) for x in pair(6, 5))
        with pytest.raises(NotImplementedError, match=self.REFUSED):
            torch.func.vmap(distill_loss)(student, teacher)

    def test_gradient(self):
        student, teacher = (x.detach() for x in pair(3, 5))
        with pytest.raises(NotImplementedError, match=self.REFUSED):
            torch.func.grad(distill_loss)(student, teacher)
        got = torch.func.grad(lambda s: distill_loss(s, teacher, impl="reference"))(student)
        torch.testing.assert_close(got, loss_and_gradient(student, teacher)[1])

    def test_a_batch_of_upstream_gradients(self):
        student, teacher = (x.detach() for x in pair(3, 5))
        got = torch.autograd.functional.jacobian(lambda s: distill_loss(s, teacher), student, vectorize=True)
        torch.testing.assert_close(got, loss_and_gradient(student, teacher)[1])

    def test_second_derivative_by_way_of_the_upstream_gradient(self):
        """Also where that is exactly 1, and would not be multiplied."""
        student, teacher = pair(3, 5)
        for upstream in (1.0, 2.0):
            weight = torch.tensor(upstream, requires_grad=True)
            loss = weight * distill_loss(student, teacher)
            (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
            with pytest.raises(NotImplementedError, match="second derivative"):
                torch.autograd.grad(gradient.norm(), weight)

    def test_forward_mode(self):
        student, teacher = (x.detach() for x in pair(3, 5))
        with pytest.raises(NotImplementedError, match=self.REFUSED):
            torch.func.jvp(lambda s: distill_loss(s, teacher), (student,), (torch.ones(3, 5),))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(student, torch.ones(3, 5))
            for enabled in (True, False):
                with torch.set_grad_enabled(enabled), pytest.raises(NotImplementedError, match="forward-mode"):
                    distill_loss(dual, teacher)
            assert torch.equal(distill_loss(student, teacher), distill_loss(student.clone(), teacher))


class TestCompile:
    def test_one_graph_for_twenty_temperatures(self):
        student, teacher = pair(6, 50)
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        torch._dynamo.reset()
        compiled = torch.compile(
            lambda s, t, tau: distill_loss(2 * s, t, temperature=tau), fullgraph=True, backend=backend
        )
        for tau in torch.linspace(0.5, 5, 20):
            torch.testing.assert_close(
                compiled(student, teacher, tau), distill_loss(2 * student, teacher, temperature=tau)
            )
        assert len(graphs) == 1

    def test_loss_and_gradient(self):
        student, teacher = pair(6, 50)
        target = torch.tensor([0, 1, 2, -100, 4, 5])

        def loss(s, t, y):
            out, stats = distill_loss(2 * s, t, y, alpha=0.5, temperature=2.0, return_stats=True)
            return 3 * out, stats.student_entropy

        want, entropy = loss(student, teacher, target)
        torch._dynamo.reset()
        got, compiled_entropy = torch.compile(loss, fullgraph=True)(student, teacher, target)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(compiled_entropy, entropy)
        torch.testing.assert_close(*[torch.autograd.grad(out, student)[0] for out in (got, want)])

    def test_bad_target_is_a_nan_row(self):
        student, teacher = pair(3, 50)
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda s, t, y: distill_loss(s, t, y, alpha=0.5, reduction="none"), fullgraph=True, backend="aot_eager"
        )
        loss = compiled(student, teacher, torch.tensor([0, 50, -3]))
        assert loss.isnan().tolist() == [False, True, True]

    def test_exports(self):
        class Model(torch.nn.Module):
            def forward(self, student, teacher):
                return distill_loss(student, teacher, temperature=2.0)

        rows = torch.export.Dim("rows")
        shapes = {"student": {0: rows}, "teacher": {0: rows}}
        program = torch.export.export(Model(), tuple(x.detach() for x in pair(4, 9)), dynamic_shapes=shapes)
        student, teacher = (x.detach() for x in pair(7, 9))
        assert torch.equal(program.module()(student, teacher), distill_loss(student, teacher, temperature=2.0))

    def test_autocast_keeps_float32_losses(self):
        hidden, weight = torch.randn(8, 16), torch.randn(32, 16, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            logits = hidden @ weight.T
            loss = distill_loss(logits, torch.randn(8, 32))
        assert (logits.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
        loss.backward()
        assert weight.grad.dtype == torch.float32
