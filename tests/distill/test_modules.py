"""The drop-in modules: what they compute, and what a trainer does with a module."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from tamis.distill import DistillationLoss, EmbeddingDistillationLoss, LinearDistillationLoss, linear_distill_loss

LINEAR = {"temperature": 2.0, "alpha": 0.5, "divergence": "jsd", "chunk_size": 2, "student_softcap": 3.0}
EMBEDDING = {"temperature": 2.0, "alpha": 0.4, "embedding_weight": 0.7, "score_weight": 1.3}


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


def linear_models(rows=6, classes=11, dtype=torch.float32):
    """Hidden states and heads of both models, and a target; the student's want gradients."""
    student = [random(rows, 5, seed=1, dtype=dtype), random(classes, 5, seed=2, dtype=dtype)]
    teacher = [random(rows, 7, seed=3, dtype=dtype), random(classes, 7, seed=4, dtype=dtype)]
    return [x.requires_grad_() for x in student], teacher, torch.arange(rows) % classes


class TestLinear:
    def test_is_the_function(self):
        student, teacher, target = linear_models()
        bias, weight = random(11, seed=5).requires_grad_(), torch.tensor([1.0, 2, 0, 1, 1, 3])
        more = {"student_bias": bias, "teacher_bias": random(11, seed=6), "row_weight": weight, "num_items_in_batch": 9}
        got = LinearDistillationLoss(**LINEAR)(*student, *teacher, target, **more)
        want = linear_distill_loss(*student, *teacher, target, **more, **LINEAR)
        assert torch.equal(got, want)
        for a, b in zip(gradients(got, *student, bias), gradients(want, *student, bias), strict=True):
            assert torch.equal(a, b)

    def test_is_the_loss_of_logits_held_whole(self):
        student, teacher, target = linear_models(dtype=torch.float64)
        got = LinearDistillationLoss(temperature=2.0, alpha=0.3, chunk_size=4)(*student, *teacher, target)
        logits = F.linear(*student), F.linear(*teacher)
        want = DistillationLoss(temperature=2.0, alpha=0.3)(*logits, target)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(gradients(got, *student), gradients(want, *student))

    def test_returns_statistics(self):
        student, teacher, _ = linear_models()
        loss, stats = LinearDistillationLoss(return_stats=True)(*student, *teacher)
        assert (loss.shape, stats.agree.shape) == ((), (6,))

    @pytest.mark.parametrize(
        "options",
        [{"temperature": 0}, {"alpha": 2}, {"beta": "a"}, {"vocab_size": 0}, {"chunk_size": 0}, {"chunk_size": 1.5}],
    )
    def test_refuses_at_once(self, options):
        with pytest.raises(
            (TypeError, ValueError), match=f"tamis.linear_distill_loss: {next(iter(options))}: expected"
        ):
            LinearDistillationLoss(**options)

    def test_owns_no_weights(self):
        module = LinearDistillationLoss(temperature=torch.tensor(2.0))
        assert not module.state_dict()
        assert "chunk_size=None" in repr(module)


def retriever(queries=4, documents=6, student=3, teacher=5, dtype=torch.float64):
    """Student queries and documents, teacher's, and targets."""
    q, d = random(queries, student, seed=1, dtype=dtype), random(documents, student, seed=2, dtype=dtype)
    tq, td = random(queries, teacher, seed=3, dtype=dtype), random(documents, teacher, seed=4, dtype=dtype)
    return q.requires_grad_(), d.requires_grad_(), tq.requires_grad_(), td.requires_grad_(), torch.arange(queries) + 1


def written_out(scores, teacher_scores, target, temperature, alpha):
    """alpha T^2 KL + (1 - alpha) CE of each row."""
    soft = F.kl_div(
        F.log_softmax(scores / temperature, -1), F.softmax(teacher_scores / temperature, -1), reduction="none"
    )
    return alpha * temperature**2 * soft.sum(-1) + (1 - alpha) * F.cross_entropy(scores, target, reduction="none")


DISTANCES = {
    "l2": lambda a, b: (a - b).square().sum(-1).sqrt(),
    "mse": lambda a, b: (a - b).square().mean(-1),
    "cosine": lambda a, b: 1 - F.cosine_similarity(a, b, -1),
}


