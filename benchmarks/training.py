"""How fast is the loop? Five ways to fine-tune and two to pretrain, interleaved, over seeds.

    python benchmarks/training.py [--rounds 5] [--quality] [--keep]

Every contender runs in a fresh process on the same model, texts, epochs, batch size, learning
rate and seed. Rates are extra samples over extra seconds between the first and the last of
three epochs, so that loading and warming up do not count. `--quality` asks instead, over seeds
and on more texts, whether dropout in attention or fp32 would have bought a better score.
`--keep` puts the table into the packaged catalogue, from where the page about speed reads it.
"""
import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, write_table

import flm_nb
from flm_nb.adapt.saved import load_tokenizer
from flm_nb.count.flop import step_flop
from flm_nb.data.language import language_bundle
from flm_nb.data.text import Labelled, reviews, text_bundle
from flm_nb.plan import padded_shapes, plan_batches
from flm_nb.score.compare import seeds_summary
from flm_nb.score.metrics import accuracy, predict_proba
from flm_nb.specs import ModelSpec
from flm_nb.tasks.heads import (
    classification_loss,
    load_classifier,
    load_language_model,
    next_token_loss,
)
from flm_nb.train.loop import FitConfig, fit
from flm_nb.train.measure import matmul_flop_per_s

MODEL, LONGEST, EPOCHS, BATCH, LR = "all-MiniLM-L6-v2", 256, 3, 16, 2e-4
SHORT_ROWS, LONG_ROWS, SCORED = 120, 40, 400  # of film reviews, a line or a page each
TEXT = ("trainer_default", "trainer_tuned", "plain_loop", "ours_equal_dropout", "ours")
WIDE, LANGUAGE = ("ours_bert_base",), ("nanogpt_loop", "ours_language")
GPT = {"model_type": "gpt2", "vocab_size": 256, "n_embd": 256, "n_layer": 4, "n_head": 8,
       "n_positions": 128, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
       "bos_token_id": None, "eos_token_id": None}


def marks():
    """A list, and a function that adds the time on both clocks to it."""
    seen = []
    return seen, lambda *_, **__: seen.append((time.perf_counter(), time.process_time()))


def texts(seed, short=SHORT_ROWS, long=LONG_ROWS, scored=SCORED):
    """Short and long reviews to learn from, short ones to be judged by."""
    parts = [reviews("rotten", limit=short + scored, seed=seed)]
    parts += [reviews("imdb", limit=long, seed=seed)] if long else []
    tokenizer = load_tokenizer(MODEL, LONGEST)

    def bundle(rows):
        return text_bundle(rows.texts, rows.labels, tokenizer=tokenizer, max_length=LONGEST,
                           valid_share=0.0).train

    held = Labelled(parts[0].texts[:scored], parts[0].labels[:scored], "")
    learn = Labelled(parts[0].texts[scored:] + (parts[1].texts if long else ()),
                     parts[0].labels[scored:] + (parts[1].labels if long else ()), "")
    names = sorted(set(learn.labels))
    return bundle(learn), bundle(held), names, tokenizer


