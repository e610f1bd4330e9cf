"""Whole runs: predicted from what was known before, judged by what is published."""
import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from flm_nb.core import InputError, catalogue_rows
from flm_nb.count import runs
from flm_nb.count.published import left_out_because, run_flop
from flm_nb.count.runs import EFFECTS, as_run, backtest, run_effects, run_scores, wall_mfu

ROWS = catalogue_rows("runs")
BY_NAME = {row["model"]: row for row in ROWS}
BLANKED = ["chip_hours", "chip_hours_basis", "wall_days", "reported_mfu", "reported_hfu",
           "reported_tflops_per_chip", "reported_MFU_or_TFLOPs_per_chip", "reported_FLOPs",
           "reported_cost_usd", "cost_basis", "energy_mwh", "co2_t", "energy_basis",
           "reported_energy_or_co2", "source", "confidence", "notes"]
NEW = {"model": "Stranger 7B", "org": "Nobody", "year": "2025", "kind": "full_run",
       "arch_type": "decoder", "total_params": "7e9", "active_params": "7e9", "layers": "32",
       "hidden": "4096", "heads": "32", "head_dim": "128", "seq_len": "4096", "tokens": "2e12",
       "unit": "token", "hardware": "H100-SXM-80GB", "train_dtype": "bf16",
       "chips_count": "512", "chip_hours": "70000"}


def write(path, rows):
    """A file with the columns of the packaged one."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def predicted(told):
    return [[row[key] for key in ("model", "p10", "p50", "p90")] for row in told["rows"]]


# ------------------------------------------------------------------ the contract
def test_the_answer_has_its_shape():
    told = backtest()
    assert {"rows", "n", "median_factor", "p90_factor", "coverage_80"} <= set(told)
    assert [row["model"] for row in told["rows"]] == [row["model"] for row in ROWS]
    for row in told["rows"]:
        assert list(row) == ["model", "p10", "p50", "p90", "published", "used", "why"]
        if row["p50"] is None:
            assert row["why"] and not row["used"] and row["p10"] is row["p90"] is None
        else:
            assert 0 < row["p10"] < row["p50"] < row["p90"] < math.inf
        assert row["used"] or row["why"]
    assert told["n"] == sum(row["used"] for row in told["rows"]) == 35
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_blanked_cells_change_no_prediction(tmp_path):
    strangers = [NEW, NEW | {"model": "other", "org": "Meta", "notes": "x", "wall_days": "9"}]
    whole = write(tmp_path / "whole.csv", ROWS + strangers)
    blank = write(tmp_path / "blank.csv", [{key: "" if key in BLANKED else cell
                                            for key, cell in row.items()}
                                           for row in ROWS + strangers])
    before, after = backtest(whole), backtest(blank)
    assert predicted(before) == predicted(after)
    assert predicted(before)[:len(ROWS)] == predicted(backtest())
    assert all(row["published"] is None and not row["used"] for row in after["rows"])
    assert after["n"] == 0 and after["median_factor"] is after["coverage_80"] is None
    assert after["verdict"].startswith("nothing to judge")
    assert sum(row["p50"] is not None for row in after["rows"]) >= 45


def test_a_file_teaches_nothing(tmp_path):
    before = backtest(), wall_mfu("H100-SXM-80GB", params=7e9)
    wild = [row | {"chip_hours": "1e30", "model": f"wild {i}", "tokens": "1e12",
                   "active_params": f"{i + 1}e9", "unit": "token", "kind": "full_run"}
            for i, row in enumerate(ROWS)]
    told = backtest(write(tmp_path / "wild.csv", wild))
    assert told["coverage_80"] == 0 and told["median_factor"] > 1e10
    assert (backtest(), wall_mfu("H100-SXM-80GB", params=7e9)) == before
    alone = backtest(write(tmp_path / "one.csv", [NEW]))["rows"][0]
    among = backtest(write(tmp_path / "two.csv", [*wild, NEW]))["rows"][-1]
    assert alone == among


def test_open_rows_do_not_see_their_organisation(monkeypatch):
    """Whatever Meta's hours are, the prediction of its own runs stays."""
    honest = {row["model"]: row["p50"] for row in backtest()["rows"]}
    twisted = [row | {"chip_hours": str(50 * float(row["chip_hours"]))}
               if row["org"] == "Meta" and row["chip_hours"] else row for row in ROWS]
    monkeypatch.setattr(runs, "catalogue_rows", lambda name: twisted if name == "runs"
                        else catalogue_rows(name))
    for name in ("_teachers", "_fit"):
        monkeypatch.setattr(runs, name, getattr(runs, name).__wrapped__)
    for row in (row for row in twisted if row["model"] in (
            "Llama-2-7B", "Llama-3.1-405B", "OPT-175B", "Falcon-180B")):
        run, out = as_run(row), runs._held_out(row)
        p50 = runs._hours(run, "flm_nb", out)[1]
        if row["org"] == "Meta":
            assert out == {"meta"} and p50 == pytest.approx(honest[row["model"]])
        else:
            assert p50 > 1.2 * honest[row["model"]]  # the twist reaches the others


