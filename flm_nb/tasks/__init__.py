"""Floor 2: the head that answers and the loss that judges, chosen separately."""
from flm_nb.core import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, {
    "heads": ["check_batch", "classification_loss", "load_classifier", "load_language_model",
              "next_token_loss"],
})
