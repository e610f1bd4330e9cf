"""Floor 4: one loop for every training, its checkpoints, and the machine it runs on."""
from flm_nb.core import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, {
    "checkpoint": ["clear_checkpoints", "list_checkpoints", "load_checkpoint",
                   "save_checkpoint", "stop_requests"],
    "finder": ["Sweep", "draw_sweep", "lr_sweep"],
    "loop": ["FitConfig", "History", "NonFiniteLoss", "OutOfMemory", "fit", "freeze_except",
             "learning_rate"],
    "measure": ["language_job", "measure_machine", "peak_memory", "stopwatch"],
})
