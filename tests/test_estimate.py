"""The estimate of a fine-tuning sees the plan, the weights and the FLOP of the loop itself."""
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from flm_nb.adapt.finetune import counted_flop
from flm_nb.adapt.lora import add_lora
from flm_nb.adapt.saved import load_tokenizer
from flm_nb.core import InputError, catalogue_rows, model_folder
from flm_nb.count.finetune import (
    BYTES,
    WORK,
    memory_factors,
    predict_language,
    price_work,
    read_shapes,
    step_work,
    trainable_params,
    training_memory_kinds,
    training_peak_bytes,
    training_seconds,
)
from flm_nb.data.text import text_bundle
from flm_nb.plan import padded_shapes, plan_batches, split_rows, token_lengths
from flm_nb.specs import Accelerator, ModelSpec
from flm_nb.train.measure import REFERENCE, language_job, reference_step

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


BYTE_MODEL = {"model_type": "llama", "vocab_size": 256, "hidden_size": 64, "head_dim": 16,
              "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 160,
              "max_position_embeddings": 64, "tie_word_embeddings": True,
              "architectures": ["LlamaForCausalLM"]}


def minilm(task="SequenceClassification"):
    return ModelSpec.from_config("all-MiniLM-L6-v2").with_head(task)


def priced_machine(prices, references=REFERENCE, noise=1.0):
    """A machine on which each kind of work costs what `prices` say."""
    heads = {"bert": "BertForSequenceClassification", "llama": "LlamaForCausalLM"}
    steps = []
    for place, (family, layers, width, vocab, rows, tokens, method) in enumerate(references):
        config = {"model_type": family, "num_hidden_layers": layers, "hidden_size": width,
                  "vocab_size": vocab, "num_attention_heads": width // 32, "num_labels": 2,
                  "intermediate_size": 4 * width if family == "bert" else 5 * width // 2,
                  "tie_word_embeddings": True, "architectures": [heads[family]]}
        work = step_work(ModelSpec.from_config(config), [(rows, tokens)], method=method)[0]
        seconds = sum(prices.get(kind, 0) * amount
                      for kind, amount in zip(WORK, work, strict=True))
        seconds *= noise if place % 2 else 1 / noise
        steps.append({"config": config, "batch": rows, "tokens": tokens, "method": method,
                      "precision": "fp32", "cpu_s": seconds, "wall_s": seconds / 2})
    return Accelerator(name="here", peak_flop_per_s={}, memory_bytes=1e9, bytes_per_s=1e9,
                       tdp_w=None, usd_per_hour=None, purchase_usd=None, source="invented",
                       profile={"steps": steps})


# ------------------------------------------------------------------ seconds
def test_the_reference_steps_tell_all_kinds_of_work_apart():
    invented = {kind: price for kind, price in zip(WORK, (
        5e-12, 1e-9, 5e-9, 2e-9, 3e-9, 2e-9, 2e-9, 1e-3, 5e-3), strict=True)}
    found = price_work(priced_machine(invented), "fp32")
    for kind in WORK:  # no kind may hide behind another: each invented price is found again
        assert found.cpu_s[kind] == pytest.approx(invented[kind], rel=1e-3)
    assert found.spread < 1.001


def test_noise_of_a_tenth_in_the_profile_stays_a_tenth_in_the_job():
    invented = {"arithmetic": 5e-12, "results": 1e-9, "activations": 5e-9, "updating": 2e-9,
                "layers": 1e-3}
    shapes = np.array([(16, 64), (32, 128), (8, 256), (16, 24)] * 5)
    true, noisy = (training_seconds(minilm(), shapes, price_work(
        priced_machine(invented, noise=noise), "fp32"))["cpu_s"] for noise in (1.0, 1.1))
    assert abs(noisy / true - 1) < 0.12
    assert price_work(priced_machine(invented, noise=1.1), "fp32").spread > 1.1


def test_a_language_model_pays_for_the_words_that_it_scores():
    logits, casting = WORK.index("logits"), WORK.index("casting")
    small, large = (step_work(ModelSpec.from_config(BYTE_MODEL | {"vocab_size": vocab}),
                              [(8, 32)])[0] for vocab in (256, 4096))
    assert (small[logits], large[logits]) == (8 * 32 * 256, 8 * 32 * 4096)
    assert large[casting] - small[casting] == 64 * (4096 - 256)  # a tied head is cast as well
    classifier = ModelSpec.from_config(BYTE_MODEL).with_head("SequenceClassification")
    assert step_work(classifier, [(8, 32)])[0][logits] == 0


@pytest.mark.parametrize("case", [REFERENCE[6], REFERENCE[12], REFERENCE[17]],
                         ids=["bert", "lora", "llama"])
