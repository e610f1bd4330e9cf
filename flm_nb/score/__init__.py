"""Floor 3: scores with intervals, and where a model is wrong."""
from flm_nb.core import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, {
    "metrics": ["accuracy", "bits_per_byte", "confusion", "embed", "linear_probe", "macro_f1",
                "majority", "metric", "predict_proba", "report", "row_losses",
                "worst_losses"],
    "compare": ["accuracy_interval", "paired_difference", "published_difference",
                "seeds_summary"],
})
