"""The contract of `flm invest`, sentence by sentence, against plain arithmetic of our own."""

import json
import math
import random
import re
import subprocess
import sys
import time
import tomllib
import warnings
from datetime import date

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flm_nb.core import InputError, catalogue_rows
from flm_nb.invest.cashflow import (
    capital_recovery_factor,
    discounted_payback,
    irr,
    mirr,
    npv,
    payback,
)
from flm_nb.invest.catalogue import api_price, grid_kg_per_kwh, price_rows, rental_price
from flm_nb.invest.project import check_project, example_path, read_project
from flm_nb.invest.ranges import draws_of, read_range
from flm_nb.invest.regimes import regime_map, tornado
from flm_nb.invest.threshold import all_thresholds, flip_range, run_invest, threshold
from flm_nb.invest.worth import evaluate

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
VOLUME = "workload.requests_per_month"
RANGE = {"p10", "p50", "p90"}
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def toml(value):
    """A value as TOML; tables inside become inline tables."""
    if isinstance(value, dict):
        pairs = ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items())
        return f"{{ {pairs} }}"
    return json.dumps(value)


@pytest.fixture
def write(tmp_path):
    """Write tables (or text) as a project file."""

    def write(tables, name="project.toml"):
        text = (
            tables
            if isinstance(tables, str)
            else "\n".join(f"{key} = {toml(value)}" for key, value in tables.items())
        )
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def plan(**changes):
    """A project without doubt: an API, a rented card, doing nothing. KEY=value changes it."""
    tables = {
        "project": {
            "name": "plan",
            "horizon_years": 3,
            "discount_rate": 0.1,
            "currency": "USD",
            "price_year": 2026,
        },
        "workload": {
            "requests_per_month": 500_000,
            "input_tokens": 400,
            "output_tokens": 10,
            "growth_per_year": 0.2,
        },
        "value": {"usd_per_request": 0.004, "quality_floor": 0.9},
        "paths": {
            "api": {"kind": "api", "model": "gpt-5-mini", "quality": 0.91},
            "card": {
                "kind": "lora",
                "accelerator": "L4",
                "count": 1,
                "usd_per_hour": 0.8,
                "tokens_per_s": 2000,
                "upfront_usd": 3000,
                "labels": 500,
                "usd_per_label": 0.5,
                "quality": 0.93,
            },
            "nothing": {"kind": "nothing"},
        },
    }
    for key, value in changes.items():
        *tables_in, leaf = key.split("__")
        inner = tables
        for name in tables_in:
            inner = inner[name]
        if value is None:
            inner.pop(leaf)
        else:
            inner[leaf] = value
    return tables


def by_hand(tables, name):
    """The worth of a path of a project without ranges: one year after the other."""
    project, work = tables["project"], tables["workload"]
    path = tables["paths"][name]
    if path["kind"] == "nothing":
        return 0.0
    prices = {
        row["model"]: (float(row["input_usd_per_mtok"]), float(row["output_usd_per_mtok"]))
        for row in catalogue_rows("api_prices")
    }
    read, written = prices.get(path.get("model"), (0, 0))
    read = path.get("input_usd_per_mtok", read)
    written = path.get("output_usd_per_mtok", written)
    worth = -(path.get("upfront_usd", 0) + path.get("labels", 0) * path.get("usd_per_label", 0))
    for year in range(1, project["horizon_years"] + 1):
        requests = 12 * work["requests_per_month"]
        requests *= (1 + work.get("growth_per_year", 0)) ** (year - 1)
        cash = requests * tables["value"]["usd_per_request"]
        cash -= requests * work["input_tokens"] * read / 1e6
        cash -= requests * work["output_tokens"] * written / 1e6
        cash -= path.get("people_fte", 0) * path.get("usd_per_fte_year", 0)
        if "tokens_per_s" in path:
            cash -= path.get("count", 1) * path["usd_per_hour"] * 8766
        worth += cash / (1 + project["discount_rate"]) ** year
    return worth


def answer(tables, **options):
    """What `flm invest` would print, from tables."""
    study = evaluate(check_project(tables), **{"draws": 400, **options})
    return study.summary() | {"best": study.best}


# ------------------------------------------------------------------ worth
def test_worth_is_the_sum_of_the_years():
    told = answer(plan())
    for name in ("api", "card", "nothing"):
        npv_usd = told[name]["npv_usd"]
        assert npv_usd["p10"] == npv_usd["p50"] == npv_usd["p90"]
        assert npv_usd["p50"] == pytest.approx(by_hand(plan(), name), rel=1e-12, abs=1e-9)
    # and once with every figure written out: 3 years of a card
    value = [12 * 500_000 * 1.2**year * 0.004 for year in range(3)]
    flows = [-3000 - 250, *(money - 0.8 * 8766 for money in value)]
    assert told["card"]["npv_usd"]["p50"] == pytest.approx(npv(0.1, flows), rel=1e-12)


money = st.floats(0, 1e6).map(lambda x: round(x, 6))


