"""Floor 5: fine-tuning, whole or by adapters, and what it leaves on disk."""
from flm_nb.core import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, {
    "card": ["model_card", "model_print", "tune_command", "used_versions"],
    "lora": ["LowRank", "add_lora", "insert_low_rank"],
    "saved": ["base_facts", "class_probabilities", "find_base", "load_classifier",
              "load_tokenizer", "load_tuned", "predict", "save_folder", "save_tuned",
              "serving_speed"],
    "finetune": ["RunNote", "StoredIds", "StoredPart", "TextJob", "copy_tokenizer",
                 "counted_flop", "in_new_process", "tune", "warm_up_processes"],
    "pretrain": ["LanguageJob", "Source", "find_source", "llama_config", "looks_ahead",
                 "run_language", "tune_language", "usual_rate"],
    "search": ["SearchResult", "read_space", "shared_seconds"],
})
