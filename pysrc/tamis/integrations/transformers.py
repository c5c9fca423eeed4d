"""Distillation of causal language models in Hugging Face's Trainer: token t predicts label t + 1.

Labels of -100 count nowhere, nor does the first token of a packed sequence, which is where position_ids do not go up by
one. The mean is over all that count in the accumulated batch. Vocabularies padded to other widths are read up to the
narrower one, unless the loss has a vocab_size. Source of the loss: 2301.12923 section 1.
"""

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.checks import fail
from ..distill import DistillationLoss, LinearDistillationLoss, distill_loss, linear_distill_loss

try:
    from transformers import Trainer
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise  # what it needs itself
    what = "transformers and accelerate: pip install 'tamis[transformers]'"
    raise ImportError(f"tamis.integrations.transformers: expected {what}") from error

IGNORED = -100  # the label that Trainer does not count
_NOT_THE_TEACHERS = ("labels", "shift_labels", "num_items_in_batch", "logits_to_keep", "output_hidden_states")
_BEHIND_A_HEAD = ("chunk_size", "student_softcap", "teacher_softcap", "student_logit_scale", "teacher_logit_scale")


class DistillationTrainer(Trainer):
    """transformers.Trainer whose loss is distillation from `teacher`, in training and in evaluation.

        loss = LinearDistillationLoss(temperature=2.0, alpha=0.5)
        DistillationTrainer(student, args, teacher=teacher, loss=loss, train_dataset=...).train()

    With LinearDistillationLoss neither model's logits are held. One position's are computed all the same, and the first
    step compares them with hidden states times head, so that a model which does more behind its head is refused and not
    mistaught: config.final_logit_softcapping is known, other scales are logit scales of `loss`. Evaluation that returns
    logits (compute_metrics, predict) holds them.

    Args:
        model, args, and by name all others: Trainer's, but compute_loss_func. The data collator's labels are masked
            where no token predicts them, so that Trainer does not count them.
        teacher: a causal language model of the same tokens, given the student's inputs and no gradient. It is put into
            eval mode, and onto Trainer's device unless it is quantized or has a device map.
        loss: of reduction "mean", ignore_index -100, and no statistics.
    Raises:
        TypeError, ValueError: an argument; a model that is not causal or, for LinearDistillationLoss, no linear head
            over hidden states; several GPUs in one process (start one process each); sequences split between processes.
            Heads that are sharded between processes (FSDP, ZeRO-3) fail with LinearDistillationLoss.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        teacher: nn.Module,
        loss: DistillationLoss | LinearDistillationLoss,
        **others: Any,
    ) -> None:
        fn = "DistillationTrainer"
        _check_loss(fn, loss, DistillationLoss, LinearDistillationLoss)
        if others.get("compute_loss_func") is not None:
            fail(fn, "compute_loss_func", "none beside loss", others["compute_loss_func"])
        linear = isinstance(loss, LinearDistillationLoss)
        if args is not None:
            _check_arguments(fn, args, linear)
        super().__init__(model, args, **others | {"compute_loss_func": self._distilled})
        self.loss, self.linear = loss, linear
        for name, each in (("model", self.model), ("teacher", teacher)):
            _check_causal(fn, name, each)
            if self.linear:
                _check_head(fn, name, each)
        self.teacher = teacher.eval()
        if getattr(teacher, "hf_device_map", None) is None and getattr(teacher, "hf_quantizer", None) is None:
            teacher.to(self.args.device)
        self.data_collator: Callable[[list[Any]], Any] = partial(_collate, self.data_collator)
        self._holds_logits, self._compared = not self.linear, False

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        before, self._holds_logits = self._holds_logits, self._holds_logits or not prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self._holds_logits = before

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self._inputs: dict[str, Any] = inputs
        if self._holds_logits:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with _hidden_states(self.model) as self._hidden:
            return super().compute_loss(model, {**inputs, "logits_to_keep": 1}, return_outputs, num_items_in_batch)

    def _distilled(self, outputs: Any, labels: Tensor | None, num_items_in_batch: int | Tensor | None = None) -> Tensor:
        """Trainer's compute_loss_func, called by its compute_loss."""
        inputs, self._inputs = self._inputs, {}
        target, items = _target("DistillationTrainer", labels, inputs), _at_least_one(num_items_in_batch)
        with self.accelerator.autocast():
            if self._holds_logits:
                return _loss_of_logits(self.loss, outputs, self.teacher, inputs, target, items)
            student = _Head.of(self.model, self._hidden.pop(), outputs)
            with _hidden_states(self.teacher) as hidden, torch.no_grad():
                teacher_outputs = self.teacher(**_teachers(inputs), logits_to_keep=1)
            teacher = _Head.of(self.teacher, hidden.pop(), teacher_outputs).to(student.hidden.device)
            return self._loss_of_heads(student, teacher, target, items)

    def _loss_of_heads(self, student: "_Head", teacher: "_Head", target: Tensor, items: Tensor | None) -> Tensor:
        options = dict(self.loss.options)
        for name, head in (("student", student), ("teacher", teacher)):
            cap = options[f"{name}_softcap"] = options[f"{name}_softcap"] or head.softcap
            if not self._compared:
                _compare(name, head, options[f"{name}_logit_scale"], cap)
        self._compared = True
        options["vocab_size"] = options["vocab_size"] or _narrower(student.weight.shape[0], teacher.weight.shape[0])
        loss = linear_distill_loss(
            student.hidden,
            student.weight,
            teacher.hidden,
            teacher.weight,
            target.to(student.hidden.device),
            student_bias=student.bias,
            teacher_bias=teacher.bias,
            num_items_in_batch=items,
            **options,
        )
        assert isinstance(loss, Tensor)  # a tuple only with return_stats
        return loss