def test_a_renamed_packaged_run_is_still_held_out(tmp_path):
    row = BY_NAME["Llama-2-7B"]
    told = backtest(write(tmp_path / "one.csv", [row | {"model": "Renamed"}]))["rows"][0]
    plain = next(row for row in backtest()["rows"] if row["model"] == "Llama-2-7B")
    assert told["p50"] == plain["p50"] and "without meta" in told["why"]


# ------------------------------------------------------------------ which rows are judged
@pytest.mark.parametrize("changes", [
    {"kind": "throughput_benchmark"}, {"kind": "fine_tune"}, {"kind": "third_party_estimate"},
    {"notes": "hours circular"}, {"chip_hours_basis": "derived from 1.15k tok/s/chip"},
    {"chip_hours_basis": "6ND / (MFU 40 % x peak)"}, {"notes": "tokens inferred from FLOPs"},
    {"notes": "Hours back-calculated from the reported FLOP. Nice run."},
    {"chip_hours_basis": "assuming 40% MFU"}])
def test_circles_and_parts_are_left_out_and_named(changes, tmp_path):
    told = backtest(write(tmp_path / "one.csv", [NEW | changes]))
    row = told["rows"][0]
    assert not row["used"] and told["n"] == 0 and row["p50"] and row["published"] == 70_000
    assert "no full run" in row["why"] or "derived from each other" in row["why"]


@pytest.mark.parametrize("changes", [
    {"cost_basis": "circular"}, {"energy_basis": "TDP x hours (circular)"},
    {"notes": "cost is circular: derived from tok/s and a rental price"},
    {"notes": "energy computed from TDP x hours; circular energy"},
    {"chip_hours_basis": "512 x 10 d; upper bound"}, {"confidence": "uncertain"},
    {"chip_hours_basis": "reported (iteration time x iters x GPUs)"},
    {"notes": "117 TFLOP/s counts recomputation; 64% implied MFU"}])
def test_doubts_and_money_leave_nothing_out(changes):
    assert left_out_because(NEW | changes) == ""


def test_the_packaged_rows_fall_on_the_right_side():
    told = {row["model"]: row for row in backtest()["rows"]}
    for name in ("GPT-3 175B", "ViT-22B", "GPT-4 (estimate)", "MT-NLG 530B (280 DGX)",
                 "MPT-30B (price table)", "Code Llama (12 models total)"):
        assert not told[name]["used"] and told[name]["published"]
    for name in ("DeepSeek-V3 (pre-training)", "OPT-175B", "TinyLlama-1.1B (3T)", "Phi-1.5",
                 "GLM-130B", "Llama-3-8B", "T5-11B", "ResNet-50 (Goyal 1-hour)"):
        assert told[name]["used"]
    teaching = {run.model for run, _ in runs._calibration(frozenset())}
    assert not teaching & {"GPT-3 175B", "ViT-22B", "Phi-1.5", "GPT-2 1.5B (2019)"}