@quick
@given(
    horizon=st.integers(1, 40),
    rate=st.floats(-0.5, 3),
    volume=st.floats(0, 1e9),
    growth=st.floats(-0.9, 2),
    value=st.floats(0, 10),
    upfront=money,
    labels=money,
    label=st.floats(0, 100),
    people=st.floats(0, 50),
    pay=money,
    hour=st.floats(0.01, 100),
    count=st.integers(1, 500),
    prices=st.tuples(st.floats(0, 100), st.floats(0, 100)),
)
def test_worth_is_the_sum_of_the_years_for_any_project(
    horizon,
    rate,
    volume,
    growth,
    value,
    upfront,
    labels,
    label,
    people,
    pay,
    hour,
    count,
    prices,
):
    tables = plan(
        project__horizon_years=horizon,
        project__discount_rate=rate,
        workload__requests_per_month=volume,
        workload__growth_per_year=growth,
        value__usd_per_request=value,
    )
    tables["paths"]["both"] = {
        "kind": "own_hardware",
        "count": count,
        "usd_per_hour": hour,
        "tokens_per_s": 10,
        "upfront_usd": upfront,
        "labels": labels,
        "usd_per_label": label,
        "people_fte": people,
        "usd_per_fte_year": pay,
        "input_usd_per_mtok": prices[0],
        "output_usd_per_mtok": prices[1],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a rate above 100 % warns
        told = answer(tables, draws=100)
    scale = 1e-9 * (1 + volume * value * 12 * (1 + growth) ** horizon * (1 + rate) ** -horizon)
    for name in tables["paths"]:
        expected = by_hand(tables, name)
        assert told[name]["npv_usd"]["p50"] == pytest.approx(
            expected, rel=1e-9, abs=scale + 1e-6
        )


def test_nothing_is_feasible_and_worth_zero():
    told = answer(plan(value__quality_floor=0.99))
    assert told["nothing"]["feasible"] and set(told["nothing"]["npv_usd"].values()) == {0}
    assert told["best"] == "nothing" and told["nothing"]["p_loss"] == 0


def test_best_is_null_where_no_path_is_feasible(write):
    told = run_invest(write(plan(value__quality_floor=0.99, paths__nothing=None)), draws=200)
    assert told["best"] is None and told["verdict"].startswith("Do not invest: no path can")
    assert all(
        np.isfinite(list(one["npv_usd"].values())).all() for one in told["paths"].values()
    )


def test_best_is_the_feasible_path_with_the_highest_median():
    told = answer(plan())
    assert told["best"] == max(("api", "card", "nothing"), key=lambda p: by_hand(plan(), p))
    low = plan()
    low["paths"][told["best"]]["quality"] = 0.5  # the winner falls under the floor
    assert answer(low)["best"] != told["best"]
    assert answer(low)[told["best"]]["npv_usd"] == told[told["best"]]["npv_usd"]


def test_growth_and_quality_may_be_left_out():
    bare = plan(workload__growth_per_year=None, paths__api__quality=None)
    zero = plan(workload__growth_per_year=0, paths__api__quality=None)
    assert answer(bare) == answer(zero)
    assert answer(bare)["api"]["feasible"]


@pytest.mark.parametrize(
    "quality, floor, passes",
    [
        (0.9, 0.9, True),
        (0.8999, 0.9, False),
        (0.95, 0.9, True),
        (None, 0.9, True),
        ({"p10": 0.5, "p50": 0.91, "p90": 0.95}, 0.9, True),  # judged at its P50
        ({"p10": 0.5, "p50": 0.89, "p90": 0.95}, 0.9, False),
    ],
)
def test_quality_gates_and_does_not_scale(quality, floor, passes):
    tables = plan(paths__card__quality=quality, value__quality_floor=floor)
    told = answer(tables)["card"]
    assert told["feasible"] is passes
    assert ("floor" in told["why"]) or passes
    assert told["npv_usd"]["p50"] == pytest.approx(by_hand(plan(), "card"), rel=1e-12)


@pytest.mark.parametrize("growth, binding_year", [(0.5, 3), (-0.5, 1), (0.0, 1)])
@pytest.mark.parametrize("count", [1, 4])
def test_capacity_is_judged_in_every_year(growth, binding_year, count):
    needed = 12 * 500_000 * (1 + growth) ** (binding_year - 1) * 410
    speed = needed / (count * 3600 * 8766)
    for factor, passes in ((1.001, True), (0.999, False)):
        tables = plan(
            workload__growth_per_year=growth,
            paths__card__count=count,
            paths__card__tokens_per_s=speed * factor,
        )
        told = answer(tables)["card"]
        assert told["feasible"] is passes
        assert ("times its capacity" in told["why"]) is not passes
        assert told["npv_usd"]["p50"] == pytest.approx(by_hand(tables, "card"), rel=1e-12)


def test_accelerators_cost_the_whole_year_busy_or_idle():
    idle, busy = plan(workload__requests_per_month=0), plan()
    assert by_hand(idle, "card") == pytest.approx(answer(idle)["card"]["npv_usd"]["p50"])
    two = plan(paths__card__count=2)
    extra = answer(busy)["card"]["npv_usd"]["p50"] - answer(two)["card"]["npv_usd"]["p50"]
    assert extra == pytest.approx(0.8 * 8766 * sum(1.1**-t for t in (1, 2, 3)))


def test_a_tokens_price_may_stand_beside_hardware():
    both = plan(paths__card__input_usd_per_mtok=1.0, paths__card__output_usd_per_mtok=2.0)
    assert answer(both)["card"]["npv_usd"]["p50"] == pytest.approx(by_hand(both, "card"))
    assert by_hand(both, "card") < by_hand(plan(), "card")


# ------------------------------------------------------------------ doubt
def two_piece(low, mid, high, share):
    """A quantile of the two-piece distribution, by the standard library alone."""
    from statistics import NormalDist

    z = NormalDist().inv_cdf(share) / NormalDist().inv_cdf(0.9)
    if low > 0:
        return mid * ((high / mid) ** z if z > 0 else (mid / low) ** z)
    return mid + z * ((high - mid) if z > 0 else (mid - low))


@pytest.mark.parametrize("ends", [(100, 300, 900), (100, 300, 400), (50, 50, 400), (7, 9, 9)])
@pytest.mark.parametrize("key", ["upfront_usd", "labels", "people_fte"])
def test_a_range_is_a_two_piece_lognormal(ends, key):
    x = draws_of(
        f"paths.card.{key}",
        read_range(f"paths.card.{key}", dict(zip(("p10", "p50", "p90"), ends, strict=True))),
        draws=10_000,
        seed=1,
    )
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98):
        found = np.quantile(x, share, method="hazen")
        assert found == pytest.approx(two_piece(*ends, share), rel=1e-3)


@pytest.mark.parametrize(
    "key, ends",
    [
        ("workload.growth_per_year", (-0.2, 0.1, 0.6)),
        ("workload.growth_per_year", (0, 0.1, 0.3)),
        ("value.usd_per_request", (-0.001, 0.003, 0.004)),
        ("project.discount_rate", (-0.01, 0.02, 0.1)),
    ],
)
def test_a_range_is_a_two_piece_normal_where_p10_is_not_positive(key, ends):
    number = read_range(key, dict(zip(("p10", "p50", "p90"), ends, strict=True)))
    x = draws_of(key, number, draws=10_000, seed=1)
    for share in (0.05, 0.1, 0.5, 0.9, 0.95):
        found = np.quantile(x, share, method="hazen")
        assert found == pytest.approx(two_piece(*ends, share), rel=1e-3, abs=1e-6)


def test_prices_never_fall_below_zero():
    x = draws_of(
        "paths.a.upfront_usd",
        read_range("paths.a.upfront_usd", {"p10": 0, "p50": 10, "p90": 30}),
        draws=1000,
        seed=0,
    )
    assert x.min() == 0 and np.quantile(x, 0.1) == pytest.approx(0, abs=0.05)


def test_worth_has_the_quantiles_of_its_only_doubt():
    tables = plan(paths__card__upfront_usd={"p10": 1000, "p50": 3000, "p90": 20_000})
    told = answer(tables, draws=10_000)["card"]["npv_usd"]
    for worth, upfront in (("p10", 20_000), ("p50", 3000), ("p90", 1000)):
        expected = by_hand(plan(paths__card__upfront_usd=upfront), "card")
        assert told[worth] == pytest.approx(expected, rel=1e-4)