def test_a_reference_step_names_the_model_that_it_timed(case):
    step = reference_step(case, "fp32", steps=1)
    family, layers, width, vocab, rows, tokens, method = case
    spec = ModelSpec.from_config(step["config"])
    head = {"bert": "BertForSequenceClassification", "llama": "LlamaForCausalLM"}[family]
    assert (spec.family, spec.head_class, step["method"]) == (family, head, method)
    assert (spec.sizes["layers"], spec.sizes["width"], spec.sizes["vocab"]) == (
        layers, width, vocab)
    assert (step["batch"], step["tokens"]) == (rows, tokens) and step["cpu_s"] > 0


def test_references_reach_the_batches_of_real_jobs():
    rows = {row for *_, row, _, _ in REFERENCE}
    tokens = {row * length for *_, row, length, _ in REFERENCE}
    assert max(rows) >= 32 and max(tokens) >= 4096 and min(tokens) <= 128
    assert {family for family, *_ in REFERENCE} == {"bert", "llama"}


# ------------------------------------------------------------------ memory
def test_most_left_out_rows_of_the_memory_table_lie_within_a_tenth():
    rows, (factors, spread) = catalogue_rows("memory_here"), memory_factors()
    assert len(rows) >= 40 and 1 < spread < 1.12
    assert {row["precision"] for row in rows} == {"fp32", "bf16"}
    assert {row["method"] for row in rows} == {"full", "lora"}
    widest = [read_shapes(row["shapes"])[:, 0].max() for row in rows]
    assert {32, 64} <= set(widest)
    assert all(factor >= 0 for factor in factors) and all(row["date"] for row in rows)


def test_memory_grows_with_all_that_it_should_and_with_nothing_else():
    def peak(shapes, **options):
        return training_peak_bytes(minilm(), shapes, **{"precision": "bf16"} | options)

    base = peak([(16, 64)] * 10)
    assert peak([(16, 64)] * 1000) == base  # longer training, same shapes
    assert peak([(64, 16)] * 10) == base  # as many tokens
    assert peak([(32, 64)]) > peak([(16, 64), (16, 32)]) > base  # larger batch, more shapes
    assert peak([(16, 64)], method="lora") < base < peak([(16, 64)], precision="fp32") * 1.01
    assert peak([(16, 64)], method="lora", r=64) > peak([(16, 64)], method="lora", r=8)


def test_memory_of_states_is_that_of_the_weights():
    states = BYTES.index("states")
    for method, bytes_a_weight in (("full", 16), ("lora", 4)):
        kinds = training_memory_kinds(minilm(), [(1, 8)], method=method, precision="fp32")
        params, learning = 22_713_986, trainable_params(minilm(), method=method)
        extra = 0 if method == "full" else 16 * learning
        assert kinds[states] == bytes_a_weight * params + extra


def test_logits_of_a_large_vocabulary_show_in_the_memory():
    guesses = [predict_language(config=BYTE_MODEL | {"vocab_size": vocab}, block=64,
                                batch_size=64, steps=2, precision="fp32",
                                accelerator=priced_machine({"arithmetic": 1e-11}))
               for vocab in (256, 32_000)]
    more = guesses[1].peak_bytes - guesses[0].peak_bytes
    logits, states = 64 * 64 * (32_000 - 256), 16 * 64 * (32_000 - 256)
    assert more > 8 * logits + 0.7 * states  # in fp32, and their gradient, and a copy


def test_shapes_unfold_as_they_are_written():
    assert read_shapes("2*16x64 1*4x8").tolist() == [[16, 64], [16, 64], [4, 8]]
    for row in catalogue_rows("memory_here"):
        plan = read_shapes(row["shapes"])
        assert plan.min() >= 1 and len(plan) >= 3


# ------------------------------------------------------------------ language models
def test_flop_of_a_language_model_are_those_that_torch_counts():
    job = {"config": BYTE_MODEL, "block": 32, "batch_size": 4, "steps": 2}
    guess = predict_language(**job, accelerator=priced_machine({"arithmetic": 1e-11}),
                             precision="fp32")
    run = language_job(**job, precision="fp32")
    assert abs(guess.flop / run["counted_flop"] - 1) < 0.01
    assert len(run["losses"]) == len(guess.shapes) == 2
    assert abs(run["losses"][0] - np.log(256)) < 0.5  # random weights guess


@pytest.mark.parametrize("wrong", [{"block": 0}, {"steps": 2.5}, {"batch_size": -1},
                                   {"config": "all-MiniLM-L6-v2"}])
def test_bad_jobs_of_a_language_model_are_refused(wrong):
    job = {"config": BYTE_MODEL, "block": 32, "batch_size": 4, "steps": 2} | wrong
    with pytest.raises(InputError, match=next(iter(wrong))):
        predict_language(**job, accelerator=priced_machine({"arithmetic": 1e-11}))
