"""Every family of families.json against transformers: weights, FLOP, generation, tuning."""
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from flm_nb.core import InputError
from flm_nb.count.flop import count_flop, step_flop
from flm_nb.count.generation import generation_flop
from flm_nb.count.params import active_params, count_params, list_pieces, lora_params
from flm_nb.specs import ModelSpec, model_families

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FAMILIES = [name for name, layout in model_families().items()
            if "walk" not in layout and layout["kind"] != "image"]
SIZES = {"width": 48, "layers": 3, "heads": 4, "mlp": 70, "vocab": 99, "positions": 64, "kv": 2,
         "head": 10, "experts": 6, "active": 2, "expert": 22, "embed": 20, "types": 3,
         "decoder_layers": 2, "decoder_heads": 6, "decoder_mlp": 60, "window": 5, "latent": 8,
         "qrank": 9, "rope": 4, "nope": 6, "value": 5, "shared": 2, "pooled": 48, "buckets": 9,
         "output": 31, "tasks": 4, "decoder_vocab": 77}
GROUPS = {"n_group": 2, "topk_group": 1}
SPECIAL = {  # what a family needs to be built, or to run
    "gptj": {"rotary_dim": 4}, "codegen": {"rotary_dim": 4}, "stablelm": {"hidden_size": 64},
    "helium": {"head_dim": 12}, "bitnet": {"head_dim": 12}, "deepseek_v3": GROUPS,
    "mpnet": {"relative_attention_num_buckets": 32}, "glm4_moe_lite": GROUPS,
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]]},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
             "ffn_config": {"ffn_hidden_size": 70, "moe_num_experts": 6, "moe_top_k": 2}},
    "llama4_text": {"attention_chunk_size": 4}, "qwen2_moe": {
        "shared_expert_intermediate_size": 17}}
