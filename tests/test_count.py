"""Counting is exact: against transformers' modules, torch's counter, and published figures."""
import dataclasses
import json
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest

from flm_nb.core import InputError, catalogue_rows
from flm_nb.count.flop import count_flop, step_flop
from flm_nb.count.memory import (
    activation_bytes,
    kv_bytes_per_token,
    memory_bytes,
    training_bytes,
)
from flm_nb.count.params import active_params, count_params, describe_params, lora_params
from flm_nb.count.runs import wall_mfu
from flm_nb.count.steps import step_mfu
from flm_nb.count.time import (
    expected_experts,
    roofline_s,
    training_hours,
)
from flm_nb.invest import cost, prices
from flm_nb.specs import Accelerator, ModelSpec, model_catalogue, model_families

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BERT = {"vocab_size": 99, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 40, "max_position_embeddings": 50, "type_vocab_size": 3}
LLAMA = {"vocab_size": 99, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 40, "max_position_embeddings": 64}
ODD = {  # family -> configs that lean on every field it saves
    "gpt2": [{"vocab_size": 99, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 40},
             {"n_embd": 20, "n_layer": 1, "n_head": 2, "n_inner": 7, "vocab_size": 11,
              "tie_word_embeddings": False, "num_labels": 5},
             {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}],
    "gpt_neox": [LLAMA, LLAMA | {"use_parallel_residual": False, "attention_bias": False,
                                 "tie_word_embeddings": True}],
    "opt": [{"vocab_size": 99, "hidden_size": 24, "num_hidden_layers": 2, "ffn_dim": 30,
             "num_attention_heads": 4, "max_position_embeddings": 40, **more}
            for more in ({}, {"word_embed_proj_dim": 10}, {"do_layer_norm_before": False},
                         {"enable_bias": False, "layer_norm_elementwise_affine": False},
                         {"_remove_final_layer_norm": True, "tie_word_embeddings": False})],
    "llama": [LLAMA, LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": True},
              LLAMA | {"head_dim": 10, "attention_bias": True, "mlp_bias": True},
              LLAMA | {"num_key_value_heads": None, "id2label": dict.fromkeys("012", "a")}],
    "mistral": [LLAMA | {"num_key_value_heads": 2},
                LLAMA | {"num_attention_heads": 8, "hidden_size": 32},
                LLAMA | {"head_dim": None, "num_key_value_heads": 1, "num_labels": 7}],
    "mixtral": [LLAMA | {"num_key_value_heads": 2, "num_local_experts": 5},
                LLAMA | {"num_attention_heads": 8, "num_experts_per_tok": 1, "head_dim": 6}],
    "qwen2": [LLAMA | {"num_key_value_heads": 2},
              LLAMA | {"num_key_value_heads": 4, "tie_word_embeddings": True}],
    "qwen2_moe": [LLAMA | {"num_key_value_heads": 2, "num_experts": 6, **more} for more in
                  ({}, {"decoder_sparse_step": 2, "qkv_bias": False},
                   {"mlp_only_layers": [0], "shared_expert_intermediate_size": 17,
                    "moe_intermediate_size": 9})],
    "qwen3": [LLAMA | {"num_key_value_heads": 2}, LLAMA | {
        "num_key_value_heads": 4, "head_dim": 6, "attention_bias": True}],
    "qwen3_moe": [LLAMA | {"moe_intermediate_size": 9, **more} for more in
                  ({}, {"num_experts": 16, "mlp_only_layers": [1]},
                   {"num_local_experts": 12, "decoder_sparse_step": 2, "head_dim": 10})],
    "gemma": [LLAMA | {"num_key_value_heads": 2, "head_dim": 8}, LLAMA | {
        "num_key_value_heads": 1, "tie_word_embeddings": False, "attention_bias": True}],
    "smollm3": [LLAMA | {"num_key_value_heads": 2, "pad_token_id": 0},
                LLAMA | {"mlp_bias": True, "pad_token_id": 0}],
    "phi3": [LLAMA | {"num_key_value_heads": 2, "pad_token_id": 0}],
    "bert": [BERT, BERT | {"tie_word_embeddings": False, "num_labels": 2},
             BERT | {"num_labels": 9, "type_vocab_size": 1}],
    "roberta": [BERT, BERT | {"tie_word_embeddings": False}],
    "xlm-roberta": [BERT], "camembert": [BERT],
    "distilbert": [{"vocab_size": 99, "dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 30},
                   {"vocab_size": 50, "hidden_size": 24, "n_layers": 1, "n_heads": 2,
                    "hidden_dim": 30, "sinusoidal_pos_embds": True,
                    "tie_word_embeddings": False}],
    "electra": [BERT, BERT | {"embedding_size": 24}, BERT | {
        "embedding_size": 10, "tie_word_embeddings": False}],
    "vit": [{"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
             "image_size": 32, "intermediate_size": 40, "patch_size": 8, **more} for more in
            ({}, {"qkv_bias": False, "num_channels": 1, "num_labels": 10},
             {"pooler_output_size": 11, "image_size": 35})],
    "t5": [{"vocab_size": 99, "d_model": 24, "d_kv": 5, "num_heads": 3, "d_ff": 40,
            "num_layers": 2, **more} for more in
           ({}, {"num_decoder_layers": 1, "feed_forward_proj": "gated-gelu"},
            {"tie_word_embeddings": False, "relative_attention_num_buckets": 9})],
    "deepseek_v3": [LLAMA | {"num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 2,
                             "topk_group": 1, "v_head_dim": 5, "num_experts_per_tok": 3,
                             "moe_intermediate_size": 7,
                             "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "kv_lora_rank": 8,
                             **more} for more in
                    ({"q_lora_rank": 9, "first_k_dense_replace": 1},
                     {"q_lora_rank": None, "first_k_dense_replace": 0, "attention_bias": True},
                     {"q_lora_rank": 9, "n_shared_experts": 2, "first_k_dense_replace": 5})],
    "bloom": [{"vocab_size": 99, "hidden_size": 24, "n_layer": 2, "n_head": 4, **more}
              for more in ({}, {"tie_word_embeddings": False, "num_labels": 4})],
    "phi": [LLAMA | {"hidden_size": 32}, LLAMA | {
        "hidden_size": 32, "num_key_value_heads": 2, "qk_layernorm": True}],
    "olmo2": [LLAMA | {"num_key_value_heads": 2, "pad_token_id": 0, "attention_bias": True}],
    "gemma2": [LLAMA | {"num_key_value_heads": 2, "head_dim": 8, "attention_bias": True}],
    "starcoder2": [LLAMA | {"num_key_value_heads": 2}, LLAMA | {
        "num_key_value_heads": 4, "use_bias": False, "tie_word_embeddings": False}],
}
MLA = {"v_head_dim": 6, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "kv_lora_rank": 8,
       "moe_intermediate_size": 7, "num_experts_per_tok": 3, "num_key_value_heads": 4}
ODD["deepseek_v2"] = [
    LLAMA | MLA | {"q_lora_rank": 9, "first_k_dense_replace": 1},
    LLAMA | MLA | {"q_lora_rank": None, "attention_bias": True, "n_routed_experts": 6}]
STACKED = [name for name, entry in model_catalogue().items()
           if "walk" not in model_families()[entry["config"]["model_type"]]]
CASES = [(family, head, number) for family, configs in ODD.items()
         for head in model_families()[family]["heads"] for number in range(len(configs))]


def saved(family, head, number):
    """A config as it would be saved, with its class."""
    return {"model_type": family, "architectures": [head]} | ODD[family][number]


def module(config, device="meta", **options):
    """The module that transformers builds from a saved config."""
    made = transformers.AutoConfig.for_model(**config)
    for name, value in options.items():
        setattr(made, name, value)
    kind = getattr(transformers, config["architectures"][0])
    with torch.device(device):
        return kind._from_config(made, attn_implementation="eager").eval()


# ------------------------------------------------------------------ parameters
def test_every_family_has_odd_configs():
    assert set(ODD) <= set(model_families())  # the others: test_families.py, test_vision.py


@pytest.mark.parametrize(("family", "head", "number"), CASES)
def test_params_equal_the_module(family, head, number):
    config = saved(family, head, number)
    weights = sum(weight.numel() for weight in module(config).parameters())
    assert count_params(config).total == weights


@pytest.mark.parametrize("family", ODD)
def test_defaults_are_those_of_transformers(family):
    """A config that saves nothing but its type is what transformers makes of it."""
    kind = type(transformers.AutoConfig.for_model(family))
    defaults = {entry.name: entry.default for entry in dataclasses.fields(kind)}
    ours = model_families()[family]["defaults"]
    filled = {"num_local_experts", "mlp_only_layers"}  # set after the fact, from null
    for key in set(ours) - filled:
        if key in defaults and not callable(defaults[key]):
            assert ours[key] == defaults[key], key
    needs = {"num_experts_per_tok": 6} if family == "deepseek_v2" else {}
    bare = ModelSpec.from_config({"model_type": family} | needs)
    made = transformers.AutoConfig.for_model(family)
    for name, key in model_families()[family]["sizes"].items():
        if getattr(made, key, None) is not None and name in bare.sizes:
            assert bare.sizes[name] == getattr(made, key), (name, key)


PUBLISHED = {
    "gpt2": 124_439_808, "gpt2-xl": 1_557_611_200, "gpt-3": 174_604_259_328,
    "bert-base-uncased": 109_482_240, "bert-large-uncased": 335_141_888,
    "llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320, "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248, "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800, "tinyllama": 1_100_048_384, "smollm3-3b": 3_075_098_624,
    "vit-b16": 86_567_656, "vit-l16": 304_326_632, "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944, "pythia-1b": 1_011_781_632, "pythia-12b": 11_846_072_320,
    "mixtral-8x7b": 46_702_792_704, "qwen2.5-7b": 7_615_616_512,
    "qwen3-235b-a22b": 235_093_634_560, "deepseek-v3": 671_026_404_352,
    "deepseek-v2": 235_741_434_880, "bloom": 176_247_271_424,
    "t5-11b": 11_307_321_344, "all-MiniLM-L6-v2": 22_713_216}
ACTIVE = {"mixtral-8x7b": 12_879_925_248, "qwen3-235b-a22b": 22_190_763_520,
          "deepseek-v3": 37_552_282_624, "deepseek-v2": 21_375_800_320,
          "llama-2-7b": 6_738_415_616}


@pytest.mark.parametrize(("name", "total"), PUBLISHED.items())
def test_published_totals(name, total):
    assert count_params(name).total == total


@pytest.mark.parametrize(("name", "active"), ACTIVE.items())
def test_published_active(name, active):
    assert active_params(name) == active


@pytest.mark.parametrize("name", STACKED)
def test_catalogue_models_equal_their_module(name):
    entry = model_catalogue()[name]
    assert entry["source"]
    config = dict(entry["config"])
    config.setdefault("architectures", [model_families()[config["model_type"]]["base"]])
    weights = sum(weight.numel() for weight in module(config).parameters())
    told = describe_params(name)
    assert told["total"] == weights == sum(told["breakdown"].values())
    assert set(told) == {"model", "total", "active", "embedding", "breakdown"}
    assert told["model"] == name and 0 < told["embedding"] < told["total"] >= told["active"]
    assert json.loads(json.dumps(told)) == told


def test_to_dict_of_transformers_reads_the_same():
    for family, configs in ODD.items():
        for config in configs:
            made = transformers.AutoConfig.for_model(family, **config)
            again = json.loads(json.dumps(made.to_dict(), default=str))
            direct = count_params({"model_type": family} | config)
            assert count_params(again).total == direct.total


@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "o"), ("query", "value"),
                                     ("attention.output.dense",), ("dense",)])