def test_worth_and_loss_agree_with_plain_chance():
    """15,000 independent draws, each valued year by year, against our 10,000."""
    doubt = {
        "workload__requests_per_month": {"p10": 200e3, "p50": 500e3, "p90": 900e3},
        "value__usd_per_request": {"p10": 0.0005, "p50": 0.0012, "p90": 0.004},
        "workload__growth_per_year": {"p10": -0.1, "p50": 0.2, "p90": 0.4},
        "paths__card__upfront_usd": {"p10": 1000, "p50": 3000, "p90": 9000},
        "project__discount_rate": {"p10": 0.05, "p50": 0.1, "p90": 0.2},
    }
    chance = random.Random(3)
    worths = []
    for _ in range(15_000):
        certain = {
            key: two_piece(*ends.values(), chance.random()) for key, ends in doubt.items()
        }
        worths.append(by_hand(plan(**certain), "card"))
    told = answer(plan(**doubt), draws=10_000)["card"]
    for name, share in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9)):
        assert told["npv_usd"][name] == pytest.approx(
            np.quantile(worths, share), rel=0.05, abs=300
        )
    assert told["p_loss"] == pytest.approx(np.mean(np.less(worths, 0)), abs=0.012)


def test_p_loss_is_the_share_of_losing_draws():
    tables = plan(value__usd_per_request={"p10": 0.0005, "p50": 0.0012, "p90": 0.004})
    study = evaluate(check_project(tables), draws=1000)
    told = study.summary()["card"]["p_loss"]
    assert told == np.mean(study.worth["card"] < 0) and 0.05 < told < 0.95


def test_same_seed_same_digits_and_another_seed_others(write):
    file = example_path()
    assert run_invest(file, draws=300, seed=4) == run_invest(file, draws=300, seed=4)
    assert run_invest(file, draws=300, seed=4) != run_invest(file, draws=300, seed=5)


def test_ten_thousand_draws_are_tight():
    """Between two seeds no quantile moves by more than 4 % of the range."""
    one, two = (
        answer(tomllib.loads(example_path().read_text()), draws=10_000, seed=seed)
        for seed in (1, 2)
    )
    for path in ("api", "lora"):
        spread = one[path]["npv_usd"]["p90"] - one[path]["npv_usd"]["p10"]
        for name in RANGE:
            moved = abs(one[path]["npv_usd"][name] - two[path]["npv_usd"][name])
            assert moved < 0.04 * spread


def test_adding_a_path_changes_no_other():
    tables = tomllib.loads(example_path().read_text())
    before = answer(tables)
    extra = {
        "kind": "finetune",
        "usd_per_hour": {"p10": 1, "p50": 2, "p90": 3},
        "tokens_per_s": 100,
        "upfront_usd": {"p10": 1, "p50": 2, "p90": 30},
    }
    for paths in ({"aaa": extra, **tables["paths"]}, {**tables["paths"], "zzz": extra}):
        after = answer({**tables, "paths": paths})
        for name in tables["paths"]:
            assert after[name] == before[name]


def test_paths_share_their_draws():
    doubt = {"p10": 0.001, "p50": 0.004, "p90": 0.009}
    study = evaluate(check_project(plan(value__usd_per_request=doubt)), draws=500)
    assert np.corrcoef(study.worth["api"], study.worth["card"])[0, 1] > 0.999999


# ------------------------------------------------------------------ --set
@pytest.mark.parametrize(
    "setting, key, value",
    [
        ("workload.requests_per_month=300k", "workload__requests_per_month", 300_000),
        ("workload.requests_per_month = 1.5M", "workload__requests_per_month", 1_500_000),
        ("project.discount_rate=0.25", "project__discount_rate", 0.25),
        ("paths.api.model=openai/gpt-4.1-nano", "paths__api__model", "openai/gpt-4.1-nano"),
        ('paths.api.model="gpt-4.1-nano"', "paths__api__model", "gpt-4.1-nano"),
        ("paths.card.count=3", "paths__card__count", 3),
        ("paths.card.people_fte=0", "paths__card__people_fte", 0),
        (
            "paths.card.upfront_usd={p10 = 1, p50 = 2, p90 = 3}",
            "paths__card__upfront_usd",
            {"p10": 1, "p50": 2, "p90": 3},
        ),
    ],
)
def test_set_is_the_same_as_editing_the_file(write, setting, key, value):
    by_set = run_invest(write(plan()), sets=[setting], draws=200)
    assert by_set == run_invest(write(plan(**{key: value}), "edited.toml"), draws=200)
    unchanged = run_invest(write(plan()), draws=200)
    assert (by_set != unchanged) or value == 0


def test_set_adds_a_path_and_the_last_of_two_wins(write):
    told = run_invest(
        write(plan()),
        draws=200,
        sets=[
            'paths.new={kind = "api", model = "gpt-5-nano"}',
            "paths.new.quality=0.5",
            "paths.new.quality=0.95",
        ],
    )
    assert told["paths"]["new"]["feasible"]


def test_the_catalogues_price_is_taken_unless_the_file_has_one():
    assert (
        answer(plan())["api"]
        == answer(
            plan(
                paths__api__model=None,
                paths__api__input_usd_per_mtok=0.25,
                paths__api__output_usd_per_mtok=2,
            )
        )["api"]
    )
    dearer = answer(plan(paths__api__input_usd_per_mtok=2.5))["api"]["npv_usd"]["p50"]
    assert dearer < answer(plan())["api"]["npv_usd"]["p50"]
    rented = plan(paths__card__usd_per_hour=None)
    price = rental_price("L4").value
    assert answer(rented)["card"] == answer(plan(paths__card__usd_per_hour=price))["card"]


# ------------------------------------------------------------------ thresholds
def best_at(file, key, value, **options):
    return run_invest(file, sets=[f"{key}={value!r}"], draws=200, **options)["best"]