RELATIVE = {"relative_attention": True, "position_biased_input": False}
BOTH = {"pos_att_type": ["p2c", "c2p"]}
MORE = {  # fields that are no switches
    "albert": [{"num_hidden_groups": 3}, {"inner_group_num": 2}],
    "deberta": [RELATIVE | BOTH | {"max_relative_positions": 9}, RELATIVE | {
        "max_relative_positions": 3, "pos_att_type": ["c2p"], "embedding_size": 20}],
    "deberta-v2": [
        RELATIVE | BOTH | {"position_buckets": 7, "norm_rel_ebd": "layer_norm",
                           "share_att_key": True, "conv_kernel_size": 3},
        RELATIVE | {"max_relative_positions": 11, "pos_att_type": ["p2c"],
                    "embedding_size": 20, "type_vocab_size": 2},
        RELATIVE | BOTH | {"position_buckets": 4, "conv_kernel_size": 3}],
    "falcon": [{"new_decoder_architecture": True}, {
        "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1, "bias": True},
        {"parallel_attn": False, "multi_query": False, "bias": True}],
    "marian": [{"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False},
               {"decoder_vocab_size": None}],
    "llama4_text": [{"interleave_moe_layer_step": 2}, {"moe_layers": [0]}],
    "glm4_moe": [{"first_k_dense_replace": 0}], "minimax": [
        {"layer_types": ["full_attention", "linear_attention", "linear_attention"]}],
    "glm4_moe_lite": [{"mlp_layer_types": ["dense", "dense", "sparse"], "q_lora_rank": None}],
    "exaone_moe": [{"mlp_layer_types": ["sparse", "dense", "sparse"]}],
    "ernie4_5_moe": [{"moe_layer_start_index": 0, "moe_layer_interval": 2},
                     {"moe_layer_end_index": 1}],
    "granitemoeshared": [{"shared_intermediate_size": 33}, {"shared_intermediate_size": 0}],
    "qwen2_moe": [{"decoder_sparse_step": 2}], "qwen3_moe": [{"mlp_only_layers": [1]}]}


def small(family):
    """A small config that gives every size of a family another number."""
    layout = model_families()[family]
    config = {key: SIZES[name] for name, key in layout["sizes"].items()
              if name in SIZES and not {"|", "."} & set(key)}
    if family.startswith("deberta"):
        config.pop("embedding_size")
    if "latent" in layout["sizes"]:
        config["num_key_value_heads"] = 4
    return config | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | SPECIAL.get(
        family, {})


def variants(family):
    """The small config, with each switch flipped, with all of them, and with other fields."""
    layout, base = model_families()[family], small(family)
    flips = {name: not layout["defaults"][name] for name in layout["flags"]
             if name not in ("add_cross_attention", "enable_bias")
             and name not in (layout.get("fixed") or {})}
    return [base, *({**base, name: value} for name, value in flips.items()), base | flips,
            *(base | more for more in MORE.get(family, []))]


def saved(family, head, changes=None):
    return {"model_type": family, "architectures": [head]} | (changes or small(family))


def module(config, device="meta"):
    made = transformers.AutoConfig.for_model(**config)
    made._experts_implementation = "eager"
    with torch.device(device):
        kind = getattr(transformers, config["architectures"][0])
        return kind._from_config(made, attn_implementation="eager").eval()


def main_head(family):
    """The language-model head of a family."""
    layout = model_families()[family]
    ends = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration", "MTModel")
    return next((head for head in layout["heads"] if head.endswith(ends)
                 and head not in layout.get("decoder_only", [])), layout["base"])


def weights(config):
    return sum(weight.numel() for weight in module(config).parameters())


# ------------------------------------------------------------------ parameters
def test_there_are_enough_families():
    assert len(FAMILIES) >= 90


@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_equals_the_module(family):
    for head in model_families()[family]["heads"]:
        config = saved(family, head)
        assert count_params(config).total == weights(config), head


@pytest.mark.parametrize("family", FAMILIES)
def test_every_switch_equals_the_module(family):
    for changes in variants(family)[1:]:
        config = saved(family, main_head(family), changes)
        assert count_params(config).total == weights(config), changes


@pytest.mark.parametrize("family", FAMILIES)
def test_other_fields_do_not_change_the_count(family):
    """Whole numbers and switches that the table does not name: they add no weight."""
    layout, config = model_families()[family], saved(family, main_head(family))
    kind = type(transformers.AutoConfig.for_model(family))
    common = {entry.name for entry in dataclasses.fields(transformers.PreTrainedConfig)}
    known = set(layout["defaults"]) | set(layout["aliases"]) | common | set(config)
    changes = {entry.name: entry.default + 1 if type(entry.default) is int
               else not entry.default for entry in dataclasses.fields(kind)
               if entry.name not in known and isinstance(entry.default, int)
               and not entry.name.endswith("token_id")}
    try:
        built = weights(config | changes)
    except Exception:  # transformers refuses the mixture: one at a time
        built = None
    if built is not None:
        assert count_params(config | changes).total == built, changes
        return
    for key, value in changes.items():
        try:
            built = weights(config | {key: value})
        except Exception:  # a value that this family does not build
            continue
        assert count_params(config | {key: value}).total == built, key


def test_saved_by_transformers_reads_the_same():
    for family in FAMILIES:
        config = saved(family, main_head(family))
        made = transformers.AutoConfig.for_model(**config).to_dict()
        again = json.loads(json.dumps(made, default=str)) | {
            "architectures": config["architectures"]}
        assert count_params(again).total == count_params(config).total, family


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family):
    kind = type(transformers.AutoConfig.for_model(family))
    defaults = {entry.name: entry.default for entry in dataclasses.fields(kind)}
    for key, ours in model_families()[family]["defaults"].items():
        filled = ("attention_types", "num_local_experts", "mlp_only_layers")  # from null
        if key in defaults and key not in filled and not isinstance(
                defaults[key], dataclasses._MISSING_TYPE):
            assert ours == defaults[key], key


PUBLISHED = {  # name -> parameters of the released weights, tied tables once
    "llama-33b": 32_528_943_616, "llama-65b": 65_285_660_672, "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264, "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-coder-480b-a35b": 480_154_875_392, "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688, "qwen2.5-14b": 14_770_033_664, "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648, "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672, "gemma-2b": 2_506_172_416, "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888, "gemma-2-9b": 9_241_705_984, "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952, "falcon-7b": 6_921_720_704, "falcon-40b": 41_303_293_952,
    "falcon-180b": 178_557_088_768, "mpt-7b": 6_649_286_656, "phi-1.5": 1_418_270_720,
    "phi-2": 2_779_683_840, "phi-3-mini": 3_821_079_552, "phi-4": 14_659_507_200,
    "olmo-2-7b": 7_298_617_344, "olmo-2-13b": 13_716_198_400, "olmoe-1b-7b": 6_919_161_856,
    "gpt-j-6b": 6_050_882_784, "gpt-neox-20b": 20_554_567_680, "gpt-neo-125m": 125_198_592,
    "gpt-neo-1.3b": 1_315_575_808, "gpt-neo-2.7b": 2_651_307_520,
    "starcoderbase": 15_517_456_384, "mixtral-8x22b": 140_620_634_112, "dbrx": 131_596_523_520,
    "pythia-410m": 405_334_016, "pythia-1.4b": 1_414_647_808, "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016, "opt-1.3b": 1_315_758_080, "opt-6.7b": 6_658_473_984,
    "albert-base-v2": 11_683_584, "deberta-v3-base": 183_831_552,
    "deberta-v3-large": 434_012_160, "modernbert-base": 149_655_232,
    "modernbert-large": 395_881_664, "bart-base": 139_420_416, "bart-large": 406_291_456,
    "mbart-large-50": 610_879_488, "t5-large": 737_668_096, "t5-3b": 2_851_598_336}
ROUNDED = {  # name -> total as rounded in print, tolerance
    "gemma-3-4b": (3.884e+09, 0.002), "gemma-3-12b": (1.1771e+10, 0.002),
    "gemma-3-27b": (2.7016e+10, 0.002), "mpt-30b": (2.9958e+10, 0.002),
    "kimi-k2": (1.026e+12, 0.002), "glm-4.5": (3.55e+11, 0.01),
    "glm-4.5-air": (1.06e+11, 0.01), "llama-4-scout": (1.0777e+11, 0.002),
    "opt-175b": (1.75e+11, 0.005), "nemotron-4-340b": (3.41e+11, 0.005),
    "minimax-m2": (2.287e+11, 0.005)}


@pytest.mark.parametrize(("name", "total"), PUBLISHED.items())
def test_published_totals(name, total):
    assert count_params(name).total == total


def test_rounded_totals():
    for name, (total, share) in ROUNDED.items():
        assert count_params(name).total == pytest.approx(total, rel=share), name
    for name, active, share in (("kimi-k2", 32e9, 0.03), ("glm-4.5", 32e9, 0.06),
                                ("gpt-oss-120b", 5.1e9, 0.15), ("minimax-m2", 10e9, 0.11)):
        assert active_params(name) == pytest.approx(active, rel=share), name


TORCHLESS = """
import json, sys
for name in ("torch", "transformers", "tensorflow", "jax"):
    sys.modules[name] = None
from flm_nb.count.params import count_params
print(json.dumps([count_params(config).total for config in json.load(sys.stdin)]))
"""


def test_torch_is_not_needed():
    configs = [saved(family, main_head(family)) for family in FAMILIES]
    told = subprocess.run([sys.executable, "-c", TORCHLESS], input=json.dumps(configs),
                          text=True, capture_output=True, check=True)
    assert json.loads(told.stdout) == [count_params(config).total for config in configs]


@pytest.mark.parametrize(("config", "told"), [
    ({"model_type": "gemma3n", "text_config": {"model_type": "gemma3_text"}},
     "its text_config alone, of type gemma3_text"),
    ({"model_type": "falcon", "num_kv_heads": 3, "new_decoder_architecture": True}, "heads=3"),
    ({"model_type": "llama4_text", "layer_types": ["full_attention"]}, "each of the 48 layers"),
    ({"model_type": "mvp", "use_prompt": True}, "use_prompt=True"),
    ({"model_type": "dbrx", "tie_word_embeddings": True}, "tie_word_embeddings=True"),
    ({"model_type": "moderbert"}, "near: modernbert"),
    ({"model_type": "exaone_moe", "mlp_layer_types": ["moist"] * 32}, "one of dense, sparse")])
def test_what_is_not_counted_is_refused(config, told):
    with pytest.raises(InputError) as problem:
        count_params(config)
    assert told in str(problem.value)


# ------------------------------------------------------------------ FLOP
def counted(model, inputs, backward=True):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        outputs = model(**inputs)
        if backward:
            wanted = [t for t in outputs.to_tuple() if torch.is_tensor(t) and t.requires_grad]
            sum(t.sum() for t in wanted).backward()
    return counter.get_total_flops()


def fed(family, batch=2, tokens=7, after=4):
    """Inputs for a family, and the keywords that say the same to `count_flop`."""
    inputs = {"input_ids": torch.full((batch, tokens), 3)}
    if model_families()[family]["kind"] != "encoder-decoder":
        return inputs, {}
    return inputs | {"decoder_input_ids": torch.full((batch, after), 3)}, {"decoder_len": after}


RUNNABLE = [family for family in FAMILIES if not model_families()[family].get("no_flop")
            and family != "llama4_text"]


@pytest.mark.parametrize("family", RUNNABLE)
def test_flop_equal_torch(family):
    told = [small(family), *MORE.get(family, [])] if family in ("deberta", "deberta-v2",
                                                               "albert") else [{}]
    for changes in told:
        config = saved(family, main_head(family), small(family) | changes) | {
            "use_cache": False}
        inputs, more = fed(family)
        model = module(config, "cpu")
        ours = count_flop(config, 7, batch=2, **more)
        assert ours.total == counted(model, inputs), changes
        assert ours.total == sum(ours.parts.values())
        forward = count_flop(config, 7, batch=2, mode="forward", **more).total
        assert forward == counted(module(config, "cpu"), inputs, backward=False)


def test_llama4_counts_the_experts_that_are_used():
    """transformers sends every token through all experts; the model needs one of them."""
    config = saved("llama4_text", "Llama4ForCausalLM") | {"use_cache": False}
    model = module(config, "cpu")
    unused = 3 * (6 - 2) * 2 * (3 * 48 * 22) * 14
    ours = count_flop(config, 7, batch=2, mode="forward").total
    assert ours + unused == counted(model, fed("llama")[0], backward=False)


@pytest.mark.parametrize("family", ["minimax", "longformer", "jetmoe", "diffllama"])
def test_families_without_a_flop_count_say_so(family):
    with pytest.raises(InputError, match="has no FLOP count here"):
        count_flop(saved(family, main_head(family)), 7)


def pairs(length, window=None, chunk=None):
    """Query-key pairs by enumeration."""
    return sum(min(i + 1, window or length) if not chunk else i % chunk + 1
               for i in range(length))


def test_causal_knows_windows():
    config = saved("gemma3_text", "Gemma3ForCausalLM") | {"num_hidden_layers": 6,
                                                         "sliding_window": 64}
    full, causal = (count_flop(config, 1000, mode="forward", causal=causal)
                    .parts["attention scores"] for causal in (False, True))
    each = 2 * 2 * 4 * 10
    assert full == 6 * each * 1000**2
    exact = each * (5 * pairs(1000, 64) + pairs(1000))
    assert causal == pytest.approx(exact, rel=1e-3)
    assert count_flop("mistral-7b", 1024, causal=True).parts["attention scores"] * 2 == (
        count_flop("mistral-7b", 1024).parts["attention scores"])
    chunked = saved("llama4_text", "Llama4ForCausalLM") | {"num_hidden_layers": 4,
                                                          "attention_chunk_size": 100}
    half = count_flop(chunked, 1000, mode="forward", causal=True).parts["attention scores"]
    assert half == each * (3 * 10 * 100**2 / 2 + 1000**2 / 2)


def test_causal_halves_only_the_decoder():
    t5 = saved("t5", "T5ForConditionalGeneration")
    full, half = (count_flop(t5, 12, mode="forward", causal=causal, decoder_len=8)
                  .parts["attention scores"] for causal in (False, True))
    assert full - half == 2 * 2 * 2 * (4 * 10) * 8 * 8 / 2  # two layers, two products
    with pytest.raises(InputError, match="bidirectional"):
        count_flop(saved("gemma3_text", "Gemma3TextModel") | {
            "use_bidirectional_attention": True}, 8, causal=True)


def test_recomputation_is_one_more_forward_pass_of_the_blocks():
    plain = count_flop("llama-2-7b", 4096)
    forward = count_flop("llama-2-7b", 4096, mode="forward")
    full = count_flop("llama-2-7b", 4096, recompute="full")
    selective = count_flop("llama-2-7b", 4096, recompute="selective")
    assert full.total - plain.total == forward.total - forward.parts["head"]
    assert selective.total - plain.total == forward.parts["attention scores"]
    assert 1.3 < full.total / plain.total < 4 / 3
    for wrong in ({"recompute": "some"}, {"recompute": "full", "mode": "forward"}):
        with pytest.raises(InputError, match="recompute="):
            count_flop("llama-2-7b", 4096, **wrong)


# ------------------------------------------------------------------ generation
@pytest.mark.parametrize(("family", "prompt", "new"), [
    ("llama", 9, 5), ("llama", 1, 1), ("mistral", 3, 8), ("mistral", 9, 6), ("gemma2", 3, 8),
    ("gpt_oss", 9, 5), ("deepseek_v3", 9, 5), ("mixtral", 9, 5), ("falcon", 4, 3),
    ("gpt_bigcode", 6, 3), ("t5", 9, 5), ("bart", 9, 5)])
def test_generation_equals_torch(family, prompt, new):
    from torch.utils.flop_counter import FlopCounterMode

    config = saved(family, main_head(family))
    model, ids = module(config, "cpu"), torch.full((2, prompt), 3)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if model.config.is_encoder_decoder:
            read, past, steps = model.get_encoder()(input_ids=ids), None, new
            given = {"encoder_outputs": read}
        else:
            past = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
            given, steps = {}, new - 1
        name = "decoder_input_ids" if given else "input_ids"
        for _ in range(steps):
            past = model(**given, **{name: ids[:, :1]}, past_key_values=past,
                         use_cache=True).past_key_values
    assert generation_flop(config, prompt, new, 2).total == counter.get_total_flops()


def test_generation_takes_arrays_and_refuses_nonsense():
    together = generation_flop("mistral-7b", np.array([10, 6000]), np.array([5, 900])).total
    single = [generation_flop("mistral-7b", p, n).total for p, n in ((10, 5), (6000, 900))]
    assert together.tolist() == single
    for name, prompt, new in (("bert-base-uncased", 9, 9), ("gpt2", 1000, 100),
                              ("gpt2", 0, 1), ("vit-b16", 9, 9)):
        with pytest.raises(InputError):
            generation_flop(name, prompt, new)


# ------------------------------------------------------------------ tuning
LORA = [("t5", "T5ForConditionalGeneration", ["q", "v"]),
        ("t5", "T5ForConditionalGeneration", ["wo"]),
        ("t5", "T5ForConditionalGeneration", ["k", "wi"]),
        ("bart", "BartForConditionalGeneration", ["q_proj", "v_proj"]),
        ("bart", "BartForConditionalGeneration", ["fc1", "k_proj"]),
        ("marian", "MarianMTModel", ["v_proj"]),
        ("deepseek_v3", "DeepseekV3ForCausalLM", ["q_a_proj", "kv_b_proj"]),
        ("deepseek_v3", "DeepseekV3ForCausalLM", ["q_b_proj"]),
        ("deepseek_v3", "DeepseekV3ForCausalLM", ["kv_a_proj_with_mqa", "o_proj"]),
        ("albert", "AlbertForSequenceClassification", ["query", "value"]),
        ("deberta-v2", "DebertaV2ForSequenceClassification", ["query_proj", "value_proj"]),
        ("modernbert", "ModernBertForSequenceClassification", ["Wqkv"]),
        ("falcon", "FalconForCausalLM", ["query_key_value"]),
        ("gptj", "GPTJForCausalLM", ["q_proj", "v_proj"]),
        ("cohere", "CohereForCausalLM", ["k_proj", "down_proj"]),
        ("olmo2", "Olmo2ForCausalLM", ["o_proj"]),
        ("gpt_oss", "GptOssForCausalLM", ["q_proj", "v_proj"]),
        ("qwen2_moe", "Qwen2MoeForCausalLM", ["q_proj", "v_proj"])]


@pytest.mark.parametrize(("family", "head", "targets"), LORA)
def test_lora_equals_a_peft_model(family, head, targets):
    peft = pytest.importorskip("peft")
    changes = small(family) | {"use_cache": False}
    changes |= MORE["deberta-v2"][2] if family == "deberta-v2" else {}
    changes |= {"hidden_size": 48, "intermediate_size": 70} if family == "olmo2" else {}
    config = saved(family, head, changes)
    heads = ["pooler", "classifier"] if "Sequence" in head else []
    model = peft.get_peft_model(module(config, "cpu"), peft.LoraConfig(
        r=3, target_modules=targets)).eval()
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name or bool(set(heads) & set(name.split("."))))
    inputs, more = fed(family)
    after = {"decoder_tokens": more["decoder_len"]} if more else {}
    ours = step_flop(config, batch=2, tokens=7, method="lora", r=3, targets=targets,
                     modules_to_save=heads, **after)
    assert ours.total == counted(model, inputs)
    trained = sum(weight.numel() for name, weight in model.named_parameters()
                  if "lora_" in name)
    assert lora_params(config, 3, targets) == trained