def test_lora_params_equal_peft_on_bert(targets):
    peft = pytest.importorskip("peft")
    config = saved("bert", "BertModel", 0)
    own = {"q": "query", "k": "key", "v": "value", "o": "attention.output.dense"}
    wrapped = peft.get_peft_model(module(config, "cpu"), peft.LoraConfig(
        r=4, target_modules=[own.get(target, target) for target in targets]))
    trainable = wrapped.get_nb_trainable_parameters()[0]
    assert lora_params(config, 4, targets) == trainable


@pytest.mark.parametrize(("family", "targets", "own"), [
    ("llama", ("q_proj", "v_proj"), ["q_proj", "v_proj"]), ("gpt2", ("q", "v"), ["c_attn"]),
    ("gpt2", ("c_proj",), ["c_proj"]), ("distilbert", ("q", "v"), ["q_lin", "v_lin"]),
    ("gpt_neox", ("v",), ["query_key_value"]), ("phi3", ("qkv_proj",), ["qkv_proj"]),
    ("mixtral", ("q", "o"), ["q_proj", "o_proj"]), ("t5", ("q", "v"), ["q", "v"])])
def test_lora_params_equal_peft(family, targets, own):
    peft = pytest.importorskip("peft")
    config = saved(family, model_families()[family]["base"], 0)
    wrapped = peft.get_peft_model(module(config, "cpu"), peft.LoraConfig(
        r=3, target_modules=own))
    assert lora_params(config, 3, targets) == wrapped.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(("config", "told"), [
    ({"model_type": "bert", "hidden_size": 0}, "hidden_size=0 of a bert is no positive"),
    ({"model_type": "bert", "hidden_size": -8}, "hidden_size=-8"),
    ({"model_type": "bert", "hidden_size": float("nan")}, "hidden_size=nan"),
    ({"model_type": "bert", "hidden_size": "768"}, "hidden_size='768'"),
    ({"model_type": "bert", "hidden_size": 768.0}, "hidden_size=768.0"),
    ({"model_type": "bert", "hidden_size": True}, "hidden_size=True"),
    ({"model_type": "bert", "hidden_size": [768]}, "hidden_size=[768]"),
    ({"model_type": "bert", "num_labels": 0}, "num_labels=0"),
    ({"model_type": "bert", "id2label": ["a"]}, "id2label"),
    ({"model_type": "bert", "architectures": "BertModel"}, "architectures="),
    ({"model_type": "bert", "architectures": ["LlamaModel"]}, "architectures='LlamaModel'"),
    ({"model_type": "llama", "num_key_value_heads": 5}, "heads=5 does not fit 32"),
    ({"model_type": "llama", "mlp_bias": "no"}, "mlp_bias='no'"),
    ({"model_type": "mixtral", "num_experts_per_tok": 9}, "num_experts_per_tok=9"),
    ({"model_type": "gpt2", "add_cross_attention": True}, "add_cross_attention=True"),
    ({"model_type": "lama"}, "model_type='lama' is unknown; near: llama"),
    ({"model_type": "mamba", "architectures": ["BertModel"]}, "'mamba' is unknown"),
    ({"model_type": ["bert"]}, "model_type="), ({}, "model_type=None is missing")])