@pytest.mark.parametrize(
    "key, low, high",
    [
        (VOLUME, 1e4, 1e8),
        ("value.usd_per_request", 1e-5, 1.0),
        ("project.discount_rate", 0.01, 9.0),
        ("project.horizon_years", 1, 12),
        ("workload.growth_per_year", -0.9, 3.0),
        ("workload.input_tokens", 10, 100_000),
        ("paths.card.usd_per_hour", 0.01, 50.0),
        ("paths.card.count", 1, 50),
        ("paths.api.input_usd_per_mtok", 0.0, 30.0),
        ("paths.api.quality", 0.5, 1.0),
        ("paths.card.tokens_per_s", 1.0, 5000.0),
        ("value.quality_floor", 0.0, 1.0),
        ("paths.card.labels", 0, 1_000_000),
        ("paths.card.upfront_usd", 0.0, 1e6),
    ],
)
@pytest.mark.parametrize("doubtful", [False, True])
def test_vary_is_set_at_each_value(write, key, low, high, doubtful):
    doubt = {
        "value__usd_per_request": {"p10": 0.002, "p50": 0.004, "p90": 0.009},
        "paths__card__upfront_usd": {"p10": 1000, "p50": 3000, "p90": 9000},
    }
    file = write(plan(**doubt if doubtful else {}))
    found = run_invest(file, vary=key, between=(low, high), draws=200)["threshold"]
    assert set(found) == {"driver", "unit", "value", "from", "to", "feasible", "why"}
    assert found["driver"] == key and found["unit"]
    whole = key in ("project.horizon_years", "paths.card.count")
    if found["value"] is None:
        assert not found["feasible"] and found["why"]
        grid = (
            range(low, high + 1) if whole else np.geomspace(max(low, 1e-6), high, 25).tolist()
        )
        assert {best_at(file, key, value) for value in grid} == {found["from"]}
        return
    assert found["feasible"] and low < found["value"] <= high and found["from"] != found["to"]
    step = 1 if whole else max(abs(found["value"]) * 1e-7, 1e-12)
    assert best_at(file, key, found["value"] - step) == found["from"]
    assert best_at(file, key, found["value"] + (0 if whole else step)) == found["to"]
    if whole:
        assert isinstance(found["value"], int)
    below = (
        range(low, found["value"])
        if whole
        else np.linspace(low, found["value"] - step, 12).tolist()
    )
    assert {best_at(file, key, value) for value in below} == {found["from"]}


def test_two_straight_lines_cross_where_algebra_says(write):
    tables = plan(
        project__horizon_years=4,
        paths__nothing=None,
        workload__growth_per_year=0.1,
        paths__card__people_fte=0.1,
        paths__card__usd_per_fte_year=90_000,
    )
    growing = sum(1.1 ** (t - 1) / 1.1**t for t in range(1, 5))
    level = sum(1 / 1.1**t for t in range(1, 5))
    fixed = 3000 + 250 + level * (0.8 * 8766 + 9000)
    tables["paths"]["card"]["tokens_per_s"] = 1e6
    closed = fixed / (growing * 12 * (400 * 0.25 + 10 * 2) / 1e6)
    file = write(tables)
    for between in ((1e5, 1e9), ("100k", "1B")):
        found = run_invest(file, vary=VOLUME, between=between, draws=200)["threshold"]
        assert found["value"] == pytest.approx(closed, rel=1e-9)
        assert (found["from"], found["to"]) == ("api", "card")


def test_a_path_that_fills_up_is_left_exactly_there(write):
    file = write(plan(paths__nothing=None, paths__api__model="claude-haiku-4-5"))
    full = 2000 * 3600 * 8766 / (12 * 1.2**2 * 410)
    found = run_invest(file, vary=VOLUME, between=(2e6, 1e9), draws=200)["threshold"]
    assert found["value"] == pytest.approx(full, rel=1e-9)
    assert (found["from"], found["to"]) == ("card", "api") and "capacity" in found["why"]


def test_a_narrow_window_is_not_missed(write):
    """A card that pays only in the last 0.1 % before it is full."""
    tables = plan(
        project__horizon_years=1,
        project__discount_rate=0.0,
        paths__nothing=None,
        workload__growth_per_year=0.0,
        paths__card__upfront_usd=0,
        paths__card__labels=0,
    )
    crossing = 0.8 * 8766 / (12 * 120e-6)
    tables["paths"]["card"]["tokens_per_s"] = 1.001 * crossing * 12 * 410 / (3600 * 8766)
    file = write(tables)
    found = run_invest(file, vary=VOLUME, between=(1e3, 1e10), draws=200)["threshold"]
    assert found["value"] == pytest.approx(crossing, rel=1e-9) and found["to"] == "card"
    both = [one for one in run_invest(file, draws=200)["thresholds"] if one["driver"] == VOLUME]
    assert [one["to"] for one in both] == ["card", "api"]
    assert both[1]["value"] == pytest.approx(1.001 * crossing, rel=1e-9)


def test_thresholds_list_every_change_of_three_drivers():
    told = run_invest(example_path(), draws=400)["thresholds"]
    drivers = [one["driver"] for one in told]
    assert drivers == sorted(
        drivers, key=(VOLUME, "value.usd_per_request", "project.discount_rate").index
    )
    for key in set(drivers):
        mine = [one for one in told if one["driver"] == key]
        assert [one["value"] for one in mine] == sorted(one["value"] for one in mine)
        for before, after in zip(mine, mine[1:], strict=False):
            assert before["to"] == after["from"]  # nothing is skipped
        today = read_project(example_path()).numbers[key].p50
        assert all(today / 100 < one["value"] < 100 * today for one in mine)
        first = threshold(
            read_project(example_path()), key, today / 100, 100 * today, draws=400
        )
        assert first["value"] == pytest.approx(mine[0]["value"], rel=1e-9)


@settings(quick, max_examples=10)
@given(data=st.data())
def test_thresholds_agree_with_a_brute_search(data):
    """Random projects without doubt: walk the volume in small steps and compare."""
    pick = data.draw
    tables = plan(
        value__usd_per_request=pick(st.floats(1e-4, 1e-2)),
        paths__card__tokens_per_s=pick(st.floats(100, 50_000)),
        paths__card__usd_per_hour=pick(st.floats(0.05, 5)),
    )
    tables["paths"]["big"] = {
        "kind": "own_hardware",
        "usd_per_hour": pick(st.floats(0.05, 5)),
        "tokens_per_s": pick(st.floats(100, 50_000)),
        "count": 3,
        "upfront_usd": pick(st.floats(0, 50_000)),
    }
    told = evaluate(check_project(tables), draws=100)
    from flm_nb.invest.threshold import all_thresholds

    mine = [one for one in all_thresholds(told) if one["driver"] == VOLUME]
    volumes = np.geomspace(5_000.0001, 5e7 * 0.9999, 400)
    edges = [0, *(one["value"] for one in mine), np.inf]
    names = [*(one["from"] for one in mine), mine[-1]["to"] if mine else told.best]
    for volume in volumes:
        at = int(np.searchsorted(edges, volume, side="right")) - 1
        near = min(abs(volume / edge - 1) for edge in edges[1:])
        if near > 1e-9:
            changed = {
                **tables,
                "workload": tables["workload"] | {"requests_per_month": volume},
            }
            worth = {
                name: by_hand(changed, name)
                for name in tables["paths"]
                if by_hand_feasible(changed, name)
            }
            top = max(worth.values())
            assert worth.get(names[at], -math.inf) >= top - 1e-6 * abs(top) - 1e-6