FROZEN = ["llama", "bert", "gpt2", "olmo2", "mixtral", "t5", "gptj", "deepseek_v3"]


@pytest.mark.parametrize("family", FROZEN)
@pytest.mark.parametrize("frozen", [1, 3])
def test_frozen_layers_equal_torch(family, frozen):
    head = "BertForTokenClassification" if family == "bert" else main_head(family)
    config = saved(family, head) | {"use_cache": False}
    model = module(config, "cpu")
    base = model.base_model
    if model.config.tie_word_embeddings and family != "bert":  # the head learns, words do not
        model.set_output_embeddings(torch.nn.Linear(48, 99, bias=False))
    model.get_input_embeddings().requires_grad_(False)
    blocks = next(part for part in base.modules() if isinstance(part, torch.nn.ModuleList)
                  and len(part) == 3)
    below = [part for name, part in base.named_modules()
             if name.split(".")[-1] in ("wpe", "embeddings", "relative_attention_bias")]
    for part in [*below, *blocks[:frozen]]:
        part.requires_grad_(False)
    inputs, more = fed(family)
    after = {"decoder_tokens": more["decoder_len"]} if more else {}
    ours = step_flop(config, batch=2, tokens=7, frozen_layers=frozen, **after)
    assert ours.total == counted(model, inputs)


