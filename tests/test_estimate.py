"""The estimate of a fine-tuning sees the plan, the weights and the FLOP of the loop itself."""
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from flm_nb.adapt.finetune import counted_flop
from flm_nb.adapt.lora import add_lora
from flm_nb.adapt.saved import load_tokenizer
from flm_nb.core import model_folder
from flm_nb.count.finetune import WORK, price_work, step_work, trainable_params
from flm_nb.data.text import text_bundle
from flm_nb.plan import padded_shapes, plan_batches, split_rows, token_lengths
from flm_nb.specs import Accelerator, ModelSpec

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "vocab_size": 300, "num_labels": 3}
CONFIGS = {
    "bert": SMALL, "roberta": SMALL | {"max_position_embeddings": 80, "pad_token_id": 1},
    "electra": SMALL | {"embedding_size": 32},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 300,
                   "num_labels": 3},
    "llama": SMALL | {"num_key_value_heads": 2, "pad_token_id": 0},
    "qwen2": SMALL | {"num_key_value_heads": 2, "pad_token_id": 0},
}


@pytest.fixture(params=CONFIGS)
def family(request, tmp_path):
    config = AutoConfig.for_model(request.param, **CONFIGS[request.param])
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(tmp_path)
    spec = ModelSpec.from_config(tmp_path).with_head("SequenceClassification", classes=3)
    return tmp_path, model, spec


@pytest.mark.parametrize("method", ["full", "lora"])
def test_weights_that_learn_are_those_of_the_model(family, method):
    _, model, spec = family
    tuned = add_lora(model, r=4) if method == "lora" else model
    learning = sum(weight.numel() for weight in tuned.parameters() if weight.requires_grad)
    assert trainable_params(spec, method=method, r=4) == learning


@pytest.mark.parametrize("method", ["full", "lora"])
def test_flop_of_a_plan_are_those_that_torch_counts(family, method):
    folder, _, spec = family
    shapes = np.array([(4, 16), (4, 16), (3, 24), (1, 8)])
    ours = step_work(spec, shapes, method=method, r=4)[:, WORK.index("arithmetic")].sum()
    theirs = counted_flop(folder, shapes, method=method, r=4, labels=("a", "b", "c"))
    assert abs(ours / theirs - 1) < 0.01  # the contract's tolerance


def test_estimate_and_loop_see_the_same_batches():
    random = np.random.default_rng(3)
    words = ["good", "bad", "film", "very", "long", "plot", "actor"]
    texts = [" ".join([*random.choice(words, random.integers(3, 60)), str(i)])
             for i in range(300)]
    labels = [str(i % 2) for i in range(300)]
    model = "all-MiniLM-L6-v2"
    tokenizer = load_tokenizer(model, 48)
    bundle = text_bundle(texts, labels, tokenizer=tokenizer, max_length=48, valid_share=0.2,
                         seed=5)
    split = split_rows(texts, labels, valid_share=0.2, seed=5)
    lengths = token_lengths([texts[i] for i in split.train], model_folder(model), 48)
    assert lengths.tolist() == bundle.train.lengths.tolist()
    for epoch in range(2):
        ours = padded_shapes(lengths, plan_batches(lengths, batch_size=16, seed=5, epoch=epoch))
        loop = [tuple(bundle.train.batch(rows)["input_ids"].shape)
                for rows in bundle.train.plan(batch_size=16, seed=5, epoch=epoch)]
        assert [tuple(shape) for shape in ours.tolist()] == loop


def test_prices_never_fall_below_zero_and_scale_with_the_seconds():
    random = np.random.default_rng(0)
    config = {"model_type": "bert", "intermediate_size": 256, "hidden_size": 64,
              "num_attention_heads": 4, "vocab_size": 500}
    steps = [{"config": config | {"num_hidden_layers": int(layers)}, "batch": int(rows),
              "tokens": int(tokens), "method": method, "precision": "fp32",
              "cpu_s": float(random.uniform(0.1, 1)), "wall_s": 1.0}
             for layers, rows, tokens, method in [
                 (1, 4, 16, "full"), (2, 8, 64, "lora"), (4, 2, 128, "full"),
                 (1, 16, 32, "lora"), (6, 1, 8, "full"), (3, 3, 200, "full"),
                 (2, 2, 48, "lora"), (5, 7, 24, "full")]]

    def machine(factor):
        scaled = [step | {"cpu_s": step["cpu_s"] * factor} for step in steps]
        return Accelerator(name="here", peak_flop_per_s={}, memory_bytes=1e9, bytes_per_s=1e9,
                           tdp_w=None, usd_per_hour=None, purchase_usd=None, source="noise",
                           profile={"steps": scaled})

    once, twice = (price_work(machine(factor), "fp32") for factor in (1, 2))
    for kind in WORK:
        assert once.cpu_s[kind] >= 0
        assert twice.cpu_s[kind] == pytest.approx(2 * once.cpu_s[kind], rel=1e-6, abs=1e-15)
    assert once.spread > 1