def by_hand_feasible(tables, name):
    path, work = tables["paths"][name], tables["workload"]
    if path.get("quality", 1) < tables["value"]["quality_floor"]:
        return False
    if "tokens_per_s" not in path:
        return True
    yearly = [
        12 * work["requests_per_month"] * (1 + work["growth_per_year"]) ** year * 410
        for year in range(tables["project"]["horizon_years"])
    ]
    return max(yearly) <= path.get("count", 1) * path["tokens_per_s"] * 3600 * 8766


def test_a_map_is_the_same_as_set_in_each_cell(write):
    project = check_project(plan())
    x, y = np.geomspace(1e5, 1e8, 9), [0.2, 0.8, 3.0]
    found = regime_map(project, VOLUME, x, "paths.card.usd_per_hour", y, draws=100)
    for row, hour in zip(found.best, y, strict=True):
        for index, volume in zip(row, x, strict=True):
            told = answer(
                plan(
                    workload__requests_per_month=float(volume), paths__card__usd_per_hour=hour
                ),
                draws=100,
            )
            assert told["best"] == found.paths[index]


def test_the_tornado_swings_one_number_at_a_time():
    doubt = {"p10": 1000, "p50": 3000, "p90": 9000}
    study = evaluate(check_project(plan(paths__card__upfront_usd=doubt)), draws=100)
    [(key, low, high)] = tornado(study, "card")
    assert key == "paths.card.upfront_usd" and high - low == pytest.approx(-8000)
    certain = tornado(evaluate(check_project(plan()), draws=100), "card", most=99)
    assert {"value.usd_per_request", VOLUME} <= {key for key, *_ in certain}  # a fifth each way


# ------------------------------------------------------------------ bad input
NUMBERS = [
    "project.horizon_years",
    "project.discount_rate",
    VOLUME,
    "workload.input_tokens",
    "value.usd_per_request",
    "paths.card.count",
    "paths.card.usd_per_hour",
    "paths.card.tokens_per_s",
    "paths.card.upfront_usd",
    "paths.card.labels",
    "paths.card.people_fte",
    "paths.card.quality",
    "workload.growth_per_year",
    "paths.api.input_usd_per_mtok",
]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize(
    "value",
    [
        "nan",
        "inf",
        "-inf",
        "true",
        '"3"',
        "-7",
        "[1]",
        "1979-05-27",
        "{p10 = 3, p50 = 2, p90 = 1}",
        "{p10 = 1, p50 = 2}",
        "{}",
        "{p10 = 1, p50 = nan, p90 = 2}",
        "1" + 400 * "0",
    ],
)
def test_a_number_that_is_none_is_refused_with_its_key(write, key, value):
    table, _, leaf = key.rpartition(".")
    text = "\n".join(f"{name} = {toml(content)}" for name, content in plan().items())
    tables = tomllib.loads(text)
    inner = tables
    for name in table.split("."):
        inner = inner[name]
    inner[leaf] = tomllib.loads(f"x = {value}")["x"]
    with pytest.raises(InputError) as caught:
        check_project(tables)
    assert caught.value.field == key and len(str(caught.value)) < 700
    assert caught.value.remedy.strip()
    if value not in ("[1]", "{}") and not value.startswith("{p10 = 1, p50 = 2}"):
        with pytest.raises(InputError):
            run_invest(write(plan()), sets=[f"{key}={value}"], draws=200)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"project__discount_rate": 10}, "did you mean 0.1"),
        ({"project__discount_rate": -1}, "project.discount_rate"),
        ({"project__horizon_years": 0}, "project.horizon_years"),
        ({"project__horizon_years": 2.5}, "whole number"),
        ({"project__currency": "EUR"}, "project.currency='EUR' is not USD"),
        ({"project__name": 3}, "project.name"),
        ({"project__horizon_years": None}, "project.horizon_years=None is missing"),
        ({"project__discount_rate": None}, "project.discount_rate=None is missing"),
        ({"workload__requests_per_month": None}, "workload.requests_per_month=None is missing"),
        ({"workload__output_tokens": None}, "workload.output_tokens=None is missing"),
        ({"value__usd_per_request": None}, "value.usd_per_request=None is missing"),
        ({"paths": {}}, "paths"),
        ({"paths": 3}, "paths"),
        ({"paths": None}, "paths"),
        ({"workload": None}, "workload"),
        ({"value": 7}, "value"),
        ({"paths__api": {"kind": "magic"}}, "paths.api.kind='magic' is none of the kinds"),
        ({"paths__api": {"model": "gpt-5-mini"}}, "paths.api.kind"),
        ({"paths__api": {"kind": "api"}}, "cannot serve a request; give model"),
        ({"paths__api__model": "gpt-5-minni"}, "near: gpt-5"),
        (
            {"paths__api": {"kind": "api", "input_usd_per_mtok": 1}},
            "paths.api.output_usd_per_mtok",
        ),
        ({"paths__card__count": 1.5}, "whole number"),
        ({"paths__card__count": 0}, "at least 1"),
        ({"paths__card__tokens_per_s": None}, "paths.card.tokens_per_s=None is missing"),
        ({"paths__card__accelerator": "H1000"}, "near: H100"),
        ({"paths__card": {"kind": "lora"}}, "tokens_per_s"),
        ({"paths__card": {"kind": "lora", "tokens_per_s": 9}}, "paths.card.usd_per_hour"),
        (
            {"paths__card": {"kind": "lora", "tokens_per_s": 9, "accelerator": "H20"}},
            "paths.card.usd_per_hour",
        ),
        (
            {"paths__card": {"kind": "lora", "tokens_per_s": 9, "accelerator": "here"}},
            "paths.card.usd_per_hour",
        ),
        (
            {"paths__card": {"kind": "own_hardware", "tokens_per_s": 9, "accelerator": "L4"}},
            "paths.card.usd_per_hour",
        ),
        ({"paths__card__usd_per_label": None}, "labels without it would be free"),
        ({"paths__card__people_fte": 1}, "people_fte without it would be free"),
        ({"paths__nothing__upfront_usd": 1}, "paths.nothing.upfront_usd"),
        ({"paths__card__upfront": 1}, "near: upfront_usd"),
        ({"workload__request_per_month": 1}, "near: requests_per_month"),
        ({"valu": {"x": 1}}, "near: value"),
        ({"value__usd_per_request": -0.1}, "value.usd_per_request=-0.1 must be at least 0"),
    ],
)
def test_a_project_that_says_nonsense_is_refused(change, told):
    with pytest.raises(InputError) as caught:
        check_project(plan(**change))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "text, told",
    [
        ("not toml", "is not valid TOML"),
        ("[project]\n[project]\n", "is not valid TOML"),
        ("a = 1\na = 2", "is not valid TOML"),
        ("", "missing or empty"),
        ("x = [[[", "valid TOML"),
    ],
)
def test_a_file_that_is_no_project_is_refused(write, text, told):
    with pytest.raises(InputError, match=told):
        run_invest(write(text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    for path in (tmp_path / "absent.toml", tmp_path, tmp_path / "latin.toml"):
        with pytest.raises(InputError, match="cannot be read"):
            run_invest(path)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"draws": 99}, "draws=99"),
        ({"draws": 0}, "draws"),
        ({"draws": -5}, "draws"),
        ({"draws": 100.5}, "draws"),
        ({"draws": True}, "draws"),
        ({"draws": 10**12}, "draws"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"sets": ["paths.card.count"]}, "is not KEY=VALUE"),
        ({"sets": ["=3"]}, "is not KEY=VALUE"),
        ({"sets": ["paths.card.count="]}, "is not KEY=VALUE"),
        ({"sets": ["paths.crad.count=2"]}, "near: paths.card.count"),
        ({"sets": ["workload.requests=2"]}, "near: workload.requests_per_month"),
        ({"sets": ["paths.card.count=many"]}, "paths.card.count='many'"),
        ({"sets": ["project.horizon_years=300k"]}, "project.horizon_years"),
        ({"sets": ["workload.requests_per_month=3\n[x]"]}, "requests_per_month"),
        ({"vary": VOLUME}, "between"),
        ({"between": (1, 2)}, "vary"),
        ({"vary": VOLUME, "between": (10, 1)}, "smaller value first"),
        ({"vary": VOLUME, "between": (10, 10)}, "smaller value first"),
        ({"vary": VOLUME, "between": ("x", 10)}, "is not a number"),
        ({"vary": VOLUME, "between": (1, "inf")}, "finite"),
        ({"vary": VOLUME, "between": (float("nan"), 10)}, "finite"),
        ({"vary": VOLUME, "between": (-5, 10)}, "must be at least 0"),
        ({"vary": "paths.api.model", "between": (1, 2)}, "is text"),
        ({"vary": "workload.requests", "between": (1, 2)}, "near: workload.requests_per_month"),
        ({"vary": "paths.new.count", "between": (1, 2)}, "near: paths"),
        ({"vary": "paths.card", "between": (1, 2)}, "is nothing that this project could hold"),
        ({"vary": "paths.card.count", "between": (1.5, 2)}, "whole number"),
        ({"vary": "project.discount_rate", "between": (0.1, 12)}, "project.discount_rate"),
        ({"out": "memo.pdf"}, "use .html or .md"),
        ({"out": "memo"}, "use .html or .md"),
    ],
)
def test_options_that_cannot_be_used_are_refused(write, options, told, tmp_path):
    if "out" in options:
        options = {"out": tmp_path / options["out"]}
    with pytest.raises(InputError) as caught:
        run_invest(write(plan()), **{"draws": 200, **options})
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {
            "workload__requests_per_month": 1e17,
            "workload__growth_per_year": 1e17,
            "project__horizon_years": 100,
        },
        {
            "workload__growth_per_year": {"p10": 0.1, "p50": 1e3, "p90": 1e17},
            "project__horizon_years": 40,
        },
    ],
)
def test_an_infinite_worth_is_refused(change):
    with pytest.raises(InputError, match="infinite; give less"):
        evaluate(check_project(plan(**change)), draws=10_000)


