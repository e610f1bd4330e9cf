"""Kill trainings two hundred times, resume them, and count the bits that differ at the end.

Each run is tuned once in peace and once under SIGKILL at random moments: while it starts, in a
step, while it writes a checkpoint, while it saves the model. The answer: results/kills.csv.
"""
import csv
import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from flm_nb.adapt.finetune import tune
from flm_nb.train.checkpoint import list_checkpoints

KILLS = 200  # in all [kills]
RESULTS = Path(__file__).parent / "results" / "kills.csv"
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] good bad a the film very long".split()
RUNS = [{"method": "full", "save_every": 4}, {"method": "lora", "save_every": 4},
        {"method": "full", "save_every": 1}, {"method": "full", "save_every": None}]


def make_job(work):
    """A table of 300 rows and a BERT of two layers, with dropout on."""
    (work / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(work / "vocab.txt")).save_pretrained(work / "base")
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64)).save_pretrained(work / "base")
    chance = random.Random(0)
    with open(work / "films.csv", "w", newline="") as file:
        sheet = csv.writer(file)
        sheet.writerow(["text", "label"])
        for i in range(300):
            filler = " ".join(chance.choices(WORDS[7:], k=chance.randint(2, 20)))
            sheet.writerow([f"{filler} {('bad', 'good')[i % 2]} film {i}", i % 2])
    return {"data": str(work / "films.csv"), "text": "text", "label": "label", "epochs": 6,
            "model": str(work / "base"), "max_length": 32, "batch_size": 8, "lr": 1e-3,
            "progress": False}


def train_quietly(settings):
    """One training in a process of its own, its lines on stderr thrown away."""
    sys.stderr = open("/dev/null", "w")
    tune(**settings)


def kill_until_done(context, settings, moments, wanted):
    """Start and kill a training until it has ended or was killed often enough."""
    where, out = [], Path(settings["out"])
    while len(where) < wanted and not (out / "run.json").exists():
        child = context.Process(target=train_quietly, args=(settings,))
        child.start()
        begun, seen = time.monotonic(), len(list_checkpoints(out))
        patience = moments.choice([0.1, 0.6, 60])  # some die while they start
        while child.is_alive() and time.monotonic() - begun < patience and (
                len(list_checkpoints(out)) == seen < 2):
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.5))
        if child.is_alive():
            child.kill()
            newest = list_checkpoints(out)[:1]
            half = bool([*out.glob(".writing-*"), *out.glob(".saving-*")])
            where.append((newest[0].name if newest else "none", half))
        child.join()
    return where


def bits_that_differ(one, other):
    """Bits that differ between two safetensors files, tensor by tensor."""
    ours, theirs = load_file(one), load_file(other)
    if set(ours) != set(theirs):
        raise SystemExit(f"{one.name} holds other tensors than {other.name}")
    bits = [[one[name].reshape(-1).numpy().view(np.uint8) for one in (ours, theirs)]
            for name in ours]
    return sum(int(np.unpackbits(one ^ other).sum()) for one, other in bits)


def main():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flm_nb.adapt.finetune"])
    rows, kills, begun = [], 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder))
        while kills < KILLS:
            number = len(rows)
            settings = job | RUNS[number % len(RUNS)] | {"seed": number}
            alone = tune(**settings, out=f"{folder}/alone{number}")
            out = Path(folder) / f"killed{number}"
            where = kill_until_done(context, settings | {"out": str(out), "resume": True},
                                    random.Random(number), min(12, KILLS - kills))
            resumed = tune(**settings, out=out, resume=True)
            file = {"full": "model", "lora": "adapter_model"}[settings["method"]]
            lost = bits_that_differ(Path(folder) / f"alone{number}" / f"{file}.safetensors",
                                    out / f"{file}.safetensors")
            same = resumed["losses"] in (None, alone["losses"])
            kills += len(where)
            rows.append({
                "run": number, "method": settings["method"],
                "save_every": settings["save_every"] or "epoch", "kills": len(where),
                "checkpoints_met": len({name for name, _ in where}),
                "kills_while_writing": sum(half for _, half in where), "bits_lost": lost,
                "history_same": same and resumed["accuracy"] == alone["accuracy"]})
            print(f"{kills} kills, {sum(row['bits_lost'] for row in rows)} bits lost, "
                  f"{time.monotonic() - begun:.0f} s", flush=True)
    with RESULTS.open("w", newline="") as file:
        sheet = csv.DictWriter(file, [*rows[0], "torch", "date"])
        sheet.writeheader()
        sheet.writerows(row | {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
                        for row in rows)
    return sum(row["bits_lost"] for row in rows) or not all(row["history_same"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
