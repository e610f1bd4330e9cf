"""Peak memory of trainings on the CPU against `training_peak_bytes`: one process per job.

    python benchmarks/memory.py [--every N] [--keep]

The jobs are the rows of the packaged table memory_here.csv, to which the formula is fitted:
each is trained again on random tokens in batches of its shapes, the largest first, the others
in random order, as the plan of a real job has them. --every N takes each Nth row; --keep puts
what was measured into the packaged table.
"""
import csv
import tempfile
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import torch
from common import machine, write_table
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import flm_nb
from flm_nb.adapt.finetune import in_new_process
from flm_nb.adapt.lora import add_lora
from flm_nb.core import catalogue_rows
from flm_nb.count.finetune import read_shapes, training_peak_bytes
from flm_nb.specs import ModelSpec
from flm_nb.tasks.heads import (
    classification_loss,
    load_classifier,
    load_language_model,
    next_token_loss,
)
from flm_nb.train.loop import FitConfig, fit
from flm_nb.train.measure import peak_memory

TABLE = Path(flm_nb.__file__).parent / "catalogue" / "memory_here.csv"
HEADS = {"bert": "BertForSequenceClassification", "llama": "LlamaForCausalLM"}


class RandomTexts:
    """Random tokens in batches of given shapes; a step is named by its place."""

    def __init__(self, shapes, labelled):
        largest = shapes.prod(axis=1).argmax()
        others = np.delete(np.arange(len(shapes)), largest)
        others = np.random.default_rng(0).permutation(others)
        self.shapes, self.labelled = shapes[[largest, *others]], labelled

    def plan(self, *, batch_size, seed, epoch):
        return [np.full(rows, step) for step, (rows, _) in enumerate(self.shapes)]

    def batch(self, rows):
        width = int(self.shapes[rows[0]][1])
        ids = torch.randint(1, 250, (len(rows), width))
        if not self.labelled:
            return {"input_ids": ids}
        mask = torch.ones_like(ids)
        mask[0, width - 7:] = 0  # real batches have padding
        return {"input_ids": ids, "attention_mask": mask,
                "labels": torch.zeros(len(rows), dtype=torch.long)}


def config_of(row):
    """The config of a row of the table."""
    more = {"num_labels": 2, "attention_probs_dropout_prob": 0.0} if row["family"] == "bert" \
        else {"tie_word_embeddings": True}
    return {"model_type": row["family"], "vocab_size": int(row["vocab"]),
            "hidden_size": int(row["width"]), "num_hidden_layers": int(row["layers"]),
            "intermediate_size": int(row["mlp"]),
            "num_attention_heads": int(row["heads"])} | more


def measured(folder, family, method, precision, shapes):
    """Rise of the resident memory from before the model is built to the end of the loop."""
    classifies, shapes = family == "bert", read_shapes(shapes)
    with peak_memory() as memory:
        model = load_classifier(folder, ["0", "1"]) if classifies else \
            load_language_model(folder)
        if method == "lora":
            model = add_lora(model)
        fit(model, RandomTexts(shapes, classifies), FitConfig(
            batch_size=int(shapes[:, 0].max()), lr=1e-6, precision=precision),
            loss=classification_loss if classifies else next_token_loss, progress=False)
    return memory["rise_bytes"]


def one_job(row):
    """Bytes of one row, measured and predicted."""
    config = config_of(row)
    spec = ModelSpec.from_config(config | {"architectures": [HEADS[row["family"]]]})
    options = {"method": row["method"], "precision": row["precision"]}
    predicted = training_peak_bytes(spec, read_shapes(row["shapes"]), **options)
    auto = AutoModelForSequenceClassification if row["family"] == "bert" else \
        AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        auto.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)
        found = in_new_process(measured, options | {
            "folder": folder, "family": row["family"], "shapes": row["shapes"]})
    return found, predicted


def main():
    """Print one line per job and keep the table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="take each Nth row")
    parser.add_argument("--keep", action="store_true", help="replace the packaged table")
    options = parser.parse_args()
    if options.keep and options.every > 1:
        parser.error("--keep replaces the whole table; leave --every out")
    rows, results = catalogue_rows("memory_here")[:: options.every], []
    for row in rows:
        found, predicted = one_job(row)
        told = {name: row[name] for name in ("family", "layers", "width", "vocab", "method",
                                             "precision", "shapes")}
        results.append(told | {"measured_bytes": found, "predicted_bytes": f"{predicted:.5g}",
                               "ratio": f"{found / predicted:.3f}"})
        row |= {name: machine()[name] for name in ("date", "machine", "torch", "transformers",
                                                   "peft")} | {"measured_bytes": found}
        print(*results[-1].values(), flush=True)
    write_table("memory", results)
    errors = [abs(np.log(float(row["ratio"]))) for row in results]
    print(f"{np.mean(np.array(errors) < np.log(1.1)):.0%} of {len(errors)} within 10 %, "
          f"median factor {np.exp(np.median(errors)):.3f}, worst {np.exp(max(errors)):.2f}")
    if options.keep:
        with open(TABLE, "w", newline="", encoding="utf-8") as file:
            sheet = csv.DictWriter(file, rows[0])
            sheet.writeheader()
            sheet.writerows(rows)


if __name__ == "__main__":
    main()