def test_a_rate_above_a_hundred_percent_warns():
    with pytest.warns(UserWarning, match="did you mean 0.08"):
        check_project(plan(project__discount_rate=8))


# ------------------------------------------------------------------ memo
@pytest.mark.parametrize("form", ["html", "md"])
def test_a_failing_run_writes_nothing(write, tmp_path, form):
    out = tmp_path / f"memo.{form}"
    for options in (
        {"draws": 7},
        {"sets": ["paths.card.count=0"]},
        {"vary": VOLUME, "between": (2, 1)},
    ):
        with pytest.raises(InputError):
            run_invest(write(plan()), out=out, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["project.toml"]
    out.write_text("the memo of yesterday")
    with pytest.raises(InputError):
        run_invest(write(plan()), out=out, draws=7)
    assert out.read_text() == "the memo of yesterday"


def test_the_memo_gives_the_answer_first_and_all_its_parts(tmp_path):
    told = run_invest(example_path(), draws=300, out=tmp_path / "memo.html")
    page = (tmp_path / "memo.html").read_text(encoding="utf-8")
    body = page[page.index("<body") :]
    assert told["verdict"] in body and body.index(told["verdict"]) < body.index("<h2")
    for words in (
        "nothing",
        "P10",
        "P90",
        "chance of loss",
        "year 3",
        "NPV, net present value",
        "one future in ten lies below P10",
        "Adapters (LoRA) on an open decoder",
        "value of one request",
        "usd_per_request",
        "saves 4 s of an agent at 18 USD an hour",
        "80 % range",
        "futures drawn",
        "in the first year",
        "Left out",
        "ASSUMPTION",
        "2026-10",
        "seed 0",
        "300 draws",
        "prices of 2026",
        date.today().isoformat(),
        "prefers-color-scheme",
        "@media print",
        "What flips the answer",
        "first outlay",
    ):
        assert words in page, words
    assert len(re.findall(r"<img [^>]*alt=\"[^\"]{20,}\"", page)) == 2
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "http" not in page
    assert "<script" not in page and len(page) < 400_000
    written = run_invest(example_path(), draws=300, out=tmp_path / "memo.md")
    assert written == told
    text = (tmp_path / "memo.md").read_text(encoding="utf-8")
    assert text.index("Invest in api") < text.index("## ") and text.count("![") == 2


NASTY = '<script>alert("x")</script> & | **b** [l](http://x) `c` $m$ {{x}}'


@pytest.mark.parametrize("form", ["html", "md"])
def test_user_strings_are_escaped(write, tmp_path, form):
    tables = plan(project__name=NASTY)
    tables["paths"] = {f"{NASTY}{i}": path for i, path in enumerate(tables["paths"].values())}
    text = "\n".join(f"{key} = {toml(value)}" for key, value in tables.items())
    file = write(text + "  # <b>source</b>", "p<i>roject.toml")
    run_invest(file, draws=200, out=tmp_path / f"memo.{form}")
    memo = (tmp_path / f"memo.{form}").read_text(encoding="utf-8")
    assert "<script" not in memo and "<b>" not in memo and "<i>" not in memo
    assert "&lt;script&gt;" in memo
    if form == "md":
        assert "**b**" not in memo and "[l](" not in memo and " | **" not in memo


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"value__quality_floor": 0.99},
        {"value__quality_floor": 0.99, "paths__nothing": None},
        {"workload__requests_per_month": 0},
        {"value__usd_per_request": 0},
        {"paths__nothing": None},
        {"paths": {"nothing": {"kind": "nothing"}}},
        {"project__horizon_years": 40},
        {"project__horizon_years": 1},
        {"project__discount_rate": 0},
        {"project__discount_rate": -0.02},
        {"project__price_year": None, "project__name": None},
        {"paths": {"free": {"kind": "api", "input_usd_per_mtok": 0, "output_usd_per_mtok": 0}}},
        {"workload__growth_per_year": -0.5, "value__usd_per_request": 0.00001},
    ],
)
@pytest.mark.parametrize("form", ["html", "md"])
def test_a_memo_is_written_whatever_the_answer(write, tmp_path, change, form):
    told = run_invest(write(plan(**change)), draws=100, out=tmp_path / f"memo.{form}")
    memo = (tmp_path / f"memo.{form}").read_text(encoding="utf-8")
    assert told["verdict"].split(".")[0][:20] in memo
    assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"base64,[^\")]+", "", memo))
    json.dumps(told, allow_nan=False)