class Bottleneck(torch.nn.Module):
    """A matrix followed by two small ones, around which there is a detour."""

    def __init__(self, inner, width, r):
        super().__init__()
        self.inner = inner
        self.down, self.up = torch.nn.Linear(width, r), torch.nn.Linear(r, width)

    def forward(self, rows):
        rows = self.inner(rows)
        return rows + self.up(self.down(rows))


@pytest.mark.parametrize(("family", "head", "o", "down"), [
    ("llama", "LlamaForCausalLM", "self_attn.o_proj", "mlp.down_proj"),
    ("gptj", "GPTJForCausalLM", "attn.out_proj", "mlp.fc_out"),
    ("bert", "BertForTokenClassification", "attention.output.dense", "output.dense")])
def test_bottleneck_adapters_equal_torch(family, head, o, down):
    config = saved(family, head) | {"use_cache": False}
    model = module(config, "cpu").requires_grad_(False)
    for name, part in list(model.named_modules()):
        if name.endswith((f".{o}", f".{down}")) and isinstance(part, torch.nn.Linear):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Bottleneck(part, 48, 5))
    ours = step_flop(config, batch=2, tokens=7, method="adapter", r=5, modules_to_save=())
    assert ours.total == counted(model, fed(family)[0])


@pytest.mark.parametrize("family", ["gpt2", "bert", "qwen2", "opt", "t5", "gpt_neox", "bart"])
def test_bitfit_equals_torch(family):
    head = "BertForTokenClassification" if family == "bert" else main_head(family)
    config = saved(family, head) | {"use_cache": False}
    if family == "t5":
        with pytest.raises(InputError, match="trains biases"):
            step_flop(config, batch=2, tokens=7, method="bitfit")
        return
    model = module(config, "cpu")
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.endswith("bias"))
    inputs, more = fed(family)
    after = {"decoder_tokens": more["decoder_len"]} if more else {}
    ours = step_flop(config, batch=2, tokens=7, method="bitfit", modules_to_save=(), **after)
    assert ours.total == counted(model, inputs)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "bert"])