def test_bad_configs_are_refused(config, told):
    with pytest.raises(InputError) as problem:
        count_params(config)
    assert str(problem.value).startswith(told) or told in str(problem.value)


@pytest.mark.parametrize("name", ["", "nowhere", "./nowhere/config.json", "nobody/nothing"])
def test_unknown_names_are_refused(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError):
        count_params(name)


# ------------------------------------------------------------------ FLOP
def counted_flop(model, batch, tokens, family="bert", backward=True):
    """What torch's counter says of one step on the CPU, every output in the loss."""
    from torch.utils.flop_counter import FlopCounterMode

    inputs = {"input_ids": torch.ones(batch, tokens, dtype=torch.long)}
    if family == "vit":
        made = model.config
        shape = batch, made.num_channels, made.image_size, made.image_size
        inputs = {"pixel_values": torch.ones(shape)}
    if family == "t5" and type(model).__name__ not in ("T5EncoderModel",
                                                       "T5ForTokenClassification"):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    if "MultipleChoice" in type(model).__name__:
        inputs = {name: ids[:, None] for name, ids in inputs.items()}
    with FlopCounterMode(display=False) as counter:
        outputs = model(**inputs)
        if backward:
            wanted = [t for t in outputs.to_tuple()
                      if torch.is_tensor(t) and t.requires_grad]
            sum(t.sum() for t in wanted).backward()
    return counter.get_total_flops()