def test_the_return_is_shown_only_where_there_is_one(write, tmp_path):
    memo = tmp_path / "memo.md"
    run_invest(write(plan(paths__nothing=None)), draws=100, out=memo)
    assert "Internal rate of return" not in memo.read_text() or "−" in memo.read_text()
    lossy = plan(value__usd_per_request=0.0001, paths__nothing=None)
    run_invest(write(lossy), draws=100, out=memo)
    text = memo.read_text()
    assert "Internal rate of return" not in text and "Do not invest" in text


@pytest.mark.parametrize("upfront, shown", [(150_000, True), (1000, False)])
def test_a_rate_beyond_two_hundred_percent_is_left_out(write, tmp_path, upfront, shown):
    memo, card = tmp_path / "memo.md", {"kind": "lora", "usd_per_hour": 1, "tokens_per_s": 1e6}
    tables = plan(
        paths={"card": card | {"upfront_usd": upfront}},
        value__usd_per_request=0.1,
        workload__requests_per_month=100_000,
    )
    run_invest(write(tables), draws=100, out=memo)
    assert ("Internal rate of return" in memo.read_text()) is shown


def test_a_threshold_has_the_range_that_its_draws_have():
    study = evaluate(read_project(example_path()), draws=400)
    one = next(one for one in all_thresholds(study) if one["to"] == "lora")
    assert (one["driver"], one["from"]) == (VOLUME, "api")
    low, high = flip_range(study, one)
    for volume, share in ((low, 0.1), (high, 0.9), (one["value"], 0.5)):
        moved = read_project(example_path(), [f"{VOLUME}={volume!r}"])
        worth = evaluate(moved, draws=400).worth  # the same draws, at one volume
        assert np.mean(worth["lora"] >= worth["api"] - 1e-6) == pytest.approx(share, abs=0.06)


def test_shares_count_the_draws_in_which_a_path_is_best():
    study = evaluate(read_project(example_path()), draws=500)
    worth = np.array([np.broadcast_to(one, 500) for one in study.worth.values()])
    for path, share in study.best_shares().items():
        assert share == pytest.approx(np.mean(worth.max(0) == study.worth[path]), abs=1e-12)


def test_the_comment_below_the_head_of_a_path_says_what_it_is(write, tmp_path):
    text = example_path().read_text(encoding="utf-8")
    file = write(text.replace("# Agents go on sorting by hand.", "# As <b>today</b>."))
    assert read_project(file).notes["nothing"] == "As <b>today</b>."
    run_invest(file, draws=100, out=tmp_path / "memo.html")
    memo = (tmp_path / "memo.html").read_text(encoding="utf-8")
    assert "As &lt;b&gt;today&lt;/b&gt;" in memo and "<b>" not in memo
    assert read_project(write(plan())).notes["api"] == "a hosted model, paid by the token"


@pytest.mark.parametrize(
    "change, starts",
    [
        ({}, "Invest in"),
        ({"value__usd_per_request": 0.00001}, "Do not invest: doing nothing"),
        (
            {"value__usd_per_request": 0.00001, "paths__nothing": None},
            "Do not invest: even the best",
        ),
        (
            {"value__usd_per_request": {"p10": 0.00001, "p50": 0.0002, "p90": 0.004}},
            "Pilot before",
        ),
    ],
)
def test_the_verdict_fits_the_answer(write, change, starts):
    assert run_invest(write(plan(**change)), draws=1000)["verdict"].startswith(starts)


# ------------------------------------------------------------------ cash flows
def test_vectors_from_print():
    plan = [-1000, 300, 400, 500, 200]
    assert (
        round(npv(0.10, plan), 2) == 115.57
        and round(npv(0.1, [-1000] + 3 * [500]), 3) == 243.426
    )
    assert [round(rate, 4) for rate in irr(plan)] == [0.1532]
    assert round(mirr(plan, finance_rate=0.1, reinvest_rate=0.1), 4) == 0.1305
    assert payback(plan) == pytest.approx(2.6)
    assert round(discounted_payback(0.1, plan), 2) == 3.15
    assert [round(rate, 3) for rate in irr([-50, -100, 600, 300, -100])] == [-0.769, 1.854]
    assert round(capital_recovery_factor(0.08, 5), 6) == 0.250456
    assert capital_recovery_factor(0, 4) == 0.25


@quick
@given(st.lists(st.floats(-0.9, 5), min_size=1, max_size=5), st.floats(0.1, 1e6))
def test_every_rate_that_was_put_in_comes_out(rates, scale):
    rates = sorted(rates)
    if any(b - a < 0.05 for a, b in zip(rates, rates[1:], strict=False)):
        return
    flows = np.array([scale])
    for rate in rates:  # multiply by (d * (1 + rate) - 1) in d = 1 / (1 + r)
        flows = np.convolve(flows, [-1.0, 1 + rate])
    found = irr(flows)
    assert len(found) == len(rates)
    assert found == pytest.approx(rates, rel=1e-5, abs=1e-5)


@quick
@given(st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 2)), min_size=2, max_size=30))
def test_every_rate_found_brings_the_worth_to_zero(flows):
    if not min(flows) < 0 < max(flows):
        with pytest.raises(InputError, match="never change sign"):
            irr(flows)
        return
    for rate in irr(flows):
        terms = [amount / (1 + rate) ** year for year, amount in enumerate(flows)]
        assert rate > -1
        assert abs(sum(terms)) <= 1e-7 * sum(map(abs, terms))


def test_a_touching_rate_is_found_once():
    assert irr([1, -2.2, 1.21]) == pytest.approx([0.1], abs=1e-6)


