"""Fit the constants of serving on measured servers; judge them on chips and models left out.

    python benchmarks/serving_fit.py FOLDER

FOLDER holds serving_open.csv, serving_extra_open.csv and accelerators.csv of the facts. Into
flm_nb/catalogue go serving_open.csv (the rows that may be passed on) and serving_fit.json. The
rows of ML.ENERGY take part in the fit and the scores, but carry no licence: none is written.
"""
import csv
import json
import re
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import scipy
from scipy.optimize import least_squares

from flm_nb.count.serving import (
    FORMATS,
    LOAD,
    ServedModel,
    cache_bytes,
    first_token_s,
    token_parts,
    weight_bytes,
)
from flm_nb.count.time import judge

CATALOGUE = Path(__file__).parents[1] / "flm_nb" / "catalogue"
SHAPES = {  # model -> width, heads * head, KV heads, vocabulary, tied, share of windows, window
    "Qwen3-30B-A3B": (2048, 4096, 4, 151936, 0, 0, 1e9),
    "Llama-3.1-70B": (8192, 8192, 8, 128256, 0, 0, 1e9),
    "Qwen3-8B": (4096, 4096, 8, 151936, 0, 0, 1e9),
    "Qwen3-14B": (5120, 5120, 8, 151936, 0, 0, 1e9),
    "Qwen3-Coder-480B-A35B": (6144, 12288, 8, 151936, 0, 0, 1e9),
    "gpt-oss-20b": (2880, 4096, 8, 201088, 0, 0.5, 128),
    "gpt-oss-120b": (2880, 4096, 8, 201088, 0, 0.5, 128),
    "Llama-4-Scout": (5120, 5120, 8, 202048, 0, 0.75, 8192),
    "gemma-3-12b": (3840, 4096, 8, 262208, 1, 5 / 6, 1024),
    "DeepSeek-V3/R1": (7168, 128 * 576, 1, 129280, 0, 0, 1e9),
    "Kimi-K2.5": (7168, 64 * 576, 1, 163840, 0, 0, 1e9),
    "Qwen3-32B": (5120, 8192, 8, 151936, 0, 0, 1e9),
    "MiniMax-M2.5": (3072, 6144, 8, 200064, 0, 0, 1e9),
    "Qwen3-235B-A22B": (4096, 8192, 4, 151936, 0, 0, 1e9),
    "Llama-3.1-8B": (4096, 4096, 8, 128256, 0, 0, 1e9),
    "GLM-5": (6144, 64 * 576, 1, 154880, 0, 0, 1e9)}  # Nemotron-Nano: recurrent, left out
PROMPTS = {"lm-arena-chat": 100, "gpqa": 250, "sourcegraph-fim": 300}  # ML.ENERGY gives none
START = {  # constant -> expected value, log-sigma of the prior
    "weights_share": (0.8, 0.3), "cache_share": (0.7, 0.3), "arithmetic_share": (0.6, 0.3),
    "layer_s": (50e-6, 0.5), "layer_experts_s": (20e-6, 0.7), "layer_latent_s": (30e-6, 0.7),
    "step_s": (1e-3, 1.0), "request_s": (20e-6, 1.0), "sum_s": (6e-6, 0.5),
    "prompt_share": (0.5, 0.4), "prompt_experts": (0.7, 0.5)}
FIRST = {"first_s": (10e-3, 1.0), "first_steps": (1.0, 0.7), "first_share": (0.5, 0.5)}
SEEN, UNLIKE, LARGE = ["H100", "H200", "H800", "H20", "B200", "B300"], 1.5, 64

