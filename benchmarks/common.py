"""What every benchmark shares: texts in a file, and a table that says where and when."""
import csv
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from flm_nb.core import cpu_flags, pick_precision

RESULTS = Path(__file__).parent / "results"
FLAGS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


def machine():
    """The machine and the versions, as columns."""
    fastest = next((flag for flag in FLAGS if flag in cpu_flags()), "none named")
    return {"date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {fastest}, {torch.get_num_threads()} threads",
            "precision": pick_precision(),
            **{name: version(name) for name in ("torch", "transformers", "peft")}}


def write_table(name, rows):
    """Write benchmarks/results/NAME.csv and print it."""
    rows = [machine() | row for row in rows]
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        sheet = csv.DictWriter(file, rows[0])
        sheet.writeheader()
        sheet.writerows(rows)
    print(f"{len(rows)} rows in benchmarks/results/{name}.csv")


def write_texts(path, texts, labels):
    """A table of texts for `tune`; it stays in a temporary folder."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        sheet = csv.writer(file)
        sheet.writerow(["text", "label"])
        sheet.writerows(zip(texts, labels, strict=True))
