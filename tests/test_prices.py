"""Unit prices, programme, overlays, a million draws: each against plain arithmetic."""

import csv
import inspect
import math
import time
from datetime import date

import numpy as np
import pytest

from flm_nb import invest
from flm_nb.core import InputError, catalogue_rows, overlay_rows
from flm_nb.invest import (
    ChainDraws,
    break_even_utilisation,
    cluster_usd,
    cluster_watt,
    co2_kg,
    committed_usd_per_hour,
    cottier_usd_per_hour,
    draw_pretrain,
    electricity_usd,
    embodied_kg,
    energy_kwh,
    estimate_pretrain,
    grid_kg_per_kwh,
    irr_all,
    labels_usd,
    mirr,
    npv,
    overhead,
    own_usd_per_hour,
    people_usd,
    pretrain_chain,
    price_rows,
    programme_usd,
    rental_price,
    rental_usd,
    spot_usd_per_hour,
    storage_usd,
    usd_per_mtok,
)
from flm_nb.invest.project import check_project, example_path, read_project
from flm_nb.invest.ranges import _normal_slices
from flm_nb.invest.threshold import run_invest
from flm_nb.invest.worth import evaluate
from flm_nb.specs import Accelerator

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CALLS = {  # every unit formula, with numbers that can be meant
    energy_kwh: dict(hours=184_320, watt=400, pue=1.1),
    co2_kg: dict(kwh=81_100.8, kg_per_kwh=0.385),
    rental_usd: dict(hours=1000, usd_per_hour=2.5),
    usd_per_mtok: dict(usd_per_hour=20, tokens_per_s=2500, utilisation=0.6),
    own_usd_per_hour: dict(
        capex_usd=30_000, years=5, opex_share=0.2, discount_rate=0.08, utilisation=0.7
    ),
    cottier_usd_per_hour: dict(price_usd=30_000, fall_per_year=0.14),
    electricity_usd: dict(kwh=1000, usd_per_kwh=0.0771),
    cluster_watt: dict(watt=700, power_share=0.75, server_factor=1.8, network_share=0.05),
    embodied_kg: dict(hours=1000, kg_per_accelerator=150, years=4, utilisation=0.5),
    spot_usd_per_hour: dict(usd_per_hour=1.29, preemptions_per_hour=0.1, lost_hours=0.5),
    people_usd: dict(fte=2, years=1.5, wage_usd_per_year=112_590, load_factor=1.43),
    labels_usd: dict(items=1000, replicas=3, usd_per_label=0.012, usd_per_item=0.08),
    storage_usd: dict(
        terabytes=10, months=6, usd_per_tb_month=23, egress_terabytes=1, usd_per_egress_tb=90
    ),
}
FIELDS = [(call, name) for call, numbers in CALLS.items() for name in numbers]


# ------------------------------------------------------------------ vectors of the texts
def test_published_vectors():
    assert energy_kwh(184_320, 400, 1.1) == pytest.approx(81_100.8)
    assert co2_kg(81_100.8, 0.385) == pytest.approx(31_223.8, abs=0.1)
    assert usd_per_mtok(8 * 2.5, 2500) == pytest.approx(2.2222, abs=5e-5)
    assert cottier_usd_per_hour(30_000) == pytest.approx(1.103, abs=5e-4)
    assert own_usd_per_hour(8766, 5, 0, 0.08, 1) == pytest.approx(0.250456, abs=1e-6)
    assert own_usd_per_hour(8766 * 4, 4, 1, 0, 0.5) == 4
    h100 = cluster_watt(
        700, power_share=0.75, server_factor=10.2 / 8 / 0.7, network_share=0
    )
    assert energy_kwh(1, h100, 1.1) == pytest.approx(1.052, abs=5e-4)
    assert round(labels_usd(1000, replicas=3, usd_per_label=0.012, usd_per_item=0.08)) == 116
    assert npv(0.10, [-1000, 300, 400, 500, 200]) == pytest.approx(115.57, abs=5e-3)
    assert mirr([-1000, 300, 400, 500, 200], 0.10, 0.10) == pytest.approx(0.1305, abs=5e-5)
    assert npv(0.10, [-1000, 500, 500, 500]) == pytest.approx(243.426, abs=5e-4)