class DistillationLossFunction:
    """compute_loss_func for a Trainer of another class; where one is free to choose, DistillationTrainer does more.

        Trainer(student, args, compute_loss_func=DistillationLossFunction(student, teacher, DistillationLoss()), ...)

    Trainer shows such a function the student's outputs but not its inputs, which the teacher needs: a hook on the
    student keeps those of its last call until then. Sequences need labels of -100 at their first token, packed ones
    above all (DataCollatorWithFlattening's have them), or Trainer counts them in the mean. The teacher runs in its own
    dtype, and must be on the student's device.

    Args:
        student: the model that is trained; called by keyword.
        teacher: as of DistillationTrainer.
        loss: a DistillationLoss of reduction "mean", ignore_index -100, and no statistics.
    Raises:
        TypeError, ValueError: an argument; a model that is not causal; a call without the student's before it.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, loss: DistillationLoss) -> None:
        fn = "DistillationLossFunction"
        _check_loss(fn, loss, DistillationLoss)
        for name, each in (("student", student), ("teacher", teacher)):
            _check_causal(fn, name, each)
        self.teacher, self.loss = teacher.eval(), loss
        self._inputs: dict[str, Any] | None = None
        mine, its = weakref.ref(self), weakref.ref(student)

        def keep(called: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
            loss_function = mine()
            if loss_function is not None and called is its():  # not a copy of the student, which has this hook too
                loss_function._inputs = None if args else inputs

        student.register_forward_pre_hook(keep, with_kwargs=True)

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: int | Tensor | None = None) -> Tensor:
        """outputs: of the student, with logits [B, T, classes]; labels: [B, T]; the loss: 0-d."""
        fn, inputs, self._inputs = "DistillationLossFunction", self._inputs, None
        if inputs is None:
            fail(fn, "student", "a call by keyword before each loss", "none")
        target, items = _target(fn, labels, inputs), _at_least_one(num_items_in_batch)
        return _loss_of_logits(self.loss, outputs, self.teacher, inputs, target, items)


def _check_loss(fn: str, loss: object, *kinds: type[DistillationLoss] | type[LinearDistillationLoss]) -> None:
    if not isinstance(loss, kinds):
        fail(fn, "loss", " or ".join(kind.__name__ for kind in kinds), type(loss).__name__, TypeError)
    for name, wanted in (("reduction", "mean"), ("ignore_index", IGNORED), ("return_stats", False)):
        if loss.options[name] != wanted:
            fail(fn, "loss", f"{name}={wanted!r}", repr(loss.options[name]))


def _check_arguments(fn: str, args: Any, linear: bool) -> None:
    """What Trainer would do past its compute_loss_func, or more than once where there is one teacher."""
    parallel = getattr(args, "parallelism_config", None)
    for name in ("cp_size", "sp_size"):
        if getattr(parallel, name, 1) > 1:
            fail(fn, "args", "sequences that are not split between processes", f"{name}={getattr(parallel, name)}")
    if args.n_gpu > 1:
        fail(fn, "args", "one GPU a process (torchrun or accelerate launch)", f"{args.n_gpu} in this one")
    if args.label_smoothing_factor:
        fail(fn, "args", "label_smoothing_factor=0 (label_smoothing is the loss's)", args.label_smoothing_factor)
    if linear and args.torch_compile:
        fail(fn, "args", "no torch_compile beside LinearDistillationLoss", "torch_compile=True")


def _check_causal(fn: str, name: str, model: Any) -> None:
    """A model whose own loss shifts the labels; where transformers names none it is that one."""
    loss_type = getattr(model, "loss_type", None)
    if model.config.is_encoder_decoder or loss_type not in (None, "ForCausalLM", "ForConditionalGeneration"):
        fail(fn, name, "a causal language model", type(model).__name__, TypeError)


def _core(model: Any) -> Any:
    """Without the adapter of peft."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _check_head(fn: str, name: str, model: Any) -> None:
    core = _core(model)
    head, parameters = core.get_output_embeddings(), inspect.signature(core.forward).parameters
    if type(head) is not nn.Linear or core.base_model is core or "logits_to_keep" not in parameters:
        what = "a torch.nn.Linear over a base model, and logits_to_keep, for LinearDistillationLoss"
        kind = type(head)
        fail(fn, name, what, f"{type(core).__name__} with {kind.__module__}.{kind.__qualname__}", TypeError)


