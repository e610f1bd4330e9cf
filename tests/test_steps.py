"""The speed of a training step: what must hold for any chip and model, and the scores."""
from dataclasses import replace

import numpy as np
import pytest

from flm_nb.core import InputError, catalogue_rows
from flm_nb.count import StepSpeed, product_share, step_mfu, step_scores, step_tokens_per_s
from flm_nb.count import steps as room
from flm_nb.invest.cost import estimate_pretrain
from flm_nb.specs import DTYPES, Accelerator

H100, GB300 = "H100-SXM-80GB", "GB300 (per GPU)"
LLAMA = {"params": 8.03e9, "layers": 32, "width": 4096, "vocab": 128_256}
RULES = ("flat 40 %", "median per chip", "median per chip and format")


def speed(chip=H100, **more):
    return step_tokens_per_s(accelerator=chip, **(LLAMA | more)).p50


def faster(chip, times=2.0, **fields):
    peaks = {dtype: peak * times for dtype, peak in chip.peak_flop_per_s.items()}
    return replace(chip, peak_flop_per_s=peaks, **fields)


# ------------------------------------------------------------------ what must hold
@pytest.mark.parametrize("name", [H100, "A100-40GB-SXM", "MI300X", "TPUv5p", "RTX 4090"])
def test_a_better_chip_is_never_slower(name):
    chip = Accelerator.named(name)
    for size in ({"params": 1.3e8, "layers": 12, "width": 768}, LLAMA):
        told = speed(chip, **size)
        assert told <= speed(faster(chip), **size) <= 2 * told * (1 + 1e-9)
        assert told < speed(replace(chip, bytes_per_s=2 * chip.bytes_per_s), **size)
        assert told <= speed(replace(chip, memory_bytes=2 * chip.memory_bytes), **size)
        assert told <= speed(replace(chip, link_bytes_per_s=1e12), **size)


def test_longer_and_larger_cost_more_a_token():
    lengths = np.array([512, 1024, 2048, 8192, 32_768, 131_072])
    assert np.all(np.diff(speed(seq_len=lengths)) < 0)
    sizes = np.array([1e8, 1e9, 1e10, 1e11])
    assert np.all(np.diff(step_tokens_per_s(accelerator=H100, params=sizes, count=64).p50) < 0)
    assert np.all(np.diff(speed(count=np.array([64, 512, 4096]))) < 0)  # states fit from 64


def test_a_narrow_format_is_never_slower():
    chips = [row["name"] for row in catalogue_rows("accelerators") if row["fp8"]
             and row["fp16_bf16"] and float(row["fp8"]) >= float(row["fp16_bf16"])]
    assert len(chips) > 15
    for chip in chips:
        for size in ({"params": 1.3e8, "layers": 12, "width": 768}, LLAMA):
            assert speed(chip, dtype="fp8", **size) >= speed(chip, **size), chip
    gain = [speed(dtype="fp8", **size) / speed(**size) for size in (
        {"params": 1.3e8, "layers": 12, "width": 768},
        {"params": 70e9, "layers": 80, "width": 8192, "count": 64})]
    assert 1 < gain[0] < gain[1] < 2  # elementwise work is no faster
    assert speed(GB300, dtype="fp4") > speed(GB300, dtype="fp8") > speed(GB300)
    assert speed(dtype="fp16") == speed()
    assert speed(GB300, dtype="nvfp4") == speed(GB300, dtype="fp4")


def test_experts_count_by_what_a_token_uses():
    dense, mixture = speed(params=3e9), speed(params=30e9, active_params=3e9)
    assert speed(params=30e9) < mixture < dense
    wide = step_tokens_per_s(accelerator=H100, **(LLAMA | {"params": 40e9,
                                                           "active_params": 8.03e9}))
    plain = step_tokens_per_s(accelerator=H100, **LLAMA)
    assert wide.p90 / wide.p10 > plain.p90 / plain.p10


def test_what_is_known_moves_the_answer():
    again, once, unknown = (speed(recompute=word) for word in ("full", "none", None))
    assert again < unknown < once and 1.2 < once / again < 4 / 3
    assert speed(recompute="selective") == once
    assert 1.4 < speed(recompute="none", method="lora") / once < 1.8
    assert speed(method="qlora") == speed(method="lora")
    assert speed(count=64, micro_batch=1) < speed(count=64, micro_batch=16)
    told = [step_tokens_per_s(accelerator=H100, recompute=word, **(LLAMA | {"seq_len": 32_768}))
            for word in (None, "none")]
    assert told[0].p90 / told[0].p10 > told[1].p90 / told[1].p10


def test_strangers_and_tiny_models_get_wider_intervals():
    def width(chip, **size):
        told = step_tokens_per_s(accelerator=chip, **(LLAMA | size))
        return told.p90 / told.p10

    chip = Accelerator.named(H100)
    assert width(replace(chip, name="Unheard-of")) > width(chip) * 1.01
    assert width(replace(chip, name="MI300X")) > width(replace(chip, name="Unheard-of"))
    assert width(H100, count=2048) > width(H100, count=8)
    assert width(H100, params=1e7, layers=6, width=256) > 2 * width(H100)
    assert "none on MI300X" in step_mfu("MI300X").source and "none on" not in step_mfu(
        H100).source