@pytest.mark.parametrize(
    "provider, one, three", [("aws", 0.59, 0.36), ("GCP", 0.63, 0.44), ("azure", 0.75, 0.51)]
)
def test_commitments_are_discounts(provider, one, three):
    assert committed_usd_per_hour(10, provider) == pytest.approx(10 * one)
    assert committed_usd_per_hour([10, 20], provider, 3).tolist() == pytest.approx(
        [10 * three, 20 * three]
    )


@pytest.mark.parametrize("chip, factor", [
    ("A100-80GB-PCIe", 1.66), ("V100S-PCIe-32GB", 1.64), ("V100-SXM2-32GB", 1.69),
    ("P100-SXM2", 1.54), ("H100-SXM-80GB", 1.64), ("TPUv4", 1.64)])
def test_a_chip_brings_its_server_and_its_network(chip, factor):
    assert overhead("server_price_factor", chip).value == factor
    share = overhead("interconnect_share", chip).value
    whole = cluster_usd(10_000, server_factor=factor, interconnect_share=share)
    assert share == 0.19 and whole.total == pytest.approx(10_000 * factor / 0.81)
    assert whole.parts["network"] / whole.total == pytest.approx(0.19)


def test_owning_is_an_annuity_year_by_year():
    for years, rate in ((3, 0.12), (5, 0.08), (4, 0.0), (7, 1e-9)):
        hour = own_usd_per_hour(50_000, years, discount_rate=rate)
        assert npv(rate, [-50_000] + years * [hour * 8766]) == pytest.approx(0, abs=1e-3)


def test_break_even_is_where_the_two_bills_meet():
    told = break_even_utilisation(1.2, 2.5, 0.1)
    hours = told.utilisation * 8766
    assert 1.2 * 8766 + 0.1 * hours == pytest.approx(2.5 * hours)
    for rent, power in ((1.2, 0.1), (0.5, 0.6), (1.29, 0.1)):
        never = break_even_utilisation(1.2, rent, power)
        assert never.utilisation is None and not never.feasible
        assert "renting is cheaper at any use" in never.why
    draws = break_even_utilisation([1.2, 1.2, 1.2], [2.5, 1.0, 0.5], 0.6)
    assert draws.feasible.tolist() == [True, False, False]
    assert np.isfinite(draws.utilisation).all() and (draws.utilisation <= 1).all()


# ------------------------------------------------------------------ numbers, lists, arrays
@pytest.mark.parametrize("call, name", FIELDS)
def test_each_field_takes_a_list_and_an_array(call, name):
    numbers = CALLS[call]
    low, high = numbers[name], numbers[name] * 1.05
    one_by_one = [call(**numbers | {name: value}) for value in (low, high)]
    assert all(isinstance(value, float | int) for value in one_by_one)
    for pair in ([low, high], (low, high), np.array([low, high])):
        assert call(**numbers | {name: pair}).tolist() == pytest.approx(one_by_one)
    table = call(**numbers | {name: np.full((2, 3), high)})
    assert table.shape == (2, 3) and table[1, 2] == pytest.approx(one_by_one[1])


@pytest.mark.parametrize("call", [energy_kwh, co2_kg, usd_per_mtok, own_usd_per_hour])
def test_the_contract_goes_by_position_and_by_name(call):
    numbers = CALLS[call]
    assert call(*numbers.values()) == call(**numbers)
    assert list(inspect.signature(call).parameters) == list(numbers)


NONSENSE = [
    -1, math.nan, math.inf, -math.inf, "7", "", None, True, [], {}, [1, [2]], 1j, 10**400,
    [0.5, math.nan], np.array([True]),
]


@pytest.mark.parametrize("value", NONSENSE, ids=repr)
@pytest.mark.parametrize("call, name", FIELDS)
def test_nonsense_is_one_clear_sentence(call, name, value):
    with pytest.raises(InputError) as caught:
        call(**CALLS[call] | {name: value})
    assert caught.value.field == name and "is no number between" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call, name, slip, hint", [
    (energy_kwh, "pue", 125, "did you mean 1.25?"),
    (energy_kwh, "watt", 0.7, "did you mean 700 W for 0.7 kW?"),
    (usd_per_mtok, "utilisation", 80, "did you mean 0.8?"),
    (own_usd_per_hour, "utilisation", 80, "did you mean 0.8?"),
    (own_usd_per_hour, "discount_rate", 8, "did you mean 0.08?"),
    (own_usd_per_hour, "opex_share", 20, "did you mean 0.2?"),
    (co2_kg, "kg_per_kwh", 385, "did you mean 0.385 kg for 385 g?"),
    (electricity_usd, "usd_per_kwh", 15, "did you mean 0.15 USD for 15 cents?"),
    (cluster_watt, "power_share", 75, "did you mean 0.75?"),
])
def test_a_slip_gets_its_remedy(call, name, slip, hint):
    with pytest.raises(InputError) as caught:
        call(**CALLS[call] | {name: slip})
    assert str(caught.value).endswith(hint)


