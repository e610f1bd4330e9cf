"""Floor 9: what it costs, what it is worth, from which volume on, and the memo."""
from flm_nb.core import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, {
    "catalogue": ["ApiPrice", "Fact", "api_price", "grid_kg_per_kwh", "price_rows",
                  "rental_price"],
    "cost": ["co2_kg", "cottier_usd_per_hour", "energy_kwh", "estimate_finetune_plan",
             "estimate_pretrain", "own_usd_per_hour", "rental_usd", "usd_per_mtok"],
    "cashflow": ["capital_recovery_factor", "discounted_payback", "irr", "mirr", "npv",
                 "payback"],
    "ranges": ["Range", "draws_of"],
    "project": ["Project", "check_project", "example_path", "read_project"],
    "worth": ["Study", "can_serve", "cash_by_year", "evaluate"],
    "threshold": ["all_thresholds", "flip_range", "nearest_threshold", "run_invest"],
    "regimes": ["RegimeMap", "accelerators_needed", "break_even_figure", "break_even_volume",
                "cost_per_thousand", "draw_regimes", "regime_map", "tornado", "tornado_figure"],
    "memo": ["memo_text", "verdict"],
})