class TestEmbedding:
    @pytest.mark.parametrize("metric", DISTANCES)
    @pytest.mark.parametrize("symmetric", [True, False])
    def test_is_the_formula(self, symmetric, metric):
        q, d, tq, td, target = retriever()
        loss = EmbeddingDistillationLoss(3, 5, metric=metric, **EMBEDDING).double()
        weight = loss.projection.weight
        got = loss(q, tq, td, target, student_documents=d if symmetric else None)
        matched = DISTANCES[metric](q @ weight.T, tq).mean()
        if symmetric:
            matched = matched + DISTANCES[metric](d @ weight.T, td).mean()
        scores = q @ d.T if symmetric else q @ weight.T @ td.T
        want = 0.7 * matched + 1.3 * written_out(scores, tq @ td.T, target, 2.0, 0.4).mean()
        torch.testing.assert_close(got, want)
        wanted = [q, d, weight] if symmetric else [q, weight]
        torch.testing.assert_close(gradients(got, *wanted), gradients(want, *wanted))
        got = loss(q, tq, td, target, student_documents=d if symmetric else None)
        for gradient in torch.autograd.grad(got, [tq, td], allow_unused=True):
            assert gradient is None

    @pytest.mark.parametrize("metric", DISTANCES)
    def test_gradcheck(self, metric):
        q, d, tq, td, target = retriever(dtype=torch.float64)
        loss = EmbeddingDistillationLoss(3, 5, metric=metric, **EMBEDDING).double()

        def run(queries, documents, weight):
            call = (queries, tq.detach(), td.detach(), target)
            return torch.func.functional_call(
                loss, {"projection.weight": weight}, call, {"student_documents": documents}
            )

        assert torch.autograd.gradcheck(run, (q, d, loss.projection.weight))

    @pytest.mark.parametrize("metric", DISTANCES)
    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_equal_embeddings_have_no_gradient(self, metric, value):
        student = torch.full((4, 5), value, requires_grad=True)
        loss = EmbeddingDistillationLoss(5, 5, metric=metric, score_weight=0)(student, student.detach().clone())
        (gradient,) = gradients(loss, student)
        assert gradient.abs().max() <= 1e-7
        assert loss.abs() <= 1e-6 or (metric, value) == ("cosine", 0.0)

    def test_queries_alone(self):
        q, _, tq, td, _ = retriever()
        loss = EmbeddingDistillationLoss(3, 5, score_weight=0).double()
        torch.testing.assert_close(loss(q, tq), DISTANCES["l2"](loss.projection(q), tq).mean())
        assert torch.equal(loss(q, tq), loss(q, tq, td))

    def test_scores_alone(self):
        q, d, tq, td, _ = retriever()
        loss = EmbeddingDistillationLoss(3, 5, embedding_weight=0, divergence="reverse_kl").double()
        got = loss(q, tq, td, student_documents=d)
        assert torch.equal(got, linear_distill_loss(q, d, tq, td, divergence="reverse_kl"))
        assert gradients(loss(q, tq, td), loss.projection.weight)[0].abs().max() > 0

    def test_projection(self):
        assert isinstance(EmbeddingDistillationLoss(5, 5).projection, torch.nn.Identity)
        assert isinstance(EmbeddingDistillationLoss(5, 5, projection="none").projection, torch.nn.Identity)
        assert EmbeddingDistillationLoss(5, 5, projection="linear").projection.weight.shape == (5, 5)
        assert list(EmbeddingDistillationLoss(3, 5).state_dict()) == ["projection.weight"]
        assert EmbeddingDistillationLoss(3, 5).projection.weight.shape == (5, 3)

    def test_asymmetric_inference_is_what_was_trained(self):
        """Where the projected query is the teacher's, scores and embeddings leave nothing to learn."""
        _, _, tq, td, _ = retriever()
        loss = EmbeddingDistillationLoss(5, 5, projection="linear").double()
        torch.nn.init.eye_(loss.projection.weight)
        assert loss(tq, tq, td).abs() < 1e-12
        torch.testing.assert_close(loss.projection(tq) @ td.T, tq @ td.T)

    @pytest.mark.parametrize("symmetric", [True, False])
    @pytest.mark.parametrize("metric", DISTANCES)
    def test_what_does_not_count_may_hold_anything(self, metric, symmetric):
        q, d, tq, td, target = retriever()
        loss = EmbeddingDistillationLoss(3, 5, metric=metric, **EMBEDDING).double()
        documents = d if symmetric else None
        want = loss(q[:2], tq[:2], td, target[:2], student_documents=documents, row_weight=torch.tensor([1.0, 2.0]))
        with torch.no_grad():
            q[2:], tq[2:] = float("nan"), float("inf")
        target[3] = -100
        weight = torch.tensor([1.0, 2, 0, 5])
        got = loss(q, tq, td, target, student_documents=documents, row_weight=weight)
        torch.testing.assert_close(got, want)
        for gradient in gradients(got, q, loss.projection.weight):
            assert gradient.isfinite().all()

    def test_no_query_counts(self):
        q, d, tq, td, target = retriever()
        loss = EmbeddingDistillationLoss(3, 5, alpha=0.5).double()
        got = loss(q, tq, td, torch.full_like(target, -100), student_documents=d)
        assert got == 0
        for gradient in gradients(got, q, d, loss.projection.weight):
            assert not gradient.any()
        assert loss(q[:0], tq[:0], td, target[:0]) == 0

    def test_documents_of_another_dtype_and_half_precision(self):
        q, _, tq, td, target = retriever(dtype=torch.float32)
        loss = EmbeddingDistillationLoss(3, 5, **EMBEDDING)
        want = loss(q, tq, td.half().float(), target)
        torch.testing.assert_close(loss(q, tq, td.half(), target), want)
        torch.testing.assert_close(loss(q, tq.half(), td.half(), target), want, rtol=1e-3, atol=1e-3)
        half = loss.bfloat16()(q.bfloat16(), tq.bfloat16(), td, target)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, want, rtol=0.05, atol=0.05)

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"student_dim": 0}, ValueError, "student_dim: expected at least 1, got 0"),
            ({"teacher_dim": 2.0}, TypeError, "teacher_dim: expected an integer, got float"),
            ({"projection": "mlp"}, ValueError, "projection: expected auto or linear or none, got 'mlp'"),
            (
                {"projection": "none"},
                ValueError,
                "projection: expected auto or linear from 3 to 5 dimensions, got 'none'",
            ),
            ({"metric": "l1"}, ValueError, "metric: expected l2 or mse or cosine, got 'l1'"),
            ({"embedding_weight": -1.0}, ValueError, "embedding_weight: expected a number within 0..1e37, got -1.0"),
            ({"score_weight": "a"}, TypeError, "score_weight: expected a number, got str"),
            ({"score_weight": 0, "embedding_weight": 0}, ValueError, "score_weight: expected above 0 beside an embed"),
            ({"temperature": 0}, ValueError, "temperature: expected a number within .*, got 0"),
            ({"chunk_size": 0}, ValueError, "chunk_size: expected at least 1, got 0"),
        ],
    )
    def test_refuses_at_once(self, change, error, words):
        with pytest.raises(error, match=f"tamis.EmbeddingDistillationLoss: {words}"):
            EmbeddingDistillationLoss(**{"student_dim": 3, "teacher_dim": 5} | change)

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"student_queries": [1.0]}, TypeError, "student_queries: expected a Tensor, got list"),
            ({"student_queries": torch.zeros(4, 5)}, ValueError, r"student_queries: expected \[B, 3\], got \[4, 5\]"),
            ({"student_queries": torch.zeros(4, 3).long()}, TypeError, "student_queries: expected float32, .*int64"),
            (
                {"student_queries": torch.zeros(4, 3).half()},
                TypeError,
                "student_queries: expected the projection's torch.f",
            ),
            ({"teacher_queries": torch.zeros(4, 4)}, ValueError, r"teacher_queries: expected \[B, 5\], got \[4, 4\]"),
            (
                {"teacher_queries": torch.zeros(3, 5)},
                ValueError,
                r"teacher_queries: expected leading axes \[4\], got \[3\]",
            ),
            ({"teacher_queries": torch.zeros(4, 5).double()}, TypeError, "teacher_queries: expected float64 beside"),
            ({"teacher_documents": None}, ValueError, "teacher_documents: expected the documents for scores.*got None"),
            (
                {"teacher_documents": torch.zeros(6, 3)},
                ValueError,
                r"teacher_documents: expected \[D, 5\], got \[6, 3\]",
            ),
            ({"teacher_documents": torch.zeros(0, 5)}, ValueError, "teacher_documents: expected at least one document"),
            (
                {"teacher_documents": torch.zeros(6, 5, device="meta")},
                ValueError,
                "teacher_documents: expected device cpu",
            ),
            ({"student_documents": torch.zeros(5, 3)}, ValueError, "student_documents: expected 6 documents, got 5"),
            (
                {"student_documents": torch.zeros(6, 5)},
                ValueError,
                r"student_documents: expected \[D, 3\], got \[6, 5\]",
            ),
            (
                {"student_documents": torch.zeros(6, 3).half()},
                TypeError,
                "student_documents: expected student_queries'",
            ),
            ({"target": torch.tensor([0, 1, 2, 6])}, ValueError, "target: expected 0 to 5, or -100, got 6"),
            ({"target": torch.zeros(3).long()}, ValueError, r"target: expected shape \[4\], got \[3\]"),
            ({"row_weight": torch.tensor([1.0, 1, 1, -1])}, ValueError, "row_weight: expected 0 or a number"),
            ({"num_items_in_batch": 0}, ValueError, "num_items_in_batch: expected a number within"),
        ],
    )
    def test_names_the_argument(self, change, error, words):
        call = {
            "student_queries": torch.zeros(4, 3),
            "teacher_queries": torch.zeros(4, 5),
            "teacher_documents": torch.zeros(6, 5),
        }
        with pytest.raises(error, match=f"tamis.EmbeddingDistillationLoss: {words}"):
            EmbeddingDistillationLoss(3, 5)(**call | change)

    def test_names_a_missing_target(self):
        loss = EmbeddingDistillationLoss(3, 5, alpha=0.5)
        with pytest.raises(ValueError, match="EmbeddingDistillationLoss: target: expected a target for alpha=0.5"):
            loss(torch.zeros(4, 3), torch.zeros(4, 5), torch.zeros(6, 5))


