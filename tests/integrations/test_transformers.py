"""The real Trainer on tiny random models, against the loss written out in plain torch."""

import copy
import importlib
import re
import runpy
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tamis.distill import DistillationLoss, LinearDistillationLoss
from tamis.integrations.transformers import DistillationLossFunction, DistillationTrainer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorWithFlattening,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

ROOT = Path(__file__).parents[2]
VOCABULARY, TEMPERATURE, ALPHA = 100, 2.0, 0.3
LOSSES = {"logits": DistillationLoss, "linear": partial(LinearDistillationLoss, chunk_size=5)}


def llama(hidden=32, vocabulary=VOCABULARY, seed=0, config=LlamaConfig, model=LlamaForCausalLM, **more):
    torch.manual_seed(seed)
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4, "head_dim": hidden // 4, "max_position_embeddings": 64, "pad_token_id": 0}
    made = model(config(vocab_size=vocabulary, initializer_range=0.3, **sizes, **more))
    return made.eval()


def models():
    return llama(32, seed=1), llama(48, seed=2)


def sentence(length, seed):
    """input_ids and labels; some of the labels do not count."""
    ids = torch.randint(1, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[: seed % 4] = -100
    return {"input_ids": ids, "labels": labels}


def padded(features, length=12):
    def pad(name, value):
        return torch.stack([F.pad(x[name], (0, length - len(x[name])), value=value) for x in features])

    batch = {"input_ids": pad("input_ids", 0), "labels": pad("labels", -100)}
    return batch | {"attention_mask": (batch["input_ids"] != 0).long()}


SENTENCES = [sentence(length, seed) for seed, length in enumerate([12, 5, 9, 3, 7, 12, 4, 10])]


def arguments(path, **options):
    defaults = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": 1, "optim": "sgd"}
    defaults |= {"learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "save_strategy": "no"}
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no"}
    return TrainingArguments(output_dir=str(path), **defaults | quiet | options)


def written_out(student_logits, teacher_logits, labels, items=None):
    """alpha T^2 KL + (1 - alpha) CE of token t's logits and label t + 1, the mean of those labelled."""
    s, t, y = student_logits[:, :-1], teacher_logits.detach().float()[:, :-1], labels[:, 1:]
    s, t, y = s[y != -100], t[y != -100], y[y != -100]
    soft = F.kl_div(F.log_softmax(s / TEMPERATURE, -1), F.softmax(t / TEMPERATURE, -1), reduction="none").sum(-1)
    rows = ALPHA * TEMPERATURE**2 * soft + (1 - ALPHA) * F.cross_entropy(s, y, reduction="none")
    return rows.sum() / (len(rows) if items is None else items)


def wanted(student, teacher, batch, width=VOCABULARY):
    """The loss, and its gradient for each parameter."""
    inputs = {name: value for name, value in batch.items() if name != "labels"} | {"use_cache": False}
    logits = [model(**inputs).logits[..., :width] for model in (student, teacher)]
    loss = written_out(*logits, batch["labels"])
    names, parameters = zip(*student.named_parameters(), strict=True)
    return loss.detach(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def trainer(kind, student, teacher, path, options=None, **more):
    """Of one class or the other; both take the same steps."""
    loss = LOSSES[kind](temperature=TEMPERATURE, alpha=ALPHA, **options or {})
    more = {"data_collator": padded, "train_dataset": SENTENCES, "args": arguments(path)} | more
    return DistillationTrainer(student, teacher=teacher, loss=loss, **more)


def with_function(student, teacher, path, **more):
    function = DistillationLossFunction(student, teacher, DistillationLoss(temperature=TEMPERATURE, alpha=ALPHA))
    more = {"data_collator": padded, "train_dataset": SENTENCES, "args": arguments(path)} | more
    return Trainer(student, compute_loss_func=function, **more)


TRAINERS = {"logits": partial(trainer, "logits"), "linear": partial(trainer, "linear"), "function": with_function}


def step(make, student, teacher, path, **more):
    """The loss that one step of SGD at learning rate 1 logs, and its gradient."""
    trained = copy.deepcopy(student)
    before = {name: value.detach().clone() for name, value in trained.named_parameters()}
    run = make(trained, teacher, path, **more)
    run.get_train_dataloader = lambda: run.accelerator.prepare(
        torch.utils.data.DataLoader(
            run.train_dataset, batch_size=run.args.train_batch_size, collate_fn=run.data_collator
        )
    )
    loss = run.train().training_loss
    after = dict(trained.named_parameters())
    return torch.tensor(loss), {name: before[name] - after[name].detach() for name in before}


def assert_same(got, want, **tolerance):
    tolerance = {"rtol": 2e-4, "atol": 2e-6} | tolerance
    torch.testing.assert_close(got[0], want[0], **tolerance)
    for name, gradient in want[1].items():
        torch.testing.assert_close(got[1][name], gradient, msg=lambda words, name=name: f"{name}: {words}", **tolerance)


@pytest.fixture(autouse=True)
def plain_torch():
    torch.use_deterministic_algorithms(False)  # Trainer and the models are torch's
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small models take turns longer than they compute
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", TRAINERS)
class TestStep:
    def test_is_the_loss_written_out(self, kind, tmp_path):
        student, teacher = models()
        got = step(TRAINERS[kind], student, teacher, tmp_path)
        assert_same(got, wanted(student, teacher, padded(SENTENCES[:4])))
        assert all(parameter.grad is None for parameter in teacher.parameters())

    def test_accumulated_steps_are_one_batch(self, kind, tmp_path):
        """Batches of unequal numbers of labels."""
        student, teacher = models()
        args = arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
        got = step(TRAINERS[kind], student, teacher, tmp_path, args=args)
        assert_same(got, wanted(student, teacher, padded(SENTENCES)))

    def test_packed_sequences(self, kind, tmp_path):
        """One row of all sentences gives what padded rows of one each give."""
        student, teacher = models()
        student.set_attn_implementation("sdpa")
        got = step(TRAINERS[kind], student, teacher, tmp_path, data_collator=DataCollatorWithFlattening())
        assert_same(got, wanted(student, teacher, padded(SENTENCES[:4])))

    def test_nothing_to_predict(self, kind, tmp_path):
        student, teacher = models()
        data = [x | {"labels": torch.full_like(x["labels"], -100)} for x in SENTENCES]
        loss, gradient = step(TRAINERS[kind], student, teacher, tmp_path, train_dataset=data)
        assert loss == 0
        assert not any(x.any() for x in gradient.values())

    @pytest.mark.parametrize("widths", [(100, 128), (128, 100)])
    def test_other_widths(self, kind, widths, tmp_path):
        """One of the vocabularies is padded."""
        student, teacher = llama(32, widths[0], seed=1), llama(48, widths[1], seed=2)
        got = step(TRAINERS[kind], student, teacher, tmp_path)
        assert_same(got, wanted(student, teacher, padded(SENTENCES[:4])))

    def test_softcap(self, kind, tmp_path):
        gemma = partial(llama, config=Gemma2Config, model=Gemma2ForCausalLM, attn_implementation="eager")
        student = gemma(32, seed=1, final_logit_softcapping=1.5)
        teacher = gemma(48, seed=2, final_logit_softcapping=2.5)
        got = step(TRAINERS[kind], student, teacher, tmp_path)
        assert_same(got, wanted(student, teacher, padded(SENTENCES[:4])), rtol=1e-3, atol=1e-5)

    def test_a_model_whose_loss_transformers_does_not_name(self, kind, tmp_path):
        """Trainer counts GPT-2's first labels, which nothing predicts, unless they are masked."""
        torch.manual_seed(3)
        sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32, "initializer_range": 0.3}
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        student = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes, **off)).eval()
        data = [x | {"labels": x["labels"].clone()} for x in SENTENCES]
        for each in data if kind == "function" else []:
            each["labels"][0] = -100
        got = step(TRAINERS[kind], student, llama(48, seed=2), tmp_path, train_dataset=data)
        assert_same(got, wanted(student, llama(48, seed=2), padded(SENTENCES[:4])))

    def test_bfloat16(self, kind, tmp_path):
        student, teacher = models()
        got = step(TRAINERS[kind], student, teacher, tmp_path, args=arguments(tmp_path, bf16=True))
        loss, gradient = wanted(student, teacher, padded(SENTENCES[:4]))
        torch.testing.assert_close(got[0], loss, rtol=0.05, atol=0)
        for name, value in gradient.items():
            assert F.cosine_similarity(got[1][name].flatten(), value.flatten(), 0) > 0.97, name

    def test_teacher_in_half_precision(self, kind, tmp_path):
        student, teacher = models()
        got = step(TRAINERS[kind], student, teacher.bfloat16(), tmp_path)
        assert_same(got, wanted(student, teacher, padded(SENTENCES[:4])), rtol=1e-3, atol=1e-4)

    def test_evaluates(self, kind, tmp_path):
        student, teacher = models()
        run = TRAINERS[kind](student, teacher, tmp_path, eval_dataset=SENTENCES[:4])
        loss, _ = wanted(student, teacher, padded(SENTENCES[:4]))
        assert run.evaluate()["eval_loss"] == pytest.approx(loss.item(), rel=1e-4)
        predicted = run.predict(SENTENCES[:4])
        assert predicted.metrics["test_loss"] == pytest.approx(loss.item(), rel=1e-4)
        batch = padded(SENTENCES[:4])
        logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.detach()
        torch.testing.assert_close(torch.tensor(predicted.predictions), logits, rtol=1e-4, atol=1e-4)

    def test_learns_and_saves_the_student_alone(self, kind, tmp_path):
        student, teacher = models()
        args = arguments(tmp_path, max_steps=6, learning_rate=0.05, save_strategy="steps", save_steps=6)
        run = TRAINERS[kind](student, teacher, tmp_path, args=args, eval_dataset=SENTENCES)
        before = run.evaluate()["eval_loss"]
        run.train()
        assert run.evaluate()["eval_loss"] < before
        saved = LlamaForCausalLM.from_pretrained(tmp_path / "checkpoint-6")
        for a, b in zip(saved.parameters(), student.parameters(), strict=True):
            assert torch.equal(a, b)