def test_soft_prompts_equal_torch(family):
    head = "BertForTokenClassification" if family == "bert" else main_head(family)
    config = saved(family, head) | {"use_cache": False}
    model = module(config, "cpu").requires_grad_(False)
    words = model.get_input_embeddings()(fed(family)[0]["input_ids"])
    soft = torch.zeros(2, 4, 48, requires_grad=True)
    ours = step_flop(config, batch=2, tokens=7, method="prompt", extra_tokens=4,
                     modules_to_save=())
    assert ours.total == counted(model, {"inputs_embeds": torch.cat([soft, words], dim=1)})


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_prefixes_equal_torch(family):
    config = saved(family, main_head(family))
    model = module(config, "cpu").requires_grad_(False)
    kv, head = (4, 12) if family == "gpt2" else (2, 10)
    cache = transformers.DynamicCache()
    for layer in range(3):
        cache.update(*(torch.zeros(2, kv, 4, head, requires_grad=True) for _ in "kv"), layer)
    ours = step_flop(config, batch=2, tokens=7, method="prefix", extra_tokens=4,
                     modules_to_save=())
    inputs = fed(family)[0] | {"past_key_values": cache}
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(**inputs).logits.sum().backward()
    assert ours.total == counter.get_total_flops()


@pytest.mark.parametrize("options", [
    {"method": "prompting"}, {"method": "prompt", "extra_tokens": 0}, {"frozen_layers": -1},
    {"frozen_layers": 99}, {"frozen_layers": 1, "method": "lora"}, {"decoder_tokens": 4},
    {"method": "adapter", "r": 0}, {"method": "bitfit"}])
def test_tuning_refuses_nonsense(options):
    with pytest.raises(InputError):
        step_flop(saved("llama", "LlamaForCausalLM"), batch=1, tokens=7, **options)
    with pytest.raises(InputError, match="not counted for a t5"):
        step_flop("t5-small", batch=1, tokens=7, method="prefix")


def test_shared_layers_are_used_more_often_than_stored():
    albert = ModelSpec.from_config(saved("albert", "AlbertModel"))
    ffn = next(piece for piece in list_pieces(albert) if piece.path == "ffn")
    assert (ffn.copies, ffn.used) == (1, 3)
    assert active_params(albert) == count_params(albert).total