def trainer(train, names, tokenizer, seed, tuned):
    """The Trainer of transformers, with its defaults or with what its guides recommend."""
    import datasets
    from transformers import (
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    seen, mark = marks()

    class Clock(TrainerCallback):
        on_epoch_end = mark

    rows = datasets.Dataset.from_dict({
        "input_ids": [one.tolist() for one in train.ids], "labels": train.labels.tolist(),
        "attention_mask": [[1] * len(one) for one in train.ids]})
    torch.manual_seed(seed)
    model = load_classifier(MODEL, names, dropout=0.1)  # as the model's own config has it
    more = {"bf16": True, "train_sampling_strategy": "group_by_length",
            "optim": "adamw_torch_fused"} if tuned else {"optim": "adamw_torch"}
    with tempfile.TemporaryDirectory() as folder:
        Trainer(model, TrainingArguments(
            folder, num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, seed=seed,
            learning_rate=LR, use_cpu=not torch.cuda.is_available(), report_to=[],
            save_strategy="no", disable_tqdm=True, logging_strategy="no", **more),
            train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[Clock()]).train()
    return model, seen


def plain_loop(train, names, seed):
    """Thirty honest lines: sorted batches, bf16, fused AdamW, torch's own kernels."""
    seen, mark = marks()
    torch.manual_seed(seed)
    model = load_classifier(MODEL, names).train()  # dropout as in ours: none in attention
    adam = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    plans = [plan_batches(train.lengths, batch_size=BATCH, seed=seed, epoch=epoch)
             for epoch in range(EPOCHS)]
    total, step = sum(map(len, plans)), 0
    for plan in plans:
        for rows in plan:
            for group in adam.param_groups:
                group["lr"] = LR * (1 - step / total)
            batch = train.batch(rows)
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            adam.zero_grad()
            step += 1
        mark()
    return model, seen


def ours(train, names, seed, **options):
    """The loop of this project; no warm-up and no decay, as the Trainer has it."""
    seen, mark = marks()
    torch.manual_seed(seed)
    settings = {"epochs": EPOCHS, "precision": "auto"}
    settings |= {name: options.pop(name) for name in settings if name in options}
    model = load_classifier(MODEL, names, **options)
    fit(model, train, FitConfig(batch_size=BATCH, lr=LR, warmup_share=0.0, weight_decay=0.0,
                                seed=seed, **settings),
        loss=classification_loss, progress=False, evaluate=lambda _: mark() or 0.0)
    return model, seen


def answer(seen, samples, tokens, **more):
    """What a contender reports: rates of the last two epochs, or of the last two thirds."""
    wall, cpu = np.subtract(seen[-1], seen[0]).tolist()
    return {"samples_per_cpu_s": samples / cpu, "samples_per_s": samples / wall,
            "tokens_per_cpu_s": tokens / cpu, "tokens_per_s": tokens / wall,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, **more}


def text_contender(name, seed):
    """Train one classifier and score it."""
    train, held, names, tokenizer = texts(seed)
    peak = max(matmul_flop_per_s(torch.bfloat16) for _ in range(3))
    ways = {"trainer_default": partial(trainer, tokenizer=tokenizer, tuned=False),
            "trainer_tuned": partial(trainer, tokenizer=tokenizer, tuned=True),
            "plain_loop": plain_loop, "ours": ours,
            "ours_equal_dropout": partial(ours, dropout=0.1)}
    model, seen = ways[name](train, names, seed=seed)
    spec = ModelSpec.from_config(model.config.to_dict() | {"architectures": [
        type(model).__name__]})
    useful = 2 * sum(step_flop(spec, batch=1, tokens=int(length)).total
                     for length in train.lengths)  # without padding, of two epochs
    found = answer(seen, 2 * len(train), 2 * int(train.lengths.sum()))
    return found | {"share_of_peak": useful / (seen[-1][0] - seen[0][0]) / peak,
                    "score": accuracy(held.labels, predict_proba(model, held))}


def wide_contender(name, seed):
    """Our loop at the width of BERT base, random weights, against the peak of a product."""
    train, *_ = texts(seed, short=32, long=32)
    peak = max(matmul_flop_per_s(torch.bfloat16) for _ in range(3))
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    model = BertForSequenceClassification(BertConfig(attention_probs_dropout_prob=0.0))
    seen, mark = marks()
    fit(model, train, FitConfig(epochs=2, batch_size=BATCH, lr=1e-5), progress=False,
        loss=classification_loss, evaluate=lambda _: mark() or 0.0)
    spec = ModelSpec.from_config(model.config.to_dict() | {"architectures": [
        type(model).__name__]})
    useful = sum(step_flop(spec, batch=1, tokens=int(length)).total for length in train.lengths)
    padded = padded_shapes(train.lengths, train.plan(batch_size=BATCH, seed=0, epoch=1))
    again = max(matmul_flop_per_s(torch.bfloat16) for _ in range(3))
    return answer(seen, len(train), int(train.lengths.sum())) | {
        "share_of_peak": useful / (seen[-1][0] - seen[0][0]) / max(peak, again),
        "score": train.lengths.sum() / padded.prod(axis=1).sum()}  # share that is no padding


def language_contender(name, seed, steps=90):
    """Ninety steps of a small GPT on bytes; the last sixty count."""
    corpus = language_bundle(block=128, valid_share=0.05, seed=seed, limit_bytes=4_000_000)
    starts = [corpus.train.starts(step, batch_size=BATCH, seed=seed) for step in range(steps)]
    model, (seen, mark) = load_language_model(GPT, seed=seed).train(), marks()
    peak = max(matmul_flop_per_s(torch.bfloat16) for _ in range(3))
    if name == "ours_language":
        class First:
            """The part of the corpus, for so many steps."""

            batch = staticmethod(corpus.train.batch)

            def plan(self, **_):
                return starts

        losses = fit(model, First(), FitConfig(
            batch_size=BATCH, lr=1e-3, warmup_share=0.0, schedule="constant", weight_decay=0.1,
            seed=seed), loss=next_token_loss, progress=False, callbacks=[
                lambda record, _: mark() if record["step"] in (30, 90) else None]).losses
    else:
        matrices = [weight for weight in model.parameters() if weight.dim() >= 2]
        rest = [weight for weight in model.parameters() if weight.dim() < 2]
        adam = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1},
                                  {"params": rest, "weight_decay": 0.0}], lr=1e-3, fused=True)
        losses = []
        for step, rows in enumerate(starts):
            batch = corpus.train.batch(rows)
            with torch.autocast("cpu", torch.bfloat16):
                loss = next_token_loss(model(**batch), batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            adam.zero_grad(set_to_none=True)
            losses.append(loss.item())
            if step + 1 in (30, 90):
                mark()
    spec = ModelSpec.from_config(GPT | {"architectures": ["GPT2LMHeadModel"]})
    useful = 60 * step_flop(spec, batch=BATCH, tokens=128).total
    return answer(seen, 60 * BATCH, 60 * BATCH * 128) | {
        "share_of_peak": useful / (seen[-1][0] - seen[0][0]) / peak,
        "score": float(np.mean(losses[-20:]))}  # loss in nats: low is good


def quality_contender(name, seed):
    """A score on more texts: is something lost by bf16, or by no dropout in attention?"""
    train, held, names, _ = texts(seed, short=1200, long=0, scored=1000)
    options = {"ours": {}, "ours_equal_dropout": {"dropout": 0.1},
               "ours_fp32": {"precision": "fp32"}}[name]
    start = time.process_time()
    model, _ = ours(train, names, seed, epochs=1, **options)
    return {"score": accuracy(held.labels, predict_proba(model, held, precision="fp32")),
            "cpu_s": time.process_time() - start}


def run(kind, name, seed):
    """One contender in a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--one", kind, name, str(seed)],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr[-2000:]}")
    return {"kind": kind, "contender": name, "seed": seed} | json.loads(
        done.stdout.splitlines()[-1])


def compare(rows, kind):
    """Say each contender's medians, and how ours stands to the others, round by round."""
    names = dict.fromkeys(row["contender"] for row in rows if row["kind"] == kind)
    of = {name: [row for row in rows if row["contender"] == name] for name in names}
    for name, mine in of.items():
        told = {key: np.median([row[key] for row in mine]) for key in mine[0]
                if isinstance(mine[0][key], float | int) and key != "seed"}
        print(f"{name:20s}", *(f"{key}={value:.4g}" for key, value in told.items()))
    for mine in [name for name in names if name.startswith("ours")]:
        for other in [name for name in names if name != mine]:
            for key in {"samples_per_cpu_s", "samples_per_s"} & set(of[mine][0]):
                ratios = [a[key] / b[key] for a, b in zip(of[mine], of[other], strict=True)]
                print(f"{mine} / {other} {key}: {np.median(ratios):.2f} "
                      f"({min(ratios):.2f} to {max(ratios):.2f})")
            gains = [a["score"] - b["score"] for a, b in zip(of[mine], of[other], strict=True)]
            if len(gains) > 1:
                print(f"{mine} - {other} score: {seeds_summary(gains)}")


CONTENDERS = {"text": (text_contender, TEXT), "wide": (wide_contender, WIDE),
              "language": (language_contender, LANGUAGE),
              "quality": (quality_contender, ("ours", "ours_equal_dropout", "ours_fp32"))}


def main():
    """Run the rounds and keep the table; or one contender, for a round."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--quality", action="store_true")
    options.add_argument("--keep", action="store_true")
    options.add_argument("--one", nargs=3, metavar=("KIND", "NAME", "SEED"))
    asked = options.parse_args()
    if asked.one:
        kind, name, seed = asked.one
        print(json.dumps(CONTENDERS[kind][0](name, int(seed)), default=float))
        return
    kinds, rows = ["quality"] if asked.quality else ["text", "wide", "language"], []
    for seed in range(asked.rounds):
        for kind in kinds:
            for name in CONTENDERS[kind][1]:
                rows.append(run(kind, name, seed))
                print(rows[-1], flush=True)
    for kind in kinds:
        compare(rows, kind)
    fields = dict.fromkeys(key for row in rows for key in row)
    name = "quality" if asked.quality else "training"
    write_table(name, [
        {key: f"{row[key]:.5g}" if isinstance(row.get(key), float) else row.get(key)
         for key in fields} for row in rows])
    if asked.keep:
        kept = Path(flm_nb.__file__).parent / "catalogue" / f"{name}_here.csv"
        shutil.copyfile(RESULTS / f"{name}.csv", kept)


if __name__ == "__main__":
    main()