def read_rows(folder):
    """Every measured server in the columns of the formulas, doubles dropped."""
    chips = {row["name"]: row for row in csv.DictReader(open(folder / "accelerators.csv"))}
    found, seen = [], set()
    for file in ("serving_open", "serving_extra_open"):
        for row in csv.DictReader(open(folder / f"{file}.csv")):
            double = (row["accelerator"], row["tpot_ms"], row["ttft_ms"],
                      row["batch_or_concurrency"])
            if not row["tpot_ms"] or row["model"] not in SHAPES or double in seen:
                continue
            seen.add(double)
            found.append(columns(row, chips[row["accelerator"]]))
    return found


def row_format(row):
    """The number format of a row's weights."""
    told = re.search(r"quant gemm (\S+),", row["notes"])
    named = {"fp8": "fp8", "fp8_block": "fp8", "nvfp4": "nvfp4", "int4_wo": "int4"}.get(
        told[1] if told else "")
    by_size = {"2": "bf16", "1": "fp8", "0.53125": "mxfp4", "0.5625": "nvfp4"}
    return named or by_size.get(row["weight_bytes_per_param"]) or "bf16"


def columns(row, chip):
    """One row of the facts in the columns of `token_parts`."""
    form = row_format(row)
    weight, kind, cached = FORMATS[form]
    peaks = {"bf16": chip["fp16_bf16"], "fp8": chip["fp8"], "fp4": chip["fp4"]}
    width, query, heads, vocab, tied, share, window = SHAPES[row["model"]]
    head, params = vocab * width, float(row["params"])
    experts = float(row["expert_params"] or 0)
    task = re.search(r"task ([\w-]+)", row["notes"])
    stated = float(row["decode_batch"] or 0) > 0 and bool(row["decode_accelerators"])
    return {
        "model": row["model"], "accelerator": row["accelerator"], "engine": row["engine"],
        "mode": row["mode"], "set": row["set"], "format": form, "used": int(stated),
        "params": params, "dense": params - experts - head * (1 if tied else 2), "head": head,
        "expert_params": experts, "experts": int(row["experts"] or 1),
        "per_token": int(row["experts_per_token"] or 1),
        "active": float(row["active_params"] or params), "layers": int(row["layers"]),
        "width": width, "query": query, "kv_heads": heads,
        "cache": float(row["kv_bytes_per_token"]) / 2, "window_share": share,
        "window": window, "latent": int(heads == 1),
        "batch": float(row["decode_batch"] or 0),
        "prompt": float(row["input_len"] or PROMPTS[task[1]]),
        "answer": float(row["output_len"]), "count": float(row["decode_accelerators"] or 0),
        "weight_each": weight, "cache_each": cached,
        "peak": float(peaks[kind] or peaks["bf16"]) * 1e12,
        "bytes_per_s": float(chip["mem_bw_gbs"]) * 1e9,
        "link": float(chip["interconnect_gbs"]) * 1e9 / 2,
        "tpot_s": float(row["tpot_ms"]) / 1e3, "ttft_s": float(row["ttft_ms"] or "nan") / 1e3,
        "date": row["date"], "source": row["source"],
        "run": (re.search(r"\bid (\S+)", row["notes"]) or ["", ""])[1]}


class Rows:
    """The rows that are fitted and judged, as arrays."""

    def __init__(self, rows):
        rows = [row for row in rows if row["used"]]
        self.at = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        self.model = ServedModel(*(self.at[name] for name in ServedModel.__dataclass_fields__))
        self.load = {name: self.at[name] for name in LOAD}
        self.cell = np.char.add(self.at["model"], self.at["accelerator"])
        sizes = np.array([(self.cell == cell).sum() for cell in self.cell])
        self.weight = sizes ** -0.25 / np.sqrt((sizes ** -0.5).mean())  # a cell: sqrt(rows)
        self.mixed = (self.at["mode"] == "agg").astype(float)
        self.truth = np.log(self.at["tpot_s"])

    def token(self, constants, mixed=1.0):
        """ln of the predicted time per token."""
        parts = token_parts(self.model, constants, mixed=mixed, **self.load)
        return np.log(sum(parts.values()))

    def first(self, constants):
        """ln of the predicted time to first token."""
        return np.log(first_token_s(
            self.model, constants, step_s=np.exp(self.token(constants)),
            prompt=self.at["prompt"], count=self.at["count"], peak=self.at["peak"]))

    def floor(self):
        """Seconds of bytes over bandwidth."""
        at = self.at
        held = cache_bytes(self.model, at["prompt"] + at["answer"] / 2, at["cache_each"])
        read = weight_bytes(self.model, at["weight_each"], at["batch"]) + at["batch"] * held
        return read / at["count"] / at["bytes_per_s"]