FLOP_CASES = [case for case in CASES if case[1] != "T5ForSequenceClassification"]  # needs </s>


@pytest.mark.parametrize(("family", "head", "number"), FLOP_CASES)
@pytest.mark.parametrize("mode", ["training", "forward"])
def test_flop_equal_torch(family, head, number, mode):
    config = saved(family, head, number) | {"use_cache": False}
    if family in ("bert", "roberta", "electra") and "QuestionAnswering" in head:
        config |= {"num_labels": 2}
    tokens = ModelSpec.from_config(config).max_tokens if family == "vit" else 7
    model = module(config, "cpu", _experts_implementation="eager")
    model.config.pad_token_id = 0  # so that a batch of two can be classified
    counted = counted_flop(model, 2, tokens, family, mode == "training")
    ours = count_flop(config, tokens, batch=2, mode=mode)
    assert ours.total == counted
    assert ours.total == sum(ours.parts.values())


PEFT = [("bert", "BertForSequenceClassification", ["query", "value"], ["classifier"]),
        ("bert", "BertForSequenceClassification", ["query", "value"], ["pooler", "classifier"]),
        ("bert", "BertForSequenceClassification", ["key"], ["classifier"]),
        ("bert", "BertForSequenceClassification", ["query", "key", "value"], ["classifier"]),
        ("bert", "BertForSequenceClassification", ["attention.output.dense"], ["classifier"]),
        ("bert", "BertForSequenceClassification", ["output.dense"], ["classifier"]),
        ("bert", "BertForSequenceClassification", ["intermediate.dense"], ["classifier"]),
        ("roberta", "RobertaForSequenceClassification", ["query", "value"], ["classifier"]),
        ("distilbert", "DistilBertForSequenceClassification", ["q_lin", "v_lin"],
         ["pre_classifier", "classifier"]),
        ("electra", "ElectraForSequenceClassification", ["query", "value"], ["classifier"]),
        ("gpt2", "GPT2LMHeadModel", ["c_attn"], []),
        ("gpt_neox", "GPTNeoXForCausalLM", ["query_key_value"], []),
        ("gpt_neox", "GPTNeoXForCausalLM", ["dense_h_to_4h"], []),
        ("llama", "LlamaForCausalLM", ["q_proj", "v_proj"], []),
        ("llama", "LlamaForCausalLM", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
                                       "up_proj", "down_proj"], []),
        ("llama", "LlamaForSequenceClassification", ["v_proj"], ["score"]),
        ("qwen3", "Qwen3ForCausalLM", ["k_proj", "down_proj"], []),
        ("mixtral", "MixtralForCausalLM", ["q_proj", "v_proj"], [])]


@pytest.mark.parametrize(("family", "head", "targets", "heads"), PEFT)
@pytest.mark.parametrize("layers", [1, 3])
def test_step_flop_equals_a_peft_model(family, head, targets, heads, layers):
    peft = pytest.importorskip("peft")
    key = model_families()[family]["sizes"]["layers"]
    config = saved(family, head, 0) | {key: layers, "use_cache": False, "pad_token_id": 0}
    model = peft.get_peft_model(
        module(config, "cpu", _experts_implementation="eager"),
        peft.LoraConfig(r=3, target_modules=targets, modules_to_save=heads or None))
    model.eval()
    ours = step_flop(config, batch=3, tokens=11, method="lora", r=3, targets=targets,
                     modules_to_save=heads)
    assert ours.total == counted_flop(model, 3, 11)