# ------------------------------------------------------------------ the arithmetic
def test_flop_against_published():
    for name, flop, tolerance in (("Llama-3.1-405B", 3.8e25, 0.12), ("T5-11B", 4.05e22, 0.08),
                                  ("StarCoderBase 15.5B", 8.46e22, 0.4),
                                  ("ViT-H/14 (JFT, 14 ep)", 4.262e21, 0.01)):
        assert run_flop(BY_NAME[name])[0] == pytest.approx(flop, rel=tolerance)
    bare = {"model": "x", "tokens": "1e9", "active_params": "1e9"}
    assert run_flop(bare) == (6e18, "")
    assert run_flop(bare | {"kind": "peft"})[0] == 4e18


def test_missing_cells_are_handled_or_named():
    for gone in NEW:
        row = {key: "" if key == gone else cell for key, cell in NEW.items()}
        run = as_run(row)
        if gone in ("tokens", "hardware"):
            assert run.why and (run.flop is None or run.peak_flop_per_s is None)
        else:
            assert run.flop > 0 and math.isfinite(runs._predict(run, frozenset())[0])
    both = NEW | {"active_params": "", "total_params": ""}
    assert as_run(both).why.startswith("parameters are missing")
    sizes = as_run(both | {"ffn": "11008", "vocab": "32000"})
    assert 1e9 < sizes.flop / 6 / 2e12 < 1e10
    sparse = as_run(NEW | {"arch_type": "decoder-MoE", "active_params": "", "layers": ""})
    assert sparse.flop == pytest.approx(6 * 7e9 / 14 * 2e12) and "unknown" in sparse.why
    plain = as_run(NEW | {"arch_type": "decoder-MoE", "active_params": "1e9", "layers": ""})
    assert runs._predict(sparse, frozenset())[1] > 1.4 * runs._predict(plain, frozenset())[1]
    told = as_run(NEW | {"arch_type": "decoder-MoE", "total_params": "", "layers": ""})
    assert told.flop == pytest.approx(6 * 7e9 * 2e12) and told.why == ""


@pytest.mark.parametrize("unit,changes,flop", [
    ("image", {"fwd_macs_per_unit": "4e9"}, 6 * 4e9 * 2e12), ("image", {}, None),
    ("image", {"ffn": "16384"}, 6 * 2e12 * 32 * 4096 * (12 * 4096**2 + 2 * 4096 * 4096)),
    ("image-text pair", {"fwd_macs_per_unit": "8e10", "layers": ""}, 6 * 8e10 * 2e12)])
def test_images_count_by_their_forward_pass(unit, changes, flop):
    told, why = run_flop(NEW | {"unit": unit} | changes)
    assert told == pytest.approx(flop) if flop else told is None and "fwd_macs" in why


@pytest.mark.parametrize("name", [
    "TPUv4", "TPUv5p", "MI250X", "GB200 (per GPU)", "Ascend 910B (B2, 64 GB)", "Gaudi2", "T4",
    "H20", "Trainium2", "V100", "H100", "A100"])
def test_other_hardware_gets_an_answer(name):
    mean, spread = runs._predict(as_run(NEW | {"hardware": name}), frozenset())
    assert 0.1 < math.exp(mean) < 0.7 and 0.25 < spread < 0.6
    assert as_run(NEW | {"hardware": name}).peak_flop_per_s > 6e13


def test_names_find_their_chip_or_say_so():
    assert as_run(NEW | {"hardware": "H100"}).peak_flop_per_s == 989.4e12
    assert as_run(NEW | {"hardware": "tpu v4"}).peak_flop_per_s == 275e12
    assert as_run(NEW | {"train_dtype": "fp8"}).peak_flop_per_s == 1978.9e12
    assert as_run(NEW | {"train_dtype": "fp32/mixed"}).peak_flop_per_s == pytest.approx(66.9e12)
    assert as_run(NEW | {"hardware": "TPUv3", "train_dtype": "fp32"}).peak_flop_per_s == 123e12
    lost = as_run(NEW | {"hardware": "H1000-SXM"})
    assert lost.peak_flop_per_s is None and "near: H800-SXM, H200-SXM" in lost.why