class TestPacking:
    """position_ids alone say where a sequence begins."""

    def batch(self, labels=None):
        packed = DataCollatorWithFlattening()([{"input_ids": x["input_ids"]} for x in SENTENCES[:3]])
        packed["labels"] = packed["input_ids"].clone()  # none at -100
        return packed

    @pytest.mark.parametrize("kind", LOSSES)
    def test_labels_across_boundaries_do_not_count(self, kind, tmp_path):
        student, teacher = models()
        rows = [{"input_ids": x["input_ids"], "labels": x["input_ids"]} for x in SENTENCES[:3]]
        got = step(TRAINERS[kind], student, teacher, tmp_path, data_collator=lambda _: self.batch())
        assert_same(got, wanted(student, teacher, padded(rows)))

    def test_rows_of_position_ids_that_go_on(self, tmp_path):
        """Left padding counts once, a row that starts anywhere is one sequence."""
        student, teacher = models()
        run = trainer("logits", student, teacher, tmp_path)
        ids = torch.arange(1, 13).view(2, 6)
        positions = torch.tensor([[1, 1, 0, 1, 2, 3], [7, 8, 9, 10, 11, 12]])
        batch = {"input_ids": ids, "labels": ids.clone(), "position_ids": positions}
        got = run.compute_loss(student, dict(batch))
        masked = batch | {"labels": ids.masked_fill(torch.tensor([[1, 1, 1, 0, 0, 0], [0] * 6]).bool(), -100)}
        torch.testing.assert_close(got.detach(), wanted(student, teacher, masked)[0])