@pytest.mark.parametrize(("heads", "frozen"), [(("classifier",), ["bert"]), (
    ("pooler", "classifier"), ["bert.embeddings", "bert.encoder"])])
def test_probe_equals_a_frozen_model(heads, frozen):
    config = saved("bert", "BertForSequenceClassification", 0)
    model = module(config, "cpu")
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    ours = step_flop(config, batch=2, tokens=9, method="probe", modules_to_save=heads)
    assert ours.total == counted_flop(model, 2, 9)


def test_a_bare_encoder_gets_a_classifier():
    base, head = (saved("bert", f"Bert{name}", 0) for name in ("Model", "ForMaskedLM"))
    wanted = saved("bert", "BertForSequenceClassification", 0)
    for config in (base, head, wanted):
        ours = step_flop(config, batch=2, tokens=9).total
        assert ours == count_flop(wanted, 9, batch=2).total


def test_arrays_agree_with_numbers():
    batch, tokens = np.array([1, 4, 16]), np.array([8, 100, 512])
    for method in ("full", "lora", "probe"):
        together = step_flop("bert-base-uncased", batch=batch, tokens=tokens, method=method)
        single = [step_flop("bert-base-uncased", batch=int(b), tokens=int(t),
                            method=method).total for b, t in zip(batch, tokens, strict=True)]
        assert together.total.tolist() == single


def test_causal_halves_the_scores_alone():
    full, half = (count_flop("llama-2-7b", 4096, causal=causal) for causal in (False, True))
    assert half.parts["attention scores"] == full.parts["attention scores"] / 2
    assert half.total == full.total - full.parts["attention scores"] / 2


def test_flop_vectors():
    assert count_flop("gpt2", 1024).total == 874_944_921_600
    assert count_flop("gpt2", seq_len=1024, batch=3).total == 3 * 874_944_921_600
    rule = 6 * 6_738_415_616 + 12 * 32 * 4096 * 4096  # PaLM, appendix B
    assert rule * 4096 / count_flop("llama-2-7b", 4096).total == pytest.approx(1.017, abs=5e-4)
    forward = count_flop("vit-b16", 197, mode="forward").total
    assert forward / 2 == pytest.approx(17.5638e9, rel=1e-4)  # Dosovitskiy 2021, by fvcore
    decoder_only = count_flop("gpt-3", 2048).total * 300e9 / 2048
    assert decoder_only == pytest.approx(3.14e23, rel=0.04)  # Brown 2020, 6ND without scores


@pytest.mark.parametrize("call", [
    lambda: count_flop("gpt2", 0), lambda: count_flop("gpt2", -1),
    lambda: count_flop("gpt2", math.nan), lambda: count_flop("gpt2", math.inf),
    lambda: count_flop("gpt2", "1024"), lambda: count_flop("gpt2", 1025),
    lambda: count_flop("gpt2", 10, batch=0), lambda: count_flop("gpt2", 10, mode="train"),
    lambda: count_flop("bert-base-uncased", 10, causal=True),
    lambda: count_flop("vit-b16", 196), lambda: lora_params("gpt2", 0),
    lambda: lora_params("gpt2", 2.5), lambda: lora_params("gpt2", 8, ("nothing",)),
    lambda: lora_params("mixtral-8x7b", 8, ("gate_up_proj",)),
    lambda: step_flop("gpt2", batch=1, tokens=8, method="lora", targets=()),
    lambda: step_flop("gpt2", batch=1, tokens=8, method="lora", r=-1),
    lambda: Accelerator.named(""), lambda: Accelerator.named("H100").peak("fp64"),
    lambda: Accelerator.named("H100-SXM-80GB").peak("fp64")])
def test_nonsense_is_refused(call):
    with pytest.raises(InputError):
        call()


# ------------------------------------------------------------------ memory and time
def test_memory_vectors():
    assert memory_bytes(7e9).total == 112e9
    staged = [memory_bytes(7e9, shards=8, stage=stage).total / 1e9 for stage in (1, 2, 3)]
    assert staged == [38.5, 26.25, 14.0]
    assert memory_bytes(7e9, "adamw_8bit").total == 70e9
    published = {"llama-2-7b": 524_288, "llama-2-70b": 327_680, "llama-3.1-8b": 131_072,
                 "llama-3.1-405b": 516_096, "deepseek-v3": 70_272}
    assert {name: kv_bytes_per_token(name) for name in published} == published
    assert kv_bytes_per_token(config="llama-3.1-8b", dtype_bytes=1) == 65_536