@pytest.mark.parametrize("call, name", [
    (energy_kwh, "hours"), (energy_kwh, "watt"), (energy_kwh, "pue"),
    (rental_usd, "hours"), (rental_usd, "usd_per_hour"), (usd_per_mtok, "usd_per_hour"),
    (usd_per_mtok, "tokens_per_s"), (usd_per_mtok, "utilisation"),
    (own_usd_per_hour, "capex_usd"), (own_usd_per_hour, "years"),
    (own_usd_per_hour, "utilisation"), (cottier_usd_per_hour, "price_usd")])
@pytest.mark.parametrize("factor", [0, 1e9])
def test_zero_and_a_factor_of_1e9_are_refused(call, name, factor):
    value = CALLS[call][name] * factor
    with pytest.raises(InputError, match=f"{name}="):
        call(**CALLS[call] | {name: value})


@pytest.mark.parametrize("change", [
    {"mfu": 45}, {"pue": 125}, {"grid_kg_per_kwh": 385}, {"usd_per_hour": 2.5e9},
    {"usd_per_hour": 0}, {"usd_per_hour": -2}, {"watt": 700e9}, {"watt": 0}, {"mfu": 0},
    {"mfu": math.nan}, {"tokens": math.inf}, {"tokens": -1}, {"count": True}, {"watt": "700"},
])
def test_the_estimate_refuses_the_same(change):
    order = dict(params=7e9, tokens=2e12, accelerator="A100-80GB-SXM", count=64)
    with pytest.raises(InputError) as caught:
        estimate_pretrain(**order | change)
    assert caught.value.field == next(iter(change))


def test_a_lost_spot_hour_is_refused():
    with pytest.raises(InputError, match="save more often"):
        spot_usd_per_hour(1, preemptions_per_hour=2, lost_hours=0.5)


# ------------------------------------------------------------------ flows
def test_worth_of_draws_is_the_worth_of_each():
    rng = np.random.default_rng(1)
    flows = [-100, rng.normal(60, 5, 50), 40.0, rng.normal(30, 5, 50)]
    rates = rng.uniform(0.02, 0.2, 50)
    for place in (0, 49):
        row = [float(np.ravel(x)[place if np.size(x) > 1 else 0]) for x in flows]
        by_hand = sum(x / (1 + rates[place]) ** year for year, x in enumerate(row))
        assert npv(rates, flows)[place] == pytest.approx(by_hand)
        single = mirr(row, 0.1, 0.12)
        assert mirr(flows, 0.1, 0.12)[place] == pytest.approx(single)
        assert irr_all(flows)[place] == pytest.approx(irr_all(row))
    assert npv(0.1, np.array([[-1.0, -2.0], [1.1, 2.2]])) == pytest.approx([0, 0])
    with pytest.raises(InputError, match="draws of its years"):
        npv(0.1, [np.ones(3), np.ones(4)])


@pytest.mark.parametrize("flows, rates", [
    ([-50, -100, 600, 300, -100], [-0.769, 1.854]), ([-1000, 500, 500, 500], [0.233752]),
    ([1, 2, 3], []), ([-1, -2], []), ([0, 0], []), ([5], []), ([], []), (None, []),
    ("text", []), (7, []), ([math.nan, 1], []), ([-1, math.inf], []), ([[1, 2], [3]], []),
    ([100, -150, 100], []), ([-1e300, 1e308, 1e308], [99_999_999.999]),
    ([-1000] + [10] * 120, [0.0031]), ([1e-300, -1e-300], [0.0]),
])
def test_every_rate_or_none_and_never_an_error(flows, rates):
    assert irr_all(flows) == pytest.approx(rates, abs=5e-4, rel=1e-6)
    for rate in irr_all(flows):
        terms = [amount / (1 + rate) ** year for year, amount in enumerate(flows)]
        assert abs(sum(terms)) <= 1e-9 * sum(map(abs, terms))


