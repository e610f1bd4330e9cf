"""Does fine-tuning beat the frozen probe? Five seeds of split, head, order and dropout.

    python benchmarks/seeds.py

Each seed draws 3,000 texts to learn from and 2,000 to be judged by. The interval is Student's,
over the seeds, for the paired difference to the probe of the same seed.
"""
import tempfile
from pathlib import Path

from common import write_table, write_texts

from flm_nb.adapt.finetune import in_new_process, tune
from flm_nb.adapt.saved import load_tokenizer, load_tuned
from flm_nb.data.text import reviews, text_bundle
from flm_nb.score.compare import seeds_summary
from flm_nb.score.metrics import accuracy, embed, linear_probe, predict_proba
from flm_nb.tasks.heads import load_classifier

MODEL, ROWS, TEST_ROWS, SEEDS = "all-MiniLM-L6-v2", 3000, 2000, range(5)


def one_seed(seed):
    """Accuracy of every rung for one seed."""
    data = reviews("rotten", limit=ROWS + TEST_ROWS, seed=seed)
    tokenizer = load_tokenizer(MODEL, 64)
    bundle = text_bundle(data.texts, data.labels, tokenizer=tokenizer, max_length=64,
                         valid_share=0.0, test_share=TEST_ROWS / len(data), seed=seed)
    names, truth = list(bundle.label_names), bundle.test.labels
    frozen = load_classifier(MODEL, names, seed=seed)
    probe = linear_probe(embed(frozen, bundle.train), bundle.train.labels)
    scores = {"frozen_probe": accuracy(truth, probe.predict(embed(frozen, bundle.test)))}
    for method in ("full", "lora"):
        with tempfile.TemporaryDirectory() as folder:
            write_texts(Path(folder) / "texts.csv", bundle.train.texts,
                        [names[label] for label in bundle.train.labels])
            in_new_process(tune, {
                "data": f"{folder}/texts.csv", "text": "text", "label": "label", "model": MODEL,
                "method": method, "max_length": 64, "valid_share": 0.0, "seed": seed,
                "out": f"{folder}/out", "progress": False})
            tuned = load_tuned(f"{folder}/out")[0]
            scores[method] = accuracy(truth, predict_proba(tuned, bundle.test))
    return scores


def main():
    """Print one line per seed, then the differences, and keep the table."""
    rows = []
    for seed in SEEDS:
        rows.append({"seed": seed} | one_seed(seed))
        print(rows[-1], flush=True)
    for method in ("full", "lora"):
        gains = [row[method] - row["frozen_probe"] for row in rows]
        print(f"{method} minus frozen probe: {seeds_summary(gains)}")
    write_table("seeds", rows)


if __name__ == "__main__":
    main()