def test_activations_follow_korthikanti():
    sbh, layers = 2048 * 12_288, 96
    fused = {"batch": 1, "tokens": 2048, "kernels": "fused"}
    plain = activation_bytes("gpt-3", **fused)
    assert plain.total - plain.parts["head"] == layers * 32 * sbh
    masks = activation_bytes("gpt-3", **fused, dropout=True)
    assert masks.total - plain.total == layers * 2 * sbh
    stock = activation_bytes("gpt-3", batch=1, tokens=2048)  # gelu_new keeps three copies more
    assert stock.total - plain.total == layers * 24 * sbh
    kept = activation_bytes("gpt-3", **fused, recompute=True)
    assert kept.parts["block inputs"] == layers * 2 * sbh
    assert kept.total - kept.parts["head"] == layers * 2 * sbh + 32 * sbh


@pytest.mark.parametrize("name", STACKED)
def test_activations_of_every_model_are_sane(name):
    spec = ModelSpec.from_config(name)
    one = activation_bytes(spec, batch=1, tokens=128)
    assert all(np.isfinite(part) and part >= 0 for part in one.parts.values())
    assert activation_bytes(spec, batch=3, tokens=128).total == pytest.approx(3 * one.total)
    unit = spec.sizes["width"] + spec.evaluate("heads*nope" if "latent" in spec.sizes
                                               else "heads*head")
    per_token = one.parts["attention"] / (128 * spec.sizes["layers"] * unit)
    assert 3 < per_token < 25  # bytes, in units of the residual stream and the heads


def test_training_bytes_add_up():
    full, lora = (training_bytes("llama-2-7b", batch=1, tokens=512, method=method)
                  for method in ("full", "lora"))
    assert full.parts["weights"] + full.parts["gradients"] + full.parts["optimizer"] == (
        16 * 6_738_415_616)
    learns = lora_params("llama-2-7b", 8, ("q", "v"))
    assert lora.parts["weights"] == 2 * (6_738_415_616 + learns)
    assert lora.parts["optimizer"] == 12 * learns


def test_time_vectors():
    assert roofline_s(1e12, 1e9, 1e12, 1e12) == 1.0
    assert roofline_s(flop=1e9, bytes=1e12, peak_flop_per_s=1e12, bytes_per_s=1e12) == 1.0
    assert roofline_s(np.array([1e12, 0]), 1e12, 1e12, 2e12).tolist() == [1.0, 0.5]
    assert expected_experts(256, 8, 64) == pytest.approx(222.4, abs=0.05)
    assert expected_experts(8, 8, 1) == 8 and expected_experts(8, 2, 1) == 2
    assert training_hours(3.6e15, peak_flop_per_s=1e12, mfu=0.5) == 2.0


def test_priors_never_stand_on_one_row():
    for row in catalogue_rows("accelerators"):
        for dtype in ("bf16", "fp16", "fp8", "fp32"):
            found = wall_mfu(row["name"], dtype)
            assert 0 < found.p10 < found.p50 < found.p90 < 1 and found.rows >= 8


def test_left_out_rows_are_left_out():
    assert wall_mfu("A100-80GB-SXM", leave_out="Meta") != wall_mfu("A100-80GB-SXM")


# ------------------------------------------------------------------ cost
PRETRAIN_KEYS = ["flop", "accelerator_hours", "days", "usd", "kwh", "co2_kg",
                 "step_tokens_per_s_per_accelerator", "memory_bytes_per_accelerator", "fits",
                 "min_accelerators", "why", "assumptions"]


def pretrain(**changes):
    order = {"params": 7e9, "tokens": 2e12, "accelerator": "A100-80GB-SXM", "count": 64}
    order |= changes
    if "model" in changes:
        order.pop("params")
    return cost.estimate_pretrain(**order)


def test_price_vectors():
    assert prices.energy_kwh(184_320, 400, 1.1) == pytest.approx(81_100.8)
    assert prices.energy_kwh(hours=1000, watt=500) == 500
    assert prices.co2_kg(81_100.8, 0.385) == pytest.approx(31_223.8, abs=0.1)
    assert prices.cottier_usd_per_hour(30_000) == pytest.approx(1.103, abs=5e-4)
    yearly = prices.own_usd_per_hour(8766, 5, discount_rate=0.08)
    assert yearly == pytest.approx(0.250456, abs=1e-6)
    assert prices.own_usd_per_hour(8766 * 4, 4) == 1.0
    assert prices.own_usd_per_hour(8766 * 4, 4, opex_share=1, utilisation=0.5) == 4.0
    assert prices.usd_per_mtok(8 * 2.5, 2500) == pytest.approx(2.2222, abs=5e-5)
    assert prices.usd_per_mtok(20, 2500, utilisation=0.5) == pytest.approx(4.4444, abs=5e-5)
    assert prices.rental_usd(np.array([1, 2]), 3).tolist() == [3, 6]


def test_pretrain_says_exactly_what_was_promised():
    told = pretrain()
    assert list(told) == PRETRAIN_KEYS
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    for name in ("accelerator_hours", "days", "usd", "kwh", "co2_kg",
                 "step_tokens_per_s_per_accelerator"):
        assert list(told[name]) == ["p10", "p50", "p90"]
        assert told[name]["p10"] < told[name]["p50"] < told[name]["p90"]
    for entry in told["assumptions"].values():
        assert set(entry) == {"value", "source"} and entry["source"]
    assert told["days"]["p50"] == pytest.approx(told["accelerator_hours"]["p50"] / 64 / 24)


