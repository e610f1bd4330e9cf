"""Floor 4: one loop for every training, its checkpoints, and the machine it runs on."""
from flm_nb.core import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, {
    "checkpoint": ["clear_checkpoints", "flush_to_disk", "list_checkpoints", "load_checkpoint",
                   "save_checkpoint", "stop_requests"],
    "finder": ["Sweep", "draw_sweep", "lr_sweep"],
    "guard": ["ExplodingGradient", "NonFiniteLoss", "OutOfMemory", "check_finite", "data_print",
              "memory_guard", "padded_length", "thread_count"],
    "loop": ["History", "fit"],
    "many": ["added", "first_then_others", "gathered", "join", "one_writes", "processes",
             "rejoined", "sharded_copy", "shared_like", "wants_shards"],
    "measure": ["language_job", "measure_machine", "peak_memory", "stopwatch"],
    "settings": ["FitConfig", "freeze_except", "learning_rate", "make_optimizer"],
})