def fit(predict, truth, weight, start, kept):
    """Constants that minimise a Cauchy loss of ln(time), drawn toward what is expected."""
    names, middle = list(start), np.log([value for value, _ in start.values()])
    sigma = np.array([spread for _, spread in start.values()])

    def residuals(logs):
        off = weight * (predict(dict(zip(names, np.exp(logs), strict=True))) - truth)
        return np.concatenate([off[kept], 0.35 * (logs - middle) / sigma])

    found = least_squares(residuals, middle, loss="cauchy", f_scale=0.2, max_nfev=60).x
    return {name: float(f"{value:.4g}")
            for name, value in zip(names, np.exp(found), strict=True)}


def edges(off, weight):
    """10 and 90 % quantiles, weighted."""
    order = np.argsort(off)
    place = (np.cumsum(weight[order]) - weight[order] / 2) / weight.sum()
    return [round(float(edge), 4) for edge in np.interp([0.1, 0.9], place, off[order])]


def spreads(rows, off, kept):
    """Edges for small and large batches, from held-out residuals of the kept rows."""
    large = rows.at["batch"] > LARGE
    return {name: edges(off[kept & part], rows.weight[kept & part])
            for name, part in (("small", ~large), ("large", large))}


def held_out(rows, kinds):
    """Constants and predictions with every chip, then every model, left out."""
    folds, predicted = {}, {}
    for kind, column in kinds.items():
        names, predicted[kind] = rows.at[column], np.zeros(rows.truth.size)
        folds[kind] = {}
        for name in dict.fromkeys(names.tolist()):
            out = names == name
            constants = fit(lambda c: rows.token(c, rows.mixed), rows.truth, rows.weight, START,
                            ~out)
            folds[kind][name] = {"constants": constants}
            predicted[kind][out] = rows.token(constants)[out]
    return folds, predicted


def add_spreads(rows, folds, predicted, kinds):
    """The interval of every fold comes from the rows of the other folds."""
    off = {kind: rows.truth - predicted[kind] for kind in kinds}
    for kind, column in kinds.items():
        for name, fold in folds[kind].items():
            fold["spread"] = spreads(rows, off[kind], rows.at[column] != name)
    both = {kind: spreads(rows, off[kind], np.ones(rows.truth.size, bool)) for kind in kinds}
    return {place: [round(float(np.mean([both[kind][place][end] for kind in kinds])), 4)
                    for end in (0, 1)] for place in ("small", "large")}


def judged(rows, predicted, folds, column):
    """Score of held-out predictions with their folds' intervals."""
    names, large = rows.at[column], rows.at["batch"] > LARGE
    ends = np.array([folds[name]["spread"]["large" if big else "small"]
                     for name, big in zip(names, large, strict=True)])
    return judge(np.exp(predicted + ends[:, 0]), np.exp(predicted),
                 np.exp(predicted + ends[:, 1]), rows.at["tpot_s"], groups=list(names))


