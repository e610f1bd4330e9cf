"""Floor 5: fine-tuning, whole or by adapters, and what it leaves on disk."""
from flm_nb.core import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, {
    "lora": ["LowRank", "add_lora", "insert_low_rank"],
    "saved": ["base_facts", "class_probabilities", "find_base", "load_classifier",
              "load_tokenizer", "load_tuned", "predict", "save_tuned", "serving_speed"],
    "finetune": ["counted_flop", "in_new_process", "tune", "warm_up_processes"],
})