@pytest.mark.parametrize("kind", LOSSES)
def test_left_padding(kind, tmp_path):
    """A token behind padding is predicted by none, as the first of a row on the right."""

    def on_the_left(features):
        batch = padded(features)
        shifts = (batch["attention_mask"] == 0).sum(-1).tolist()
        batch = {
            name: torch.stack([x.roll(n) for x, n in zip(rows, shifts, strict=True)]) for name, rows in batch.items()
        }
        return batch  # position_ids would tell too; without them Llama's, being relative, round otherwise

    student, teacher = models()
    rows = [{"input_ids": x["input_ids"], "labels": x["input_ids"]} for x in SENTENCES[:4]]
    got = step(TRAINERS[kind], student, teacher, tmp_path, data_collator=on_the_left, train_dataset=rows)
    assert_same(got, wanted(student, teacher, padded(rows)), rtol=1e-3, atol=2e-5)


class TestShiftedLabels:
    @pytest.mark.parametrize("kind", LOSSES)
    def test_are_taken_as_they_are(self, kind, tmp_path):
        student, teacher = models()
        batch = padded(SENTENCES[:4])
        want, _ = wanted(student, teacher, batch)
        shifted = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
        run = trainer(kind, student, teacher, tmp_path)
        got = run.compute_loss(student, batch | {"shift_labels": shifted, "labels": torch.zeros_like(shifted)})
        torch.testing.assert_close(got.detach(), want)