def test_pretrain_flop_rules():
    assert pretrain()["flop"] == 6 * 7e9 * 2e12
    assert pretrain(active_params=2e9)["flop"] == 6 * 2e9 * 2e12
    assert pretrain(layers=32, width=4096, seq_len=2048)["flop"] == \
        (6 * 7e9 + 12 * 32 * 4096 * 2048) * 2e12
    exact = count_flop("llama-2-7b", 4096).total / 4096 * 2e12
    assert pretrain(model="llama-2-7b")["flop"] == pytest.approx(exact, rel=1e-12)
    short = count_flop("gpt2", 1024).total / 1024 * 1e10
    assert pretrain(model="gpt2", tokens=1e10)["flop"] == pytest.approx(short, rel=1e-12)
    half = count_flop("llama-2-7b", 2048).total / 2048 * 2e12
    assert pretrain(model="llama-2-7b", seq_len=2048)["flop"] == pytest.approx(half, rel=1e-12)


def test_given_values_have_no_spread():
    told = pretrain(mfu=0.4, usd_per_hour=2, watt=400, pue=1.1, grid_kg_per_kwh=0.385)
    hours = 6 * 7e9 * 2e12 / (312e12 * 0.4) / 3600
    one = {"accelerator_hours": hours, "usd": 2 * hours, "kwh": hours * 0.4 * 1.1,
           "co2_kg": hours * 0.4 * 1.1 * 0.385, "days": hours / 64 / 24,
           "step_tokens_per_s_per_accelerator": 312e12 * 0.4 / (6 * 7e9)}
    for name, value in one.items():
        assert told[name]["p10"] == told[name]["p50"] == told[name]["p90"]
        assert told[name]["p50"] == pytest.approx(value)
    given = {"mfu", "usd_per_hour", "watt", "pue", "grid_kg_per_kwh"}
    assert not given & set(told["assumptions"])
    card = pretrain(model="llama-2-7b", accelerator_hours=184_320, watt=400, pue=1.1,
                    grid_kg_per_kwh=0.385)
    assert set(card["accelerator_hours"].values()) == {184_320}
    assert card["co2_kg"]["p50"] == pytest.approx(31_222, rel=1e-3)  # Llama-2's card


def test_unknown_prices_are_null_and_said():
    told = pretrain(accelerator="TPUv7 (Ironwood)")
    assert told["usd"] is None and told["kwh"] is None and told["co2_kg"] is None
    assert "usd is null" in told["why"] and "watt" in told["why"]
    assert told["flop"] > 0 and told["accelerator_hours"]["p50"] > 0
    given = pretrain(accelerator="TPUv7 (Ironwood)", usd_per_hour=5, watt=900)
    assert given["usd"]["p50"] > 0 and given["co2_kg"]["p50"] > 0


@pytest.mark.parametrize("changes", [{}, {"model": "llama-3.1-405b"}, {"model": "gpt2"},
                                     {"params": 1e12}, {"accelerator": "T4"}])
def test_min_accelerators_is_the_least_that_fits(changes):
    least = pretrain(**changes)["min_accelerators"]
    assert pretrain(**changes | {"count": least})["fits"]
    if least > 1:
        smaller = pretrain(**changes | {"count": least - 1})
        assert not smaller["fits"] and str(f"{least:,}") in smaller["why"]
    memory = pretrain(**changes | {"count": least})["memory_bytes_per_accelerator"]
    chip = Accelerator.named(changes.get("accelerator", "A100-80GB-SXM"))
    assert 0.85 * chip.memory_bytes < chip.memory_bytes * (1 - cost.RESERVE)
    assert memory <= chip.memory_bytes * (1 - cost.RESERVE)


def test_nothing_fits_is_an_answer():
    told = pretrain(model="llama-3.1-405b", accelerator="T4")
    assert told["fits"] is False and told["min_accelerators"] is None
    assert told["usd"]["p50"] > 0 and "too large for any number" in told["why"]


def test_few_tokens_warn():
    with pytest.warns(UserWarning, match="below a hundredth"):
        told = pretrain(tokens=6e7)
    assert "warning" in told["why"] and told["flop"] == 6 * 7e9 * 6e7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pretrain(tokens=8e7)


