"""Seal a training's cost, run it, compare: jobs of many lengths, sizes, methods and kinds.

    python benchmarks/finetune_estimate.py

Every job runs in a process of its own. The profile is measured right before, and the rate of
a matrix product before each job, so that a noisy machine shows itself.
"""
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import write_table, write_texts

from flm_nb.adapt.finetune import counted_flop, in_new_process, tune
from flm_nb.count.finetune import predict_finetune, predict_language
from flm_nb.data.text import reviews
from flm_nb.train.measure import language_job, matmul_flop_per_s, measure_machine

MODEL = "all-MiniLM-L6-v2"
JOBS = [  # texts, rows, longest, batch size, method
    ("rotten", 1000, 64, 16, "full"), ("rotten", 1200, 64, 16, "lora"),
    ("rotten", 1000, 64, 32, "full"), ("imdb", 160, 256, 8, "full"),
    ("imdb", 240, 256, 8, "lora"), ("imdb", 360, 128, 32, "full"),
    ("all", 500, 128, 16, "full"), ("all", 640, 128, 64, "lora"),
]
LANGUAGE = [  # layers, width, vocabulary, block, batch size, steps
    (4, 128, 256, 128, 8, 240), (4, 256, 256, 256, 16, 24), (4, 256, 8000, 128, 8, 60),
]


def finetune_job(here, folder, source, count, longest, batch_size, method):
    """What a fine-tuning is, what it was expected to take, and what it took."""
    data = reviews(source, limit=count)
    write_texts(Path(folder) / "texts.csv", data.texts, data.labels)
    job = {"model": MODEL, "data": str(Path(folder) / "texts.csv"), "text": "text",
           "label": "label", "method": method, "max_length": longest,
           "batch_size": batch_size, "valid_share": 0.1}
    guess = predict_finetune(**job, accelerator=here)
    run = in_new_process(tune, job | {"out": f"{folder}/out", "progress": False})
    counted = counted_flop(MODEL, guess.shapes, method=method)
    return {"texts": source, "model": MODEL, "max_length": longest, "batch_size": batch_size,
            "method": method}, guess, run | {"counted_flop": counted}


def bytes_job(here, layers, width, vocab, block, batch_size, steps):
    """The same of a language model of bytes."""
    config = {"model_type": "llama", "vocab_size": vocab, "hidden_size": width,
              "num_hidden_layers": layers, "num_attention_heads": width // 32,
              "intermediate_size": 5 * width // 2, "max_position_embeddings": block,
              "tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"]}
    job = {"config": config, "block": block, "batch_size": batch_size, "steps": steps}
    told = {"texts": "bytes", "model": f"llama {layers} x {width}, {vocab} words",
            "max_length": block, "batch_size": batch_size, "method": "full"}
    guess = predict_language(**job, accelerator=here)
    return told, guess, in_new_process(language_job, job)


def compared(told, guess, run):
    """One row of the table."""
    found = {"flop": (guess.flop, run["counted_flop"]),
             "cpu_s": (guess.cpu_s, run["train_cpu_s"]),
             "wall_s": (guess.wall_s, run["train_s"]),
             "peak_bytes": (guess.peak_bytes, run["measured_peak_bytes"])}
    row = told | {"steps": len(guess.shapes)}
    for name, (predicted, measured) in found.items():
        row |= {f"predicted_{name}": f"{predicted:.5g}", f"measured_{name}": f"{measured:.5g}",
                f"ratio_{name}": f"{measured / predicted:.3f}"}
    return row | {"spread_s": f"{guess.spread:.3f}", "spread_bytes": f"{guess.peak_spread:.3f}"}


def main():
    """Print one line per job, the share inside the targets, and keep the table."""
    here, rows = measure_machine(), []
    for work, jobs in ((finetune_job, JOBS), (bytes_job, LANGUAGE)):
        for job in jobs:
            before = matmul_flop_per_s(torch.float32)
            with tempfile.TemporaryDirectory() as folder:
                place = (folder,) if work is finetune_job else ()
                row = compared(*work(here, *place, *job))
            rows.append(row | {"fp32_flop_per_s_before": f"{before:.3g}"})
            shown = [key for key in rows[-1] if key in ("texts", "method") or "ratio" in key]
            print(*(f"{key}={rows[-1][key]}" for key in shown), flush=True)
    for name, factor in (("cpu_s", 1.2), ("peak_bytes", 1.1)):
        errors = np.exp(np.abs(np.log([float(row[f"ratio_{name}"]) for row in rows])))
        print(f"{name}: {np.mean(errors < factor):.0%} of {len(rows)} within a factor of "
              f"{factor}, median factor {np.median(errors):.3f}, worst {errors.max():.2f}")
    write_table("finetune_estimate", rows)


if __name__ == "__main__":
    main()
