"""A small language model distilled from a larger one, on CPU in seconds: python examples/distill_trainer.py [STEPS]

Text and models are made here; logits are never held.
"""

import sys
import tempfile

import torch
from tamis.distill import LinearDistillationLoss
from tamis.integrations.transformers import DistillationTrainer
from transformers import DataCollatorWithFlattening, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments


def model(width: int) -> LlamaForCausalLM:
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=128, **sizes))  # a token is a character


torch.manual_seed(0)
torch.set_num_threads(1)  # such small models gain nothing from more
sums = [f"{a} and {b} is {a + b}." for a in range(40) for b in range(40)]
data = [{"input_ids": list(text.encode())} for text in sums]
steps, packed = int(sys.argv[1]) if len(sys.argv) > 1 else 80, DataCollatorWithFlattening()
with tempfile.TemporaryDirectory() as folder:
    common = {"output_dir": folder, "max_steps": steps, "learning_rate": 1e-2, "per_device_train_batch_size": 32}
    args = TrainingArguments(**common, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True)
    teacher, student = model(64), model(32)
    Trainer(teacher, args, train_dataset=data, data_collator=packed).train()
    loss = LinearDistillationLoss(temperature=2.0, alpha=0.7)
    trainer = DistillationTrainer(
        student, args, teacher=teacher, loss=loss, train_dataset=data, eval_dataset=data[::10], data_collator=packed
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    print(f"distillation loss {before:.3f} -> {trainer.evaluate()['eval_loss']:.3f}")
