"""One million draws of the whole chain, parameters to net present value, on one core.

    python benchmarks/draws.py

Every round draws 17 uncertain inputs anew, its own seed and no cached slices, and takes all
quantiles at the end. CPU-seconds of the process; the target is 1.5.
"""
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

from common import write_table  # after the number of threads is set

from flm_nb.invest import ranges
from flm_nb.invest.programme import draw_pretrain
from flm_nb.specs import Accelerator

ROUNDS, DRAWS = 5, 1_000_000


def between(low, middle, high):
    """A range as the chain reads it."""
    return {"p10": low, "p50": middle, "p90": high}


DOUBT = dict(
    active_params=between(6.5e9, 7e9, 7.5e9), layers=32, width=4096, seq_len=4096,
    tokens=between(1.5e12, 2e12, 2.5e12), mfu=between(0.25, 0.38, 0.48),
    peak_flop_per_s=Accelerator.named("H100-SXM-80GB").peak("bf16"),
    usd_per_hour=between(1.8, 2.5, 4), watt=between(800, 1000, 1200),
    pue=between(1.1, 1.2, 1.4), grid_kg_per_kwh=between(0.1, 0.35, 0.5),
    development_ratio=between(0.3, 0.5, 4.6), failed_ratio=between(0.03, 0.1, 0.3),
    people_usd=between(1e6, 2e6, 4e6), data_usd=between(1e5, 3e5, 1e6),
    evaluation_usd=between(2e4, 5e4, 1e5), storage_usd=between(1e4, 2e4, 5e4),
    value_usd_per_year=between(7e5, 1.5e6, 3e6), growth_per_year=between(-0.1, 0.2, 0.5),
    running_usd_per_year=between(3e5, 4e5, 7e5), discount_rate=between(0.07, 0.1, 0.15),
    horizon_years=5)


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    seconds = {"chain_cpu_s": [], "with_quantiles_cpu_s": []}
    for seed in range(ROUNDS):
        ranges._normal_slices.cache_clear()
        start = time.process_time()
        study = draw_pretrain(DOUBT, draws=DRAWS, seed=seed)
        seconds["chain_cpu_s"].append(time.process_time() - start)
        told = study.quantiles()
        seconds["with_quantiles_cpu_s"].append(time.process_time() - start)
    uncertain = sum(isinstance(value, dict) for value in DOUBT.values())
    row = {"draws": DRAWS, "uncertain_inputs": uncertain, "rounds": ROUNDS, "cores": 1}
    for name, times in seconds.items():
        row |= {name: round(statistics.median(times), 3),
                f"{name}_worst": round(max(times), 3)}
    row["npv_usd_p50"] = round(told["npv_usd"]["p50"])
    write_table("draws", [row])