@pytest.mark.parametrize(("changes", "told"), [
    ({"mfu": 45}, "did you mean 0.45?"), ({"mfu": 0}, "mfu=0"), ({"mfu": math.nan}, "mfu=nan"),
    ({"mfu": 1e9}, "mfu="), ({"mfu": "0.4"}, "mfu='0.4'"), ({"tokens": 0}, "tokens=0"),
    ({"tokens": -1}, "tokens=-1"), ({"tokens": math.inf}, "tokens=inf"),
    ({"tokens": 2e21}, "tokens=2e+21"), ({"count": 0}, "count=0"),
    ({"count": 1.5}, "count=1.5"),
    ({"count": math.nan}, "count=nan"), ({"params": 7e18}, "params=7e+18"),
    ({"params": None}, "give exactly one"), ({"active_params": 8e9}, "active_params"),
    ({"layers": 32}, "width=None is missing"), ({"layers": 0, "width": 8}, "layers=0"),
    ({"accelerator": "H100"}, "near: H100"), ({"accelerator": ""}, "accelerator=''"),
    ({"accelerator_hours": 0}, "accelerator_hours=0"), ({"usd_per_hour": -2}, "per_hour=-2"),
    ({"watt": 0}, "watt=0"), ({"pue": 0.9}, "pue=0.9"), ({"pue": 110}, "pue=110"),
    ({"grid_kg_per_kwh": 385}, "did you mean 0.385"), ({"dtype": "fp8"}, "dtype='fp8'"),
    ({"dtype": "bf61"}, "dtype='bf61'"), ({"model": "gpt9"}, "model='gpt9'"),
    ({"model": "gpt2", "layers": 3}, "layers=3"),
    ({"model": "gpt2", "seq_len": 2048}, "seq_len=2048")])
def test_pretrain_refuses_nonsense(changes, told):
    with pytest.raises(InputError) as problem:
        pretrain(**changes)
    assert told in str(problem.value)


PLAN = {"examples": 1000, "seq_len": 128, "batch_size": 16, "epochs": 2,
        "accelerator": "A100-80GB-SXM"}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_plan_counts_every_step(method):
    told = cost.estimate_finetune_plan(model="bert-base-uncased", method=method, **PLAN)
    assert list(told)[:6] == ["predicted_s", "predicted_cpu_s", "predicted_flop",
                              "predicted_peak_bytes", "fits", "why"]
    heads = {"modules_to_save": ("pooler", "classifier")}
    whole, rest = (step_flop("bert-base-uncased", batch=rows, tokens=128, method=method,
                             **heads).total for rows in (16, 8))
    assert told["predicted_flop"] == 2 * (62 * whole + rest)
    assert told["predicted_cpu_s"] is None and "predicted_cpu_s is null" in told["why"]
    share = step_mfu("A100-80GB-SXM", params=109_482_240, layers=12, width=768, seq_len=128,
                     count=1).p50
    assert told["predicted_s"] == pytest.approx(
        told["predicted_flop"] / (312e12 * share), rel=1e-4)  # the head is counted too
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_plan_fits_or_says_not():
    big = PLAN | {"model": "llama-2-7b", "seq_len": 1024, "batch_size": 1}
    full, lora = (cost.estimate_finetune_plan(method=method, **big)
                  for method in ("full", "lora"))
    assert not full["fits"] and full["predicted_peak_bytes"] > 16 * 6.7e9
    assert lora["fits"] and 13.5e9 < lora["predicted_peak_bytes"] < 30e9
    shared = cost.estimate_finetune_plan(method="full", count=8, **big)
    assert shared["fits"] and shared["predicted_s"] == pytest.approx(
        full["predicted_s"] / 8, rel=0.25)


@pytest.mark.parametrize("changes", [
    {"examples": 0}, {"seq_len": 0}, {"seq_len": 513}, {"batch_size": 1.5}, {"epochs": -1},
    {"count": 0}, {"method": "qlora"}, {"dtype": "fp9"}, {"accelerator": "A1000"}, {"r": 0},
    {"examples": math.nan}, {"seq_len": "128"}])
def test_plan_refuses_nonsense(changes):
    order = PLAN | {"model": "bert-base-uncased", "method": "lora"} | changes
    with pytest.raises(InputError):
        cost.estimate_finetune_plan(**order)


# ------------------------------------------------------------------ light
LIGHT = """
import sys, time
import numpy
before = set(sys.modules)
start = time.perf_counter()
{work}
seconds = time.perf_counter() - start
names = "torch", "transformers", "pandas", "scipy", "matplotlib", "tokenizers"
heavy = set(names) & set(sys.modules)
assert not heavy, heavy
print(seconds)
"""


@pytest.mark.parametrize("work", [
    "from flm_nb.count.params import describe_params; describe_params('llama-2-7b')",
    "from flm_nb.invest.cost import estimate_pretrain; estimate_pretrain(model='llama-2-7b', "
    "tokens=2e12, accelerator='A100-80GB-SXM', count=64)",
    "from flm_nb.invest.cost import estimate_finetune_plan as plan; plan(model='gpt2', "
    "method='lora', examples=100, seq_len=64, accelerator='T4')"])
def test_counting_is_light(work):
    """A quarter of a second beyond numpy; the fastest of three, for the machine may be busy."""
    seconds = [float(subprocess.run([sys.executable, "-c", LIGHT.format(work=work)], text=True,
                                    capture_output=True, check=True).stdout) for _ in range(3)]
    assert min(seconds) < 0.25