@contextmanager
def _hidden_states(model: Any) -> Iterator[list[Tensor]]:
    """What the model's head is given, [B, T, H], in the list once the model has been called."""
    seen: list[Tensor] = []
    handle = _core(model).base_model.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    try:
        yield seen
    finally:
        handle.remove()


class _Head(NamedTuple):
    """A head, what it was given, and the model's own logits of the last position."""

    hidden: Tensor  # [B, T, H]
    weight: Tensor  # [classes, H]
    bias: Tensor | None
    softcap: float | None
    last: Tensor  # [B, 1, classes]

    @classmethod
    def of(cls, model: Any, hidden: Tensor, outputs: Any) -> "_Head":
        core = _core(model)
        head = core.get_output_embeddings()
        softcap = getattr(core.config.get_text_config(), "final_logit_softcapping", None)
        return cls(hidden, head.weight, head.bias, softcap, _logits(outputs))

    def to(self, device: torch.device) -> "_Head":
        return self._replace(
            hidden=self.hidden.to(device),
            weight=self.weight.to(device),
            bias=None if self.bias is None else self.bias.to(device),
        )


@torch.no_grad()
def _compare(name: str, head: _Head, scale: float, softcap: float | None) -> None:
    """Half precision and TF32 round; a scale or a cap unknown to us changes more."""
    want = scale * F.linear(head.hidden[:, -1:], head.weight, head.bias)
    want = want.float() if softcap is None else softcap * torch.tanh(want.float() / softcap)
    got = head.last.to(want.device).float()
    allowed = max(2e-3, 32 * torch.finfo(head.hidden.dtype).eps) * float(want.abs().max())
    if got.shape != want.shape or not torch.allclose(got, want, rtol=0, atol=allowed, equal_nan=True):
        what = f"{name} logits of hidden states @ weight + bias, times {name}_logit_scale={scale}"
        fail("DistillationTrainer", "loss", f"{what}, then {name}_softcap={softcap}", "a model with others")


def _logits(outputs: Any) -> Tensor:
    logits: Tensor = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    return logits


def _teachers(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in _NOT_THE_TEACHERS} | {"use_cache": False}


def _narrower(width: int, other: int) -> int | None:
    return None if width == other else min(width, other)


def _at_least_one(items: int | Tensor | None) -> Tensor | None:
    """A batch with nothing to predict has the loss 0."""
    return None if items is None else torch.as_tensor(items).clamp(min=1)


def _loss_of_logits(
    loss: DistillationLoss | LinearDistillationLoss,
    outputs: Any,
    teacher: nn.Module,
    inputs: Mapping[str, Any],
    target: Tensor,
    items: Tensor | None,
) -> Tensor:
    logits = _logits(outputs)
    with torch.no_grad():
        teacher_logits = _logits(teacher(**_teachers(inputs))).to(logits.device)
    options = dict(loss.options)
    if isinstance(loss, LinearDistillationLoss):  # logits that the models have scaled and capped themselves
        options = {name: value for name, value in options.items() if name not in _BEHIND_A_HEAD}
    options["vocab_size"] = options["vocab_size"] or _narrower(logits.shape[-1], teacher_logits.shape[-1])
    result = distill_loss(logits, teacher_logits, target.to(logits.device), num_items_in_batch=items, **options)
    assert isinstance(result, Tensor)
    return result


def _predicted(labels: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """labels [B, T], with IGNORED at each sequence's first token, which no token before it predicts."""
    position_ids, mask = batch.get("position_ids"), batch.get("attention_mask")
    first = torch.zeros_like(labels, dtype=torch.bool)
    first[..., :1] = True
    if isinstance(mask, Tensor) and mask.shape == labels.shape:
        first[..., 1:] |= mask[..., :-1] == 0  # behind padding on the left
    if position_ids is not None and position_ids.dim() == 2 and position_ids.shape[-1] == labels.shape[-1]:
        first[..., 1:] |= position_ids[..., 1:] != position_ids[..., :-1] + 1
    return labels.masked_fill(first, IGNORED)


def _target(fn: str, labels: Tensor | None, inputs: Mapping[str, Any]) -> Tensor:
    """[B, T]: what each token predicts."""
    shifted: Tensor | None = inputs.get("shift_labels")
    if shifted is not None:
        return shifted
    if labels is None:
        fail(fn, "labels", "labels in the batch", None)
    return F.pad(_predicted(labels, inputs), (0, 1), value=IGNORED)[..., 1:]


def _collate(collator: Callable[[list[Any]], Any], features: list[Any]) -> Any:
    batch = collator(features)
    if isinstance(batch.get("labels"), Tensor):
        batch["labels"] = _predicted(batch["labels"], batch)
    return batch
