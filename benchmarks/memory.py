"""Peak memory of a training on the CPU against `training_peak_bytes`: one process per job.

    python benchmarks/memory.py

The coefficients of the formula were fitted to such a table; the last column is what they miss.
"""
import tempfile

import torch
from common import write_table
from transformers import BertConfig, BertForSequenceClassification

from flm_nb.adapt.finetune import in_new_process
from flm_nb.adapt.lora import add_lora
from flm_nb.count.finetune import training_peak_bytes
from flm_nb.plan import plan_batches
from flm_nb.specs import ModelSpec
from flm_nb.tasks.heads import classification_loss, load_classifier
from flm_nb.train.loop import FitConfig, fit
from flm_nb.train.measure import peak_memory

JOBS = [  # layers, width, method, precision, rows, tokens of the batches
    (6, 384, "full", "bf16", 16, (16,)), (6, 384, "full", "bf16", 16, (64,)),
    (6, 384, "full", "bf16", 16, (128,)), (6, 384, "full", "bf16", 32, (128,)),
    (6, 384, "full", "bf16", 16, (16, 32, 48, 64)), (6, 384, "lora", "bf16", 16, (16,)),
    (6, 384, "lora", "bf16", 16, (128,)), (6, 384, "lora", "bf16", 16, (16, 32, 48, 64)),
    (6, 512, "full", "bf16", 16, (32,)), (6, 512, "lora", "bf16", 16, (128,)),
    (12, 768, "full", "bf16", 8, (32,)), (12, 768, "full", "bf16", 8, (128,)),
    (12, 768, "lora", "bf16", 8, (128,)), (6, 384, "full", "fp32", 16, (16,)),
    (6, 384, "full", "fp32", 16, (128,)), (6, 384, "lora", "fp32", 16, (128,)),
]


class RandomTexts:
    """Random tokens in batches whose widths take turns, four batches of each."""

    def __init__(self, rows, tokens):
        self.rows, self.tokens = rows, tokens

    def plan(self, *, batch_size, seed, epoch):
        return plan_batches([1] * (4 * len(self.tokens) * self.rows), batch_size=batch_size,
                            seed=seed, epoch=epoch)

    def batch(self, rows):
        width = self.tokens[int(rows[0]) % len(self.tokens)]
        ids = torch.randint(1, 1000, (len(rows), width))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids),
                "labels": torch.zeros(len(rows), dtype=torch.long)}


def config_of(layers, width):
    """A BERT of that size, heads of 32 as in MiniLM."""
    return BertConfig(num_hidden_layers=layers, hidden_size=width, intermediate_size=4 * width,
                      num_attention_heads=width // 32, attention_probs_dropout_prob=0.0)


def measured(folder, method, precision, rows, tokens):
    """Rise of the resident memory from before the model is built to the end of the loop."""
    with peak_memory() as memory:
        model = load_classifier(folder, ["0", "1"])
        if method == "lora":
            model = add_lora(model)
        fit(model, RandomTexts(rows, tokens), FitConfig(
            batch_size=rows, lr=1e-6, precision=precision), loss=classification_loss,
            progress=False)
    return memory["rise_bytes"]


def main():
    """Print one line per job and keep the table."""
    table = []
    for layers, width, method, precision, rows, tokens in JOBS:
        spec = ModelSpec.from_config(config_of(layers, width).to_dict() | {
            "architectures": ["BertForSequenceClassification"]})
        predicted = training_peak_bytes(spec, [(rows, width) for width in tokens],
                                        method=method, precision=precision)
        job = {"layers": layers, "width": width, "method": method, "precision": precision,
               "rows": rows, "tokens": tokens}
        with tempfile.TemporaryDirectory() as folder:
            BertForSequenceClassification(config_of(layers, width)).save_pretrained(folder)
            found = in_new_process(measured, {
                "folder": folder, "method": method, "precision": precision, "rows": rows,
                "tokens": tokens})
        table.append(job | {"tokens": " ".join(map(str, tokens)), "measured_bytes": found,
                            "predicted_bytes": f"{predicted:.5g}",
                            "ratio": f"{found / predicted:.3f}"})
        print(*table[-1].values(), flush=True)
    write_table("memory", table)


if __name__ == "__main__":
    main()