def test_logits_may_be_overwritten(tmp_path):
    student, teacher = models()
    make = partial(TRAINERS["logits"], options={"overwrite_logits": True})
    assert_same(step(make, student, teacher, tmp_path), wanted(student, teacher, padded(SENTENCES[:4])))


class TestLinear:
    def test_no_logits_are_held(self, tmp_path):
        """The largest tensor that lives at once is less than one model's logits."""
        student, teacher = llama(32, 20_000, seed=1), llama(48, 20_000, seed=2)
        batch, sizes = padded(SENTENCES), {}
        for kind in LOSSES:
            run = trainer(kind, student, teacher, tmp_path)
            with _Largest() as largest:
                run.compute_loss(student.train(), dict(batch), num_items_in_batch=50).backward()
            sizes[kind] = largest.numel
        weights = 20_000 * 48
        assert sizes["linear"] <= weights
        assert sizes["logits"] == batch["input_ids"].numel() * 20_000

    def test_evaluates_without_logits(self, tmp_path):
        student, teacher = models()
        run = trainer("linear", student, teacher, tmp_path, eval_dataset=SENTENCES)
        shapes = []
        student.lm_head.register_forward_hook(lambda module, args, output: shapes.append(output.shape[1]))
        run.evaluate()
        assert set(shapes) == {1}
        run.predict(SENTENCES)
        assert set(shapes) == {1, 12}

    def test_a_scale_behind_the_head(self, tmp_path):
        """Refused until it is named."""
        granite = llama(32, seed=1, config=GraniteConfig, model=GraniteForCausalLM, logits_scaling=4.0)
        teacher = llama(48, seed=2)
        with pytest.raises(
            ValueError, match=r"DistillationTrainer: loss: expected student logits of .*got a model with"
        ):
            trainer("linear", granite, teacher, tmp_path).train()
        got = step(partial(TRAINERS["linear"], options={"student_logit_scale": 0.25}), granite, teacher, tmp_path)
        assert_same(got, wanted(granite, teacher, padded(SENTENCES[:4])))
        with pytest.raises(ValueError, match="expected teacher logits of"):
            trainer("linear", teacher, granite, tmp_path).train()

    def test_a_bias(self, tmp_path):
        student, teacher = models()
        for model in (student, teacher):
            model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, VOCABULARY))
        got = step(TRAINERS["linear"], student, teacher, tmp_path)
        assert_same(got, wanted(student, teacher, padded(SENTENCES[:4])))

    def test_tied_embeddings(self, tmp_path):
        student, teacher = llama(32, seed=1, tie_word_embeddings=True), llama(48, seed=2)
        got = step(TRAINERS["linear"], student, teacher, tmp_path)
        assert_same(got, wanted(student, teacher, padded(SENTENCES[:4])))