# ------------------------------------------------------------------ programme and chain
PLAN = dict(
    active_params=7e9, layers=32, width=4096, seq_len=4096, tokens=2e12,
    peak_flop_per_s=989.4e12, mfu=0.38, usd_per_hour=2.5, watt=1000, pue=1.2,
    grid_kg_per_kwh=0.35, development_ratio=0.5, failed_ratio=0.1, people_usd=2e6,
    data_usd=3e5, evaluation_usd=5e4, storage_usd=2e4, value_usd_per_year=1.5e6,
    growth_per_year=0.2, running_usd_per_year=4e5, discount_rate=0.1, horizon_years=5,
)
CERTAIN = ("layers", "width", "seq_len", "peak_flop_per_s", "horizon_years")
DOUBT = PLAN | {
    name: {"p10": 0.8 * value, "p50": value, "p90": min(1.25 * value, 0.99)
           if name == "mfu" else 1.25 * value}
    for name, value in PLAN.items() if name not in (*CERTAIN, "pue")
} | {"pue": {"p10": 1.1, "p50": 1.2, "p90": 1.4}}


def test_the_chain_is_plain_arithmetic():
    told = pretrain_chain(**PLAN)
    flop = (6 * 7e9 + 12 * 32 * 4096 * 4096) * 2e12
    hours = flop / (989.4e12 * 0.38) / 3600
    whole = hours * 2.5 * 1.6 + 2e6 + 3e5 + 5e4 + 2e4
    flows = [-whole] + [1.5e6 * 1.2**year - 4e5 for year in range(5)]
    expected = {
        "flop": flop, "accelerator_hours": hours, "usd": hours * 2.5, "kwh": hours * 1.2,
        "co2_kg": hours * 1.2 * 0.35, "programme_usd": whole,
        "npv_usd": sum(x / 1.1**year for year, x in enumerate(flows)),
    }
    assert told == pytest.approx(expected, rel=1e-12)


def test_the_chain_is_the_estimate():
    chip = Accelerator.named("H100-SXM-80GB")
    shape = {name: PLAN[name] for name in ("layers", "width", "seq_len", "tokens", "mfu",
                                           "usd_per_hour", "watt", "pue", "grid_kg_per_kwh")}
    told = estimate_pretrain(params=7e9, accelerator=chip.name, count=512, **shape)
    ours = pretrain_chain(**PLAN | {"peak_flop_per_s": chip.peak("bf16")})
    assert ours["flop"] == told["flop"]
    for name in ("accelerator_hours", "usd", "kwh", "co2_kg"):
        assert ours[name] == pytest.approx(told[name]["p50"], rel=1e-12)


def test_one_draw_is_the_scalar_chain():
    study = draw_pretrain(DOUBT, draws=1000, seed=3)
    uncertain = [name for name, x in study.inputs.items() if np.ndim(x)]
    assert len(uncertain) == 17
    for place in (0, 17, 999):
        one = {name: x if np.ndim(x) == 0 else float(x[place])
               for name, x in study.inputs.items()}
        alone = pretrain_chain(**one)
        for name, value in alone.items():
            assert study.outputs[name][place] == pytest.approx(value, rel=1e-12)
    same = draw_pretrain(DOUBT, draws=1000, seed=3)
    assert (same.outputs["npv_usd"] == study.outputs["npv_usd"]).all()
    other = draw_pretrain(DOUBT, draws=1000)
    assert (other.outputs["npv_usd"] != study.outputs["npv_usd"]).any()


def test_draws_have_the_quantiles_that_were_asked_for():
    study = draw_pretrain(DOUBT, draws=20_000)
    for name, told in DOUBT.items():
        if isinstance(told, dict):
            found = np.quantile(study.inputs[name], [0.1, 0.5, 0.9])
            assert found == pytest.approx(list(told.values()), rel=2e-3)
    hours = study.outputs["accelerator_hours"]  # a product of lognormals: logs add up
    spread = {name: np.log(study.inputs[name]).std() for name in ("active_params", "tokens",
                                                                  "mfu")}
    weight = 6 * 7e9 / (6 * 7e9 + 12 * 32 * 4096 * 4096)  # of the parameters in the FLOP
    expected = math.hypot(weight * spread["active_params"], spread["tokens"], spread["mfu"])
    assert np.log(hours).std() == pytest.approx(expected, rel=0.02)  # sampling of 20,000