def rivals(rows):
    """Two simple formulas, fitted with the same chips left out."""
    floor, names = rows.floor(), rows.at["accelerator"]
    scores, layered = {}, np.zeros(floor.size)
    ends, plain_ends = np.zeros((2, floor.size)), np.zeros((2, floor.size))
    for name in dict.fromkeys(names.tolist()):
        out = names == name
        layer = fit(lambda c: np.log(floor + c["layer_s"] * rows.at["layers"]), rows.truth,
                    rows.weight, {"layer_s": (1e-4, 2.0)}, ~out)["layer_s"]
        guess = floor + layer * rows.at["layers"]
        layered[out] = guess[out]
        ends[:, out] = np.array(edges((rows.truth - np.log(guess))[~out],
                                      rows.weight[~out]))[:, None]
        plain_ends[:, out] = np.array(edges((rows.truth - np.log(floor))[~out],
                                            rows.weight[~out]))[:, None]
    for name, guess, end in (("bandwidth floor", floor, plain_ends),
                             ("floor + constant per layer", layered, ends)):
        scores[name] = judge(guess * np.exp(end[0]), guess, guess * np.exp(end[1]),
                             rows.at["tpot_s"], groups=list(names))
    return scores


def first_token(rows, constants):
    """Constants, interval and held-out score of the time to first token."""
    has = np.isfinite(rows.at["ttft_s"])
    truth = np.log(np.where(has, rows.at["ttft_s"], 1.0))
    names, guess = rows.at["model"], np.zeros(truth.size)

    def fitted(kept):
        return fit(lambda c: rows.first(constants | c), truth, rows.weight, FIRST, kept)

    for name in dict.fromkeys(names[has].tolist()):
        out = names == name
        guess[out] = rows.first(constants | fitted(has & ~out))[out]
    off, ends = truth - guess, np.zeros((2, truth.size))
    for name in dict.fromkeys(names[has].tolist()):
        kept = has & (names != name)
        ends[:, names == name] = np.array(edges(off[kept], rows.weight[kept]))[:, None]
    times = [np.exp(part)[has] for part in (guess + ends[0], guess, guess + ends[1])]
    score = judge(*times, rows.at["ttft_s"][has], groups=list(names[has]))
    return fitted(has), edges(off[has], rows.weight[has]), score


def main(folder):
    """Fit, judge, write."""
    found = read_rows(Path(folder))
    rows, kinds = Rows(found), {"chip": "accelerator", "model": "model"}
    whole = np.ones(rows.truth.size, bool)
    constants = fit(lambda c: rows.token(c, rows.mixed), rows.truth, rows.weight, START, whole)
    folds, predicted = held_out(rows, kinds)
    spread = add_spreads(rows, folds, predicted, kinds)
    scores = {f"all rows, {kind} held out": judged(rows, predicted[kind], folds[kind], column)
              for kind, column in kinds.items()} | rivals(rows)
    first, first_spread, first_score = first_token(rows, constants)
    scores["time to first token, model held out"] = first_score
    told = {"source": "aiconfigurator and ML.ENERGY, benchmarks/serving_fit.py",
            "date": datetime.now(UTC).date().isoformat(),
            "versions": {"numpy": np.__version__, "scipy": scipy.__version__},
            "rows": len(rows.truth), "large_batch": LARGE, "seen": SEEN, "unlike": UNLIKE,
            "constants": constants | first, "spread": spread, "first_spread": first_spread,
            "folds": folds, "scores": {name: asdict(score) for name, score in scores.items()}}
    (CATALOGUE / "serving_fit.json").write_text(json.dumps(told, indent=1) + "\n")
    public = [{name: f"{value:.6g}" if isinstance(value, float) else value
               for name, value in row.items()} for row in found if row["set"] != "mlenergy"]
    with open(CATALOGUE / "serving_open.csv", "w", newline="", encoding="utf-8") as file:
        sheet = csv.DictWriter(file, public[0])
        sheet.writeheader()
        sheet.writerows(public)
    for name, value in told["constants"].items():
        print(f"{name:18} {value:.3g}")
    print(spread, first_spread, len(rows.truth), len(public))
    for name, score in scores.items():
        print(f"{name:40} {score}")


if __name__ == "__main__":
    main(*sys.argv[1:])
