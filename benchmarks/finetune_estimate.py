"""Seal a fine-tuning's cost, run it, compare: eight jobs of other lengths, sizes and methods.

    python benchmarks/finetune_estimate.py

Every job runs in a process of its own. The profile is measured right before, and once more at
the end, so that a noisy machine shows itself.
"""
import tempfile
from pathlib import Path

import torch
from common import write_table, write_texts

from flm_nb.adapt.finetune import counted_flop, in_new_process, tune
from flm_nb.count.finetune import predict_finetune
from flm_nb.data.text import reviews
from flm_nb.train.measure import matmul_flop_per_s, measure_machine

MODEL = "all-MiniLM-L6-v2"
JOBS = [  # texts, rows, longest, batch size, method
    ("rotten", 1600, 64, 16, "full"), ("rotten", 1600, 64, 16, "lora"),
    ("rotten", 1600, 64, 32, "full"), ("imdb", 320, 256, 8, "full"),
    ("imdb", 320, 256, 8, "lora"), ("imdb", 600, 128, 32, "full"),
    ("all", 800, 128, 16, "full"), ("all", 800, 128, 16, "lora"),
]


def main():
    """Print one line per job and keep the table."""
    here, rows = measure_machine(), []
    for source, count, longest, batch_size, method in JOBS:
        with tempfile.TemporaryDirectory() as folder:
            data = reviews(source, limit=count)
            write_texts(Path(folder) / "texts.csv", data.texts, data.labels)
            job = {"model": MODEL, "data": str(Path(folder) / "texts.csv"), "text": "text",
                   "label": "label", "method": method, "max_length": longest,
                   "batch_size": batch_size, "valid_share": 0.1}
            before = matmul_flop_per_s(torch.float32)
            guess = predict_finetune(**job, accelerator=here)
            run = in_new_process(tune, job | {"out": f"{folder}/out", "progress": False})
            counted = counted_flop(MODEL, guess.shapes, method=method)
        row = {"texts": source, "rows": count, "max_length": longest, "batch_size": batch_size,
               "method": method, "steps": len(guess.shapes)}
        found = {"flop": (guess.flop, counted), "cpu_s": (guess.cpu_s, run["train_cpu_s"]),
                 "wall_s": (guess.wall_s, run["train_s"]),
                 "peak_bytes": (guess.peak_bytes, run["measured_peak_bytes"])}
        for name, (predicted, measured) in found.items():
            row |= {f"predicted_{name}": f"{predicted:.5g}",
                    f"measured_{name}": f"{measured:.5g}",
                    f"ratio_{name}": f"{measured / predicted:.3f}"}
        rows.append(row | {"fp32_flop_per_s_before": f"{before:.3g}"})
        shown = [key for key in row if key in ("texts", "method") or "ratio" in key]
        print(*(f"{key}={row[key]}" for key in shown), flush=True)
    write_table("finetune_estimate", rows)


if __name__ == "__main__":
    main()