def test_quantiles_are_taken_once_at_the_end():
    study = draw_pretrain(DOUBT, draws=5000)
    told = study.quantiles()
    for name, x in study.outputs.items():
        assert told[name]["p90"] == pytest.approx(np.quantile(x, 0.9), rel=1e-3)
    assert study.p_loss == pytest.approx((study.outputs["npv_usd"] < 0).mean())
    assert isinstance(study, ChainDraws) and "npv_usd" in repr(study)


def test_given_draws_and_numbers_pass_through():
    rents = np.linspace(1, 4, 500)
    study = draw_pretrain(PLAN | {"usd_per_hour": rents}, draws=500)
    assert (study.inputs["usd_per_hour"] == rents).all()
    assert study.outputs["usd"] / rents == pytest.approx(study.outputs["accelerator_hours"])
    certain = draw_pretrain(PLAN)
    assert certain.quantiles()["npv_usd"]["p10"] == certain.quantiles()["npv_usd"]["p90"]


@pytest.mark.parametrize("change, told", [
    ({"mfo": 0.4}, "near: mfu"), ({"mfu": 45}, "mfu=45 is no number"),
    ({"mfu": {"p10": 0.3, "p50": 0.2, "p90": 0.4}}, "ordered"),
    ({"mfu": {"p10": 0.3, "p90": 0.4}}, "is no range"), ({"mfu": "0.4"}, "mfu='0.4'"),
    ({"usd_per_hour": np.ones(7)}, "give 10,000 draws"), ({"pue": 0.5}, "pue=0.5"),
    ({"horizon_years": 2.5}, "whole number"), ({"discount_rate": 10}, "did you mean 0.1?"),
    ({"development_ratio": math.nan}, "development_ratio=nan"),
])
def test_the_chain_refuses_in_one_sentence(change, told):
    with pytest.raises(InputError) as caught:
        draw_pretrain(PLAN | change)
    assert told in str(caught.value)


def test_a_missing_number_and_too_few_draws_are_said():
    with pytest.raises(InputError, match="inputs='watt' is missing"):
        draw_pretrain({name: value for name, value in PLAN.items() if name != "watt"})
    for draws in (99, 1e4, True, -5):
        with pytest.raises(InputError, match="from 100 on"):
            draw_pretrain(DOUBT, draws=draws)


def test_the_programme_is_a_sum_that_takes_draws():
    numbers = dict(development_ratio=0.5, failed_ratio=0.1, people_usd=10, data_usd=1,
                   evaluation_usd=2, storage_usd=3)
    assert programme_usd(100, **numbers).total == pytest.approx(176)
    assert programme_usd([100, 200], **numbers).total.tolist() == pytest.approx([176, 336])
    for name in numbers:
        with pytest.raises(InputError, match=f"{name}=-1"):
            programme_usd(100, **numbers | {name: -1})


def test_a_million_draws_take_a_second_of_one_core():
    _normal_slices.cache_clear()
    start = time.process_time()
    study = draw_pretrain(DOUBT, draws=1_000_000)
    seconds = time.process_time() - start
    assert study.outputs["npv_usd"].shape == (1_000_000,)
    assert seconds < 3  # 0.6 on a quiet machine (benchmarks/results/draws.csv); target 1.5


# ------------------------------------------------------------------ catalogue and overlay
@pytest.mark.parametrize("table", ["runs", "accelerators", "api_prices", "rental_prices",
                                   "grids", "overheads"])