def _logits_call(rows=slice(None)):
    s, t = random(6, 9, seed=1), random(6, 9, seed=2)
    return DistillationLoss(temperature=2.0, alpha=0.5), (s[rows], t[rows], torch.arange(6)[rows]), {}


def _linear_call(rows=slice(None)):
    student, teacher, target = linear_models()
    call = (student[0].detach()[rows], student[1].detach(), teacher[0][rows], teacher[1], target[rows])
    return LinearDistillationLoss(temperature=2.0, alpha=0.5, chunk_size=2), call, {}


def _embedding_call(rows=slice(None)):
    q, d, tq, td, target = (x.detach() for x in retriever(queries=6, documents=7, dtype=torch.float32))
    torch.manual_seed(0)
    loss = EmbeddingDistillationLoss(3, 5, temperature=2.0, alpha=0.5)
    return loss, (q[rows], tq[rows], td, target[rows]), {"student_documents": d}


@pytest.mark.parametrize("make", [_logits_call, _linear_call, _embedding_call])
class TestAsATrainerUsesIt:
    def test_copies_pickles_and_loads(self, make):
        loss, call, more = make()
        want = loss(*call, **more)
        for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), torch.nn.Sequential(loss)[0]):
            assert torch.equal(copied(*call, **more), want)
            assert repr(copied) == repr(loss)
        fresh = copy.deepcopy(loss)
        for parameter in fresh.parameters():
            torch.nn.init.zeros_(parameter)
        fresh.load_state_dict(loss.state_dict())
        assert torch.equal(fresh(*call, **more), want)

    def test_compiles(self, make):
        loss, call, more = make()
        leaf = call[0].clone().requires_grad_()
        torch._dynamo.reset()
        want = loss(2 * leaf, *call[1:], **more)
        got = torch.compile(lambda x: loss(2 * x, *call[1:], **more), fullgraph=True, backend="aot_eager")(leaf)
        torch.testing.assert_close(got, want)
        inputs = (leaf, *loss.parameters())
        torch.testing.assert_close(gradients(got, *inputs), gradients(want, *inputs))

    def test_autocast(self, make):
        loss, call, more = make()
        leaf = call[0].clone().requires_grad_()
        want = loss(leaf, *call[1:], **more)
        with torch.autocast("cpu", torch.bfloat16):
            got = loss(leaf, *call[1:], **more)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=0.03, atol=0.03)
        (gradient,) = gradients(got, leaf)
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, gradients(want, leaf)[0], rtol=0.1, atol=0.03)

    def test_two_unequal_parts_are_one_batch(self, make):
        loss, call, more = make()
        leaf = call[0].clone().requires_grad_()
        inputs = (leaf, *loss.parameters())
        want = gradients(loss(leaf, *call[1:], **more), *inputs)
        total = [torch.zeros_like(x) for x in inputs]
        for rows in (slice(0, 2), slice(2, 6)):
            _, part, more = make(rows)
            value = loss(leaf[rows], *part[1:], **more, num_items_in_batch=torch.tensor(6))
            total = [x + y for x, y in zip(total, gradients(value, *inputs), strict=True)]
        torch.testing.assert_close(total, list(want))
