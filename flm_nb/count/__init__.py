"""Floor 8: parameters, arithmetic, memory and time, counted without loading a model."""
from flm_nb.core import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, {
    "params": ["Piece", "active_params", "count_params", "describe_params", "find_targets",
               "list_pieces", "lora_params"],
    "flop": ["count_flop", "saved_heads", "step_flop", "tuned_spec"],
    "memory": ["activation_bytes", "kv_bytes_per_token", "memory_bytes", "tuning_bytes"],
    "time": ["Prior", "coverage", "expected_experts", "roofline_s", "step_mfu",
             "training_hours", "wall_mfu"],
    "finetune": ["FinetuneEstimate", "StepPrices", "estimate_finetune", "predict_finetune",
                 "price_work", "training_peak_bytes", "training_seconds"],
})