def test_every_row_says_unit_source_date_and_confidence(table):
    for row in catalogue_rows(table):
        assert row["confidence"]
        if table in ("api_prices", "rental_prices", "grids", "overheads"):
            assert row["unit"] and row["source"]
            assert row.get("as_of") or row.get("year") or "not stated" in row["confidence"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of the user's own tables."""
    monkeypatch.setenv("FLM_NB_CATALOGUE", str(tmp_path))

    def write(table, text):
        (tmp_path / f"{table}.csv").write_text(text, encoding="utf-8")

    return write


ORDER = dict(params=7e9, tokens=2e12, accelerator="h100-sxm-80gb", count=64)


def test_an_overlay_changes_the_estimate_and_says_so(folder):
    before = estimate_pretrain(**ORDER)
    folder("accelerators", "name,rental_usd_h,rental_source\n"
                           "H100-SXM-80GB,1.5,contract of 2026-10\n")
    folder("grids", "region,g_co2_per_kwh,source,year\nusa,100,my meter,2026\n")
    after = estimate_pretrain(**ORDER)
    assert after["usd"]["p50"] == pytest.approx(before["usd"]["p50"] * 1.5 / 2.99)
    assert after["kwh"] == before["kwh"] and after["flop"] == before["flop"]
    assert after["co2_kg"]["p50"] == pytest.approx(after["kwh"]["p50"] * 0.1)
    for name in ("usd_per_hour", "grid_kg_per_kwh"):
        assert "FLM_NB_CATALOGUE/" in after["assumptions"][name]["source"]
        assert "FLM_NB_CATALOGUE" not in before["assumptions"][name]["source"]
    assert Accelerator.named("H100-SXM-80GB").usd_per_hour == 1.5
    assert grid_kg_per_kwh("United States").value == 0.1


def test_an_overlay_adds_a_chip_that_can_be_asked_for(folder):
    before = len(catalogue_rows("accelerators"))
    folder("accelerators", "name,fp16_bf16,memory_gb,mem_bw_gbs,tdp_w\nX1,500,96,2000,400\n")
    rows = catalogue_rows("accelerators")
    assert len(rows) == before + 1 and rows[-1]["origin"] == "FLM_NB_CATALOGUE/accelerators.csv"
    told = estimate_pretrain(**ORDER | {"accelerator": "X1"}, mfu=0.4)
    assert told["usd"] is None and "no rental price of X1" in told["why"]
    assert told["kwh"]["p50"] > 0


def test_an_overlay_of_factors_reaches_the_formulas(folder):
    folder("overheads", "key,applies_to,value,unit,source,as_of\n"
                        "commitment_discount_1y,aws,0.5,share,offer,2026-11\n")
    assert committed_usd_per_hour(10, "aws") == 5
    assert committed_usd_per_hour(10, "gcp") == pytest.approx(6.3)


def test_a_file_that_changed_is_read_again(folder):
    for price in ("0.5", "0.75"):
        folder("api_prices",
               "provider,model,input_usd_per_mtok,output_usd_per_mtok,source,as_of\n"
               f"house,tiny,{price},{price}0,contract {price},2026-11-01\n")
        assert invest.api_price("tiny").input_usd_per_mtok == float(price)
        assert invest.api_price("tiny").confidence == "given by you"


@pytest.mark.parametrize("table, text, told", [
    ("grids", "region,name,g_co2_per_kwh,source,year\nX,x,forty,me,2026\n",
     "grids.csv, line 2, column g_co2_per_kwh='forty' is no price"),
    ("grids", "region,name,g_co2_per_kwh,source,year\nX,x,-4,me,2026\n", "column g_co2_per"),
    ("grids", "region,name,g_co2_per_kwh,source,year\nX,x,nan,me,2026\n", "column g_co2_per"),
    ("grids", "region,name,gco2_per_kwh,source,year\nX,x,4,me,2026\n", "near: g_co2_per_kwh"),
    ("grids", "region;name;g_co2_per_kwh\nX;x;4\n", "grids.csv, line 1' has a column"),
    ("grids", "region,name,g_co2_per_kwh,source,year\nX,x,4,me,2026,more\n", "more cells"),
    ("grids", "region,name,g_co2_per_kwh,source,year\nX,x,4,,2026\n", "line 2' has no source"),
    ("grids", "region,name,g_co2_per_kwh,source,year\nX,x,4,me,2026\nx,x,5,me,2026\n",
     "line 3' names x again"),
    ("grids", "region,name,source,year\nXX,x,me,2026\n", "line 2' has no g_co2_per_kwh"),
    ("accelerators", "name,rental_usd_h\nL4,0.3\n", "line 2' has no rental_source"),
    ("accelerators", "name,tdp_w\nX1,300\n", "has no memory_gb, mem_bw_gbs"),
    ("api_prices", "provider,model,input_usd_per_mtok,source,as_of\nopenai,gpt-5-mini,1,me,\n",
     "has no as_of"),
    ("accelerators", "name,fp16_bf16\nH100-SXM-80GB,1979\n", "a sparse peak is twice it"),
    ("accelerators", "name,fp16_bf16,fp8,memory_gb,mem_bw_gbs\nX1,1979,1979,80,3350\n",
     "looks like a sparse peak"),
    ("accelerators", "name,fp16_bf16,memory_gb,mem_bw_gbs\nX1,989.4e12,80,3350\n",
     "column fp16_bf16='989.4e12' is no price or number from 0.01 to 100000; mind the unit"),
    ("accelerators", "name,memory_gb,mem_bw_gbs\nX1,80e9,3350\n", "column memory_gb='80e9'"),
    ("accelerators", "name,memory_gb,mem_bw_gbs\nX1,80,3.35\n", "column mem_bw_gbs='3.35'"),
    ("grids", "region,name,g_co2_per_kwh,source,year\nX,x,0.37,me,2026\n", "from 1 to 3000"),
    ("rents", "a,b\n1,2\n", "rents.csv' overlays no table; there are accelerators.csv"),
    ("runs", "model\nmine\n", "runs.csv' overlays no table"),
])
def test_a_slip_in_an_overlay_names_file_line_and_column(folder, table, text, told):
    folder(table, text)
    with pytest.raises(InputError) as caught:
        for name in ("grids", "accelerators", "api_prices"):
            catalogue_rows(name)
    assert told in str(caught.value)


def test_a_broken_rent_of_your_own_is_not_passed_over(folder):
    head = "provider,region,instance,accelerator,usd_per_accelerator_hour,source,as_of\n"
    plan = {"params": 7e9, "tokens": 1e12, "accelerator": "H100-SXM-80GB", "count": 8}
    folder("rental_prices", head + "me,here,box,H100-SXM-80GB,1.5,bill,2026-10\n")
    assert estimate_pretrain(**plan)["assumptions"]["usd_per_hour"]["value"] == 1.5
    folder("rental_prices", head + "me,here,box,H100-SXM-80GB,-1,bill,2026-10\n")
    with pytest.raises(InputError, match="column usd_per_accelerator_hour='-1'"):
        estimate_pretrain(**plan)


def test_no_run_beats_its_peak_or_its_own_step():
    plan = {"model": "llama-2-7b", "tokens": 2e12, "accelerator": "H100-SXM-80GB", "count": 256}
    with pytest.warns(UserWarning, match="take 25,877.* hours at the full peak"):
        short = estimate_pretrain(**plan, accelerator_hours=1)
    assert short["usd"]["p50"] == 2.99 and "warning: accelerator_hours=1" in short["why"]
    told = estimate_pretrain(**plan, micro_batch=1)
    for q, hours in told["accelerator_hours"].items():
        other = {"p10": "p90", "p50": "p50", "p90": "p10"}[q]
        step = told["step_tokens_per_s_per_accelerator"][other]
        assert hours >= 2e12 / step / 3600 * (1 - 1e-9)
    many = estimate_pretrain(**plan, micro_batch=1000)
    assert many["memory_bytes_per_accelerator"] > 100 * told["memory_bytes_per_accelerator"]
    assert many["fits"] is False


def test_an_overlay_that_is_no_folder_or_no_text_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FLM_NB_CATALOGUE", str(tmp_path / "absent"))
    with pytest.raises(InputError, match="is no folder"):
        catalogue_rows("grids")
    monkeypatch.setenv("FLM_NB_CATALOGUE", str(tmp_path))
    (tmp_path / "grids.csv").write_bytes(b"\xff\xfe\x00r")
    with pytest.raises(InputError, match="cannot be read"):
        catalogue_rows("grids")
    (tmp_path / "grids.csv").write_bytes(  # a mark at the start, as spreadsheets write it
        b"\xef\xbb\xbfregion,name,g_co2_per_kwh,source,year\r\nX,x,4,me,2026\r\n")
    assert grid_kg_per_kwh("x").value == 0.004


def test_calibration_tables_keep_their_rows(folder):
    before = catalogue_rows("runs")
    folder("grids", "region,name,g_co2_per_kwh,source,year\nX,x,4,me,2026\n")
    assert catalogue_rows("runs") == before


def test_an_overlay_in_the_call_lies_over_the_folder(folder, tmp_path):
    folder("grids", "region,name,g_co2_per_kwh,source,year\nX,x,4,me,2026\n")
    other = tmp_path / "mine.txt"
    other.write_text("region,name,g_co2_per_kwh,source,year\nX,x,5,me too,2026\n")
    assert grid_kg_per_kwh("x").value == 0.004
    assert grid_kg_per_kwh("x", overlay=other).value == 0.005
    assert overlay_rows("grids", other)[-1]["origin"] == "mine.txt"
    assert sum(row["region"] == "X" for row in price_rows("grids", other)) == 1


@pytest.mark.parametrize("chip, warns", [("L4", True), ("RTX 5090", False)])
def test_an_old_rent_is_said_by_the_estimate(chip, warns):
    why = estimate_pretrain(**ORDER | {"accelerator": chip})["why"]
    assert ("over 180 days old" in why) == (warns or date.today() > date(2026, 6, 26))
    assert "180" not in estimate_pretrain(**ORDER, usd_per_hour=1)["why"]


@pytest.mark.filterwarnings("default::UserWarning")
def test_the_threshold_of_staleness_can_be_given():
    day = date(2025, 4, 1)
    with pytest.warns(UserWarning, match="is 4 days old .*more than 3"):
        rental_price("L4", today=day, days=3)
    assert rental_price("L4", today=day, days=5).value == 0.43


# ------------------------------------------------------------------ leftovers of the project
def test_a_project_with_a_mark_at_its_start_is_read(tmp_path):
    marked = tmp_path / "marked.toml"
    marked.write_bytes(b"\xef\xbb\xbf" + example_path().read_bytes())
    assert read_project(marked).numbers == read_project(example_path()).numbers


@pytest.mark.parametrize("setting, told", [
    ("paths.lora.quality=93", "did you mean 0.93?"), ("paths.lora.quality=1.01", "at most 1"),
    ("paths.lora.quality=-0.1", "at least 0"), ("value.quality_floor=90", "did you mean 0.9?"),
])
def test_a_quality_is_a_share(setting, told):
    with pytest.raises(InputError) as caught:
        read_project(example_path(), [setting])
    assert told in str(caught.value)
    assert read_project(example_path(), ["paths.lora.quality=1", "value.quality_floor=0"])


def test_draws_beyond_memory_come_in_blocks(monkeypatch):
    from flm_nb.invest import worth

    project = read_project(example_path())
    whole = evaluate(project, draws=20_003, seed=5)
    monkeypatch.setattr(worth, "BLOCK", 4_000)
    blocks = evaluate(project, draws=20_003, seed=5)
    assert blocks.kept == 3_334 and len(blocks.worth["api"]) == 3_334
    for path, told in blocks.summary().items():
        expected = whole.summary()[path]
        width = expected["npv_usd"]["p90"] - expected["npv_usd"]["p10"]
        for quantile, value in told["npv_usd"].items():
            assert value == pytest.approx(expected["npv_usd"][quantile], abs=0.02 * width + 1)
        assert told["p_loss"] == pytest.approx(expected["p_loss"], abs=0.01)
    assert blocks.best == whole.best
    assert evaluate(project, draws=20_003, seed=5).summary() == blocks.summary()


def test_above_ten_million_draws_are_an_answer():
    tables = {
        "project": {"name": "x", "horizon_years": 1, "discount_rate": 0.1, "currency": "USD",
                    "price_year": 2026},
        "workload": {"requests_per_month": {"p10": 10, "p50": 20, "p90": 50},
                     "input_tokens": 10, "output_tokens": 1},
        "value": {"usd_per_request": 1},
        "paths": {"api": {"kind": "api", "input_usd_per_mtok": 1, "output_usd_per_mtok": 1}}}
    study = evaluate(check_project(tables), draws=10_000_001)
    quantiles = study.summary()["api"]["npv_usd"]
    margin = 12 * (1 - 11e-6) / 1.1
    assert [x / margin for x in quantiles.values()] == pytest.approx([10, 20, 50], rel=1e-4)
    with pytest.raises(InputError, match="would take hours"):
        evaluate(check_project(tables), draws=10**11)


def test_the_example_still_decides_the_same():
    told = run_invest(example_path(), draws=1000)
    assert told["best"] == "api" and told["paths"]["api"]["feasible"]


def test_packaged_rows_are_the_rows_of_the_file():
    from flm_nb.core import catalogue_text

    rows = list(csv.DictReader(catalogue_text("overheads.csv").splitlines()))
    assert [{**row} for row in rows] == catalogue_rows("overheads")
    assert all(float(row["value"]) >= 0 for row in rows)