def test_arrays_and_numbers_agree():
    sizes, counts = np.array([1e9, 8e9, 7e10]), np.array([[8], [64]])
    told = step_tokens_per_s(accelerator=H100, params=sizes, count=counts)
    assert isinstance(told, StepSpeed) and told.p50.shape == told.mfu.p90.shape == (2, 3)
    one = step_tokens_per_s(accelerator=H100, params=8e9, count=64)
    assert one.p10 == pytest.approx(told.p10[1, 1]) and one.p10 < one.p50 < one.p90
    flop = 6 * 8.03e9 + 12 * 32 * 4096 * 4096
    named = step_tokens_per_s(accelerator=H100, **LLAMA)
    assert named.mfu.p50 == pytest.approx(named.p50 * flop / 989.4e12)


def test_a_config_is_as_good_as_its_sizes():
    told = step_tokens_per_s("llama-2-7b", accelerator="A100-80GB-SXM", seq_len=4096)
    sizes = step_tokens_per_s(accelerator="A100-80GB-SXM", seq_len=4096, params=6_738_415_616,
                              layers=32, width=4096, vocab=32_000)
    assert told.p50 == pytest.approx(sizes.p50) and 0.4 < told.mfu.p50 < 0.7
    for name in ("bert-base-uncased", "t5-small", "gpt2"):
        assert step_tokens_per_s(name, accelerator=H100, seq_len=512).p50 > 0


@pytest.mark.parametrize("more, told", [
    ({"accelerator": "H1000"}, "near: "), ({"dtype": "fp8", "accelerator": "V100-SXM2-32GB"},
                                           "dtype='fp8' has no peak on V100-SXM2-32GB"),
    ({"method": "dora"}, "method='dora'"), ({"recompute": "all"}, "recompute='all'"),
    ({"params": None}, "params=None"), ({"params": -1}, "params=-1"),
    ({"seq_len": 0}, "seq_len=0"), ({"count": float("nan")}, "count=nan"),
    ({"width": float("inf")}, "width=inf")])
def test_nonsense_is_refused(more, told):
    with pytest.raises(InputError) as problem:
        step_tokens_per_s(**({"accelerator": H100} | LLAMA | more))
    assert told in str(problem.value)


def test_every_chip_has_a_share():
    for row in catalogue_rows("accelerators"):
        chip = Accelerator.named(row["name"])
        for dtype in set(DTYPES) & set(chip.peak_flop_per_s):
            told = step_mfu(chip, dtype)
            assert 0.02 < told.p10 < told.p50 < told.p90 <= 1 and told.rows > 300, chip.name
        assert 0.5 < product_share(chip.name) < 1 and 0.5 < product_share(chip.name, "fp8") < 1


# ------------------------------------------------------------------ the rows and the scores
def test_the_rows_are_those_of_the_tables():
    rows = [row for row in room._rows() if row["judged"]]
    assert len(rows) == 330
    tables = catalogue_rows("steps_open") + catalogue_rows("steps_extra_open")
    told = sorted(float(row["mfu_recomputed"]) for row in tables
                  if row["mfu_recomputed"] and row["params"])
    mine = np.array(sorted(row["mfu"] for row in rows))
    near = [np.abs(mine - share).min() for share in told]
    assert len(told) > 280 and max(near) < 2e-4
    assert {row["dtype"] for row in rows} == {"bf16", "fp8", "fp4"}
    outside = [row for row in room._rows() if not row["judged"]]
    assert len(outside) == 20 and all(0.2 < row["mfu"] < 0.6 for row in outside)


def test_a_group_held_out_is_not_looked_at():
    whole, rest = room._fit(), room._fit("source", "lf")
    assert ("source", "lf") in whole[1] and ("source", "lf") not in rest[1]
    assert whole[2] - rest[2] == 192
    assert ("family", "Hopper") not in room._fit("family", "Hopper")[1]


def test_scores_beat_every_simple_rule():
    scores = step_scores()
    assert len(scores) == 24
    for held in ("program", "chip family", "model"):
        for which, count in (("ordinary", 170), ("all", 330)):
            own = scores[f"parts of a step, {which}, {held} held out"]
            assert own.rows >= count and 0.75 <= own.coverage_80 <= 0.93
            for rule in RULES:
                other = scores[f"{rule}, {which}, {held} held out"]
                assert own.median_factor < other.median_factor
                assert own.p90_factor < other.p90_factor
                assert own.interval_score < other.interval_score
    assert scores["parts of a step, ordinary, program held out"].median_factor < 1.13
    assert scores["parts of a step, all, program held out"].median_factor < 1.20
    assert scores["parts of a step, all, program held out"].p90_factor < 1.7


# ------------------------------------------------------------------ floor 9
def test_an_estimate_tells_the_speed_of_a_step():
    order = {"tokens": 1e12, "accelerator": H100, "count": 64, "accelerator_hours": 1e5,
             "params": 8.03e9, "layers": 32, "width": 4096, "seq_len": 8192}
    told = estimate_pretrain(**order)["step_tokens_per_s_per_accelerator"]
    sizes = {name: order[name] for name in ("params", "layers", "width", "seq_len", "count")}
    mine = step_tokens_per_s(accelerator=H100, **sizes)
    assert told == {"p10": mine.p10, "p50": mine.p50, "p90": mine.p90}
    known = estimate_pretrain(**order, mfu=0.4)["step_tokens_per_s_per_accelerator"]
    flop = 6 * 8.03e9 + 12 * 32 * 4096 * 8192
    assert known["p10"] == known["p50"] == known["p90"] == pytest.approx(0.4 * 989.4e12 / flop)
    once = estimate_pretrain(**order, recompute="none")["step_tokens_per_s_per_accelerator"]
    assert once["p50"] > told["p50"]