# ------------------------------------------------------------------ bad files
@pytest.mark.parametrize("content,told", [
    (b"", "is empty"), (b"model,tokens,active_params,hardware\n", "no rows"),
    (b"model,tokens\na,1\n", "lacks the columns active_params, hardware"),
    (b"\xff\xfe\x00m", "cannot be read"), (b"\x80\x81,\n", "cannot be read"),
    (b"model,tokens,active_params,hardware\na,1,2,3,4\n", "more cells than columns in row 2"),
    (b'model,tokens,active_params,hardware\na,1,2,"3\n', "cannot be read"),
    (b"model,tokens,active_params,hardware\na,nan,2,T4\n", "tokens='nan' in the row of a"),
    (b"model,tokens,active_params,hardware\na,1e9,-2,T4\n", "active_params='-2'"),
    (b"model,tokens,active_params,hardware\na,0,2,T4\n", "tokens='0'"),
    (b"model,tokens,active_params,hardware\na,inf,2,T4\n", "tokens='inf'"),
    (b"model,tokens,active_params,hardware\na,many,2,T4\n", "tokens='many'"),
    (b"model,tokens,active_params,hardware,chip_hours\na,1e9,1e9,T4,-5\n", "chip_hours='-5'")])
def test_bad_files_give_one_sentence(content, told, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=told) as caught:
        backtest(path)
    assert "\n" not in str(caught.value)


