"""Floor 1: real text as bundles that `fit` takes, looked at before any score."""
from flm_nb.core import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, {
    "text": ["Labelled", "TextBundle", "TextPart", "TextReport", "collate", "excerpt",
             "load_table", "look", "reviews", "text_bundle"],
    "language": ["BytePart", "LanguageBundle", "compressor_bits_per_byte", "language_bundle",
                 "library_files", "unigram_bits_per_byte"],
    "tokens": ["Corpus", "TokenStore", "open_corpus", "token_store", "train_bpe"],
    "blocks": ["BlockPart", "language_parts", "shuffled_rows"],
})
