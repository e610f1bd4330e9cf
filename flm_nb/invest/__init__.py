"""Floor 9: what it costs, what it is worth, from which volume on, and the memo."""
from flm_nb.core import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, {
    "catalogue": ["ApiPrice", "Fact", "api_price", "grid_kg_per_kwh", "price_rows",
                  "rental_price"],
    "prices": ["BreakEven", "Overhead", "break_even_utilisation", "cluster_usd",
               "cluster_watt", "co2_kg", "committed_usd_per_hour", "cottier_usd_per_hour",
               "electricity_usd", "embodied_kg", "energy_kwh", "overhead", "own_usd_per_hour",
               "rental_usd", "spot_usd_per_hour", "usd_per_mtok"],
    "cost": ["estimate_finetune_plan", "estimate_pretrain", "estimate_serve"],
    "cashflow": ["capital_recovery_factor", "discounted_payback", "irr", "irr_all", "mirr",
                 "npv", "payback"],
    "ranges": ["Range", "draws_of"],
    "project": ["Project", "check_project", "example_path", "read_project"],
    "programme": ["ChainDraws", "draw_pretrain", "labels_usd", "people_usd", "pretrain_chain",
                  "programme_usd", "storage_usd"],
    "worth": ["Study", "can_serve", "cash_by_year", "evaluate"],
    "threshold": ["all_thresholds", "flip_range", "nearest_threshold", "run_invest"],
    "regimes": ["RegimeMap", "accelerators_needed", "break_even_figure", "break_even_volume",
                "cost_per_thousand", "draw_regimes", "regime_map", "tornado", "tornado_figure"],
    "memo": ["memo_text", "verdict"],
})