class _Largest(torch.utils._python_dispatch.TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            (
                {"loss": torch.nn.MSELoss()},
                TypeError,
                "loss: expected DistillationLoss or LinearDistillationLoss, got MSE",
            ),
            ({"loss": DistillationLoss(reduction="sum")}, ValueError, "loss: expected reduction='mean', got 'sum'"),
            ({"loss": DistillationLoss(ignore_index=0)}, ValueError, "loss: expected ignore_index=-100, got 0"),
            ({"loss": DistillationLoss(return_stats=True)}, ValueError, "loss: expected return_stats=False, got True"),
            ({"compute_loss_func": print}, ValueError, "compute_loss_func: expected none beside loss"),
        ],
    )
    def test_names_the_argument(self, change, error, words, tmp_path):
        student, teacher = models()
        options = {"teacher": teacher, "loss": DistillationLoss()} | change
        with pytest.raises(error, match=f"tamis.DistillationTrainer: {words}"):
            DistillationTrainer(student, arguments(tmp_path), **options)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"_n_gpu": 2}, r"one GPU a process .*, got 2 in this one"),
            ({"parallelism_config": SimpleNamespace(cp_size=2)}, "sequences that are not split .*, got cp_size=2"),
            ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0 .*, got 0.1"),
            ({"torch_compile": True}, "no torch_compile beside LinearDistillationLoss, got torch_compile=True"),
        ],
    )
    def test_arguments(self, change, words, tmp_path):
        student, teacher = models()
        args = arguments(tmp_path)
        for name, value in change.items():
            setattr(args, name, value)
        with pytest.raises(ValueError, match=f"tamis.DistillationTrainer: args: expected {words}"):
            DistillationTrainer(student, args, teacher=teacher, loss=LinearDistillationLoss())

    def test_models(self, tmp_path):
        student, teacher = models()
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        masked = BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, **sizes))
        args = arguments(tmp_path)
        with pytest.raises(TypeError, match="model: expected a causal language model, got BertForMaskedLM"):
            DistillationTrainer(masked, args, teacher=teacher, loss=DistillationLoss())
        with pytest.raises(TypeError, match="teacher: expected a causal language model, got BertForMaskedLM"):
            DistillationTrainer(student, args, teacher=masked, loss=DistillationLoss())
        teacher.lm_head = torch.nn.Sequential(teacher.lm_head)
        DistillationTrainer(student, args, teacher=teacher, loss=DistillationLoss())
        with pytest.raises(TypeError, match=r"teacher: expected a torch.nn.Linear over .* with torch\..*\.Sequential"):
            DistillationTrainer(student, args, teacher=teacher, loss=LinearDistillationLoss())

    def test_a_batch_without_labels(self, tmp_path):
        student, teacher = models()
        run = trainer("linear", student, teacher, tmp_path)
        with pytest.raises(
            ValueError, match="tamis.DistillationTrainer: labels: expected labels in the batch, got None"
        ):
            run.compute_loss(student, {"input_ids": torch.ones(1, 3, dtype=torch.long)})

    def test_function(self):
        student, teacher = models()
        with pytest.raises(
            TypeError, match="DistillationLossFunction: loss: expected DistillationLoss, got LinearDist"
        ):
            DistillationLossFunction(student, teacher, LinearDistillationLoss())
        function = DistillationLossFunction(student, teacher, DistillationLoss())
        ids = torch.ones(1, 3, dtype=torch.long)
        outputs = student(ids)
        with pytest.raises(ValueError, match="student: expected a call by keyword before each loss, got none"):
            function(outputs, ids)
        outputs = student(input_ids=ids)
        copy.deepcopy(student)(input_ids=ids)  # has the hook, but is not the student
        function(outputs, ids)
        copy.deepcopy(student)(input_ids=ids)
        with pytest.raises(ValueError, match="student: expected a call by keyword before each loss, got none"):
            function(outputs, ids)


def test_example_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["distill_trainer.py", "8"])
    runpy.run_path(str(ROOT / "examples" / "distill_trainer.py"), run_name="__main__")
    before, after = re.search(r"distillation loss (\S+) -> (\S+)", capsys.readouterr().out).groups()
    assert float(after) < float(before)


def test_says_what_to_install_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "tamis.integrations.transformers")
    with pytest.raises(ImportError, match=r"tamis.integrations.transformers: .* pip install 'tamis\[transformers\]'"):
        importlib.import_module("tamis.integrations.transformers")