def test_a_mark_of_byte_order_is_no_obstacle(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_bytes(b"\xef\xbb\xbfmodel,tokens,active_params,hardware\r\n\"a\nb\",1e9,1e9,T4\r\n")
    told = backtest(path)["rows"]
    assert len(told) == 1 and told[0]["model"] == "a\nb" and told[0]["p50"] > 0
    for gone in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(InputError, match="cannot be read"):
            backtest(gone)


# ------------------------------------------------------------------ the scores
def test_the_gain_over_the_strawmen():
    scores = run_scores()
    kit, constant = scores["flm_nb"], scores["constant MFU"]
    assert kit.rows == constant.rows == 35 and kit.groups == 15
    assert kit.interval_score < 0.75 * constant.interval_score
    assert kit.interval_score < scores["mean per chip"].interval_score
    assert 0.75 <= kit.coverage_80 <= 0.9 and kit.median_factor < 1.35
    widths = {method: np.mean([np.log(hours[2] / hours[0]) for hours in (
        runs._hours(run, method, out) for _, run, why, out in runs._judged(ROWS) if not why)])
        for method in ("flm_nb", "constant MFU")}
    assert widths["flm_nb"] < 0.95 * widths["constant MFU"]


def test_the_gain_needs_no_single_effect(monkeypatch):
    """Whichever effect is taken away, the others still beat the constant."""
    base = run_scores()["constant MFU"].interval_score
    monkeypatch.setattr(runs, "_fit", runs._fit.__wrapped__)
    for name in EFFECTS:
        monkeypatch.setitem(runs.EFFECTS, name, (0.0, 1e-6))
        score = run_scores()["flm_nb"].interval_score
        assert score < 0.85 * base, name
        monkeypatch.undo()
        monkeypatch.setattr(runs, "_fit", runs._fit.__wrapped__)


def test_halves_of_the_rows_predict_each_other(monkeypatch):
    """Random halves of the runs, organisations on both sides: the gain stays."""
    everything = runs._calibration(frozenset())
    judged = [(run, out) for _, run, why, out in runs._judged(ROWS) if not why]
    fit, draws, ours, theirs = runs._fit.__wrapped__, np.random.default_rng(9), [], []
    for _ in range(20):
        asked = set(draws.choice([run.model for run, _ in judged], len(judged) // 2,
                                 replace=False))
        kept = tuple(pair for pair in everything if pair[0].model not in asked)
        monkeypatch.setattr(runs, "_calibration", lambda left_out, kept=kept: kept)
        learned = fit(frozenset())
        monkeypatch.setattr(runs, "_fit", lambda left_out, learned=learned: learned)
        for method, scores in (("flm_nb", ours), ("constant MFU", theirs)):
            for run, _ in judged:
                if run.model in asked:
                    low, _, high = np.log(runs._hours(run, method, frozenset()))
                    truth = math.log(run.hours)
                    scores.append(high - low + 10 * max(0, low - truth, truth - high))
    assert np.mean(ours) < 0.8 * np.mean(theirs)


def test_llama_is_inside_or_named():
    row = next(row for row in backtest()["rows"] if row["model"] == "Llama-3.1-8B")
    assert row["published"] == 1.46e6 and row["p50"] < 1.46e6
    assert row["p10"] < 1.46e6 < 1.02 * row["p90"]


# ------------------------------------------------------------------ the prior
def test_wall_mfu_keeps_its_old_call_and_reads_the_new_words():
    plain = wall_mfu("H100-SXM-80GB")
    assert 0.15 < plain.p10 < plain.p50 < plain.p90 < 0.6 and plain.rows >= 30
    assert wall_mfu("H100-SXM-80GB", "bf16", leave_out="Meta").rows < plain.rows
    base = {"params": 7e9, "count": 64}
    ask = lambda **more: wall_mfu("H100-SXM-80GB", **(base | more)).p50  # noqa: E731
    assert ask(count=4096) < ask() and ask(params=3e8, count=1024) < ask(count=1024)
    assert ask(active_params=5e8) < ask() and ask(year=2019) < ask() == ask(year=2026)
    assert ask(arch="encoder") < ask()
    assert wall_mfu("H100-SXM-80GB", "fp8", **base).p50 < ask()
    older, newer = (wall_mfu(name, **base).p50 for name in ("A100-80GB-SXM", "B300-SXM"))
    assert older > ask() > newer
    for name in ("H1000", "here", ""):
        unknown = wall_mfu(name, **base)
        assert unknown.p90 / unknown.p10 > plain.p90 / plain.p10 and "wide" in unknown.source


@pytest.mark.parametrize("words", [{"params": 0}, {"count": -1}, {"tokens": math.nan},
                                   {"active_params": math.inf}, {"dtype": "fp64"}])
def test_wall_mfu_refuses_nonsense(words):
    with pytest.raises(InputError, match=next(iter(words))):
        wall_mfu("H100-SXM-80GB", **words)


def test_effects_stay_near_their_reasons():
    for name, (before, after, error) in run_effects().items():
        assert abs(after - before) < 2 * EFFECTS[name][1] and 0 < error <= EFFECTS[name][1]


def test_an_estimate_uses_the_size_and_the_count():
    from flm_nb.invest.cost import estimate_pretrain

    order = {"params": 1e9, "tokens": 1e11, "accelerator": "H100-SXM-80GB"}
    few, many = (estimate_pretrain(count=count, **order) for count in (8, 2048))
    assert few["accelerator_hours"]["p50"] < many["accelerator_hours"]["p50"]
    assert "crowd" in many["assumptions"]["mfu"]["source"]


def test_import_and_first_answer_are_light():
    code = ("import sys, time, numpy; start = time.perf_counter(); "
            "from flm_nb.count.runs import wall_mfu; wall_mfu('H100-SXM-80GB', params=7e9); "
            "print(time.perf_counter() - start, *({'scipy', 'pandas', 'torch'} "
            "& set(sys.modules)))")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True).stdout.split()
    assert float(told[0]) < 1.5 and len(told) == 1  # 0.1 s on an idle machine