@pytest.mark.parametrize("rate", [-1, -2, 10, 45, float("nan"), float("inf"), "0.1x", None])
def test_unusable_rates_are_refused(rate):
    with pytest.raises(InputError):
        npv(rate, [-1, 2])


@pytest.mark.parametrize(
    "flows", [[], [1, float("nan")], [1, float("inf")], ["a"], None, 5, [[1, 2], [3]]]
)
def test_unusable_flows_are_refused(flows):
    for function in (lambda f: npv(0.1, f), irr, payback):
        with pytest.raises(InputError):
            function(flows)


def test_npv_of_draws_is_npv_of_each():
    flows = np.random.default_rng(0).normal(size=(7, 5))
    rates = np.linspace(0.01, 0.3, 7)
    expected = [npv(float(rate), row) for rate, row in zip(rates, flows, strict=True)]
    assert npv(rates, flows.T) == pytest.approx(expected)  # time is the first axis


# ------------------------------------------------------------------ catalogue
def test_every_price_of_the_catalogue_can_be_asked_for():
    for row in catalogue_rows("api_prices"):
        price = api_price(f"{row['provider']}/{row['model']}", today=date(2026, 11, 1))
        assert price.input_usd_per_mtok == float(row["input_usd_per_mtok"])
        assert row["provider"] in price.providers and row["source"] and row["as_of"]


def test_a_name_with_several_prices_is_refused_and_with_one_is_not(tmp_path):
    scout = "meta-llama/llama-4-scout-17b-16e-instruct"
    with pytest.raises(InputError, match="groq/.*together/.*write provider/model"):
        api_price(scout)
    assert api_price(f"groq/{scout}").input_usd_per_mtok == 0.11
    own = tmp_path / "own.csv"
    own.write_text(
        "provider,model,input_usd_per_mtok,output_usd_per_mtok,source,as_of\n"
        f"groq,{scout},0.18,0.59,contract,2026-11-01\n"
    )
    assert api_price(scout, overlay=own).providers == ("together", "groq")


@pytest.mark.parametrize(
    "line, told",
    [
        ("a,b,1,x,me,2026-01", "is no price"),
        ("a,b,-1,1,me,2026-01", "is no price"),
        ("a,b,1,nan,me,2026-01", "is no price"),
        ("a,b,1,1,,2026-01", "has no source"),
        ("a,b,1,1,me,", "has no as_of"),
    ],
)
def test_a_row_without_price_source_or_date_is_refused(tmp_path, line, told):
    own = tmp_path / "own.csv"
    own.write_text(
        f"provider,model,input_usd_per_mtok,output_usd_per_mtok,source,as_of\n{line}\n"
    )
    with pytest.raises(InputError, match=told):
        api_price("a/b", overlay=own)


def test_the_cache_folder_may_hold_prices(tmp_path, monkeypatch):
    monkeypatch.setenv("FLM_NB_CACHE", str(tmp_path))
    before = len(price_rows("api_prices"))
    (tmp_path / "api_prices.csv").write_text(
        "provider,model,input_usd_per_mtok,output_usd_per_mtok,source,as_of\n"
        "house,tiny,0.5,1,contract,2026-11-01\n"
    )
    assert len(price_rows("api_prices")) == before + 1
    assert api_price("tiny").output_usd_per_mtok == 1
    with pytest.raises(InputError, match="cannot be read"):
        price_rows("api_prices", tmp_path / "absent.csv")


@pytest.mark.parametrize("today, warns", [(date(2027, 4, 1), False), (date(2027, 6, 1), True)])
def test_a_price_warns_after_half_a_year(today, warns):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        api_price("gpt-5-mini", today=today)
    assert bool(caught) is warns


def test_every_rental_price_stands_in_accelerators():
    for row in catalogue_rows("accelerators"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = rental_price(row["name"].upper())
        assert (found is None) == (not row["rental_usd_h"])
        assert found is None or found.low <= found.value <= found.high


def test_grids_go_by_code_and_by_name():
    assert grid_kg_per_kwh("fra") == grid_kg_per_kwh("France")
    row = next(row for row in catalogue_rows("grids") if row["region"] == "FRA")
    assert grid_kg_per_kwh("FRA").value == float(row["g_co2_per_kwh"]) / 1000
    with pytest.raises(InputError, match="near: "):
        grid_kg_per_kwh("Frankreich")


# ------------------------------------------------------------------ the example, and manners
def test_the_examples_facts_are_those_of_the_catalogue():
    text = example_path().read_text(encoding="utf-8")
    row = next(row for row in catalogue_rows("rental_prices") if row["instance"] == "g6.xlarge")
    price = api_price("claude-haiku-4-5", today=date(2026, 11, 1))
    chip = next(row for row in catalogue_rows("accelerators") if row["name"] == "L4")
    tables = tomllib.loads(text)
    assert tables["paths"]["lora"]["usd_per_hour"] == float(row["usd_per_accelerator_hour"])
    assert row["as_of"] in text and price.as_of in text
    assert (price.input_usd_per_mtok, price.output_usd_per_mtok) == (1, 5)
    assert (chip["fp16_bf16"], chip["purchase_usd"], chip["tdp_w"]) == ("121", "2500", "72")
    assert tables["paths"]["api"]["usd_per_fte_year"] == round(133_080 / 0.70)
    for line in text.splitlines():  # every uncertain number says where it comes from
        assert "p10" not in line or "#" in line


def test_the_examples_threshold_is_a_crossing_of_two_feasible_paths():
    told = run_invest(example_path())
    kinds = {
        path["kind"] for path in tomllib.loads(example_path().read_text())["paths"].values()
    }
    assert kinds >= {"api", "lora", "finetune", "own_hardware", "nothing"}
    assert all(one["feasible"] for one in told["paths"].values())
    today = read_project(example_path()).numbers[VOLUME].p50
    above = [
        one for one in told["thresholds"] if one["driver"] == VOLUME and one["value"] > today
    ][0]
    for factor in (0.999, 1.001):
        near = run_invest(example_path(), sets=[f"{VOLUME}={above['value'] * factor!r}"])[
            "paths"
        ]
        assert near[above["from"]]["feasible"] and near[above["to"]]["feasible"]
    assert (above["from"], above["to"]) == ("api", "lora")


def test_an_answer_of_four_paths_takes_less_than_three_seconds():
    start = time.process_time()
    run_invest(example_path(), draws=10_000)
    assert time.process_time() - start < 3


def test_deciding_imports_nothing_heavy():
    code = (
        "import sys, flm_nb.invest.threshold as t, flm_nb.invest.project as p\n"
        "t.run_invest(p.example_path(), draws=100)\n"
        "heavy = {'torch', 'transformers', 'pandas', 'matplotlib', 'scipy', 'sklearn'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
