"""Pictures and sounds are counted exactly: against modules and torch's counter."""
import json
import subprocess
import sys

import numpy as np
import pytest

from flm_nb.core import InputError
from flm_nb.count.flop import count_flop, step_flop
from flm_nb.count.generation import generation_flop
from flm_nb.count.memory import kv_bytes_per_token
from flm_nb.count.params import count_params, describe_params, lora_params
from flm_nb.specs import ModelSpec, model_catalogue, model_families
from flm_nb.walk import length_unit, read_walk_sizes, walk_model, walk_table

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WALKS = walk_table()["families"]
VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
       "intermediate_size": 40, "patch_size": 8}
RES = {"embedding_size": 8, "hidden_sizes": [16, 20, 28], "depths": [2, 1, 3]}
CONV = {"hidden_sizes": [8, 12, 20, 24], "depths": [2, 1, 1, 2]}
SWIN = {"embed_dim": 12, "depths": [2, 1, 2], "num_heads": [2, 3, 4], "window_size": 4,
        "image_size": 64}
SEG = {"num_encoder_blocks": 2, "depths": [2, 1], "sr_ratios": [4, 1], "hidden_sizes": [12, 20],
       "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [2, 4],
       "mlp_ratios": [2, 4], "decoder_hidden_size": 14}
WHISPER = {"d_model": 24, "vocab_size": 99, "num_mel_bins": 7, "encoder_layers": 2,
           "encoder_attention_heads": 4, "encoder_ffn_dim": 30, "decoder_layers": 3,
           "decoder_attention_heads": 2, "decoder_ffn_dim": 18, "max_source_positions": 10,
           "max_target_positions": 12, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
           "classifier_proj_size": 9, "decoder_start_token_id": 1, "suppress_tokens": None,
           "begin_suppress_tokens": None}
TEXT = {"vocab_size": 99, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 30, "max_position_embeddings": 13, "pad_token_id": 1,
        "bos_token_id": 0, "eos_token_id": 2}
WAV = {"vocab_size": 33, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
       "intermediate_size": 40, "conv_dim": [8, 10, 12], "conv_stride": [5, 2, 3],
       "conv_kernel": [10, 3, 2], "num_conv_pos_embeddings": 8,
       "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 3,
       "classifier_proj_size": 11}
ODD = {  # family -> configs that lean on every field that it saves
    "deit": [VIT, VIT | {"qkv_bias": False, "num_channels": 1, "num_labels": 10},
             VIT | {"pooler_output_size": 11, "image_size": [35, 35]}],
    "dinov2": [VIT, VIT | {"mlp_ratio": 3, "use_mask_token": False, "qkv_bias": False},
               VIT | {"use_swiglu_ffn": True, "num_labels": 7}],
    "dinov2_with_registers": [VIT, VIT | {"num_register_tokens": 3, "use_swiglu_ffn": True}],
    "beit": [VIT, VIT | {"use_relative_position_bias": True, "use_mask_token": True},
             VIT | {"use_shared_relative_position_bias": True, "use_mean_pooling": False},
             VIT | {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0,
                    "vocab_size": 77, "num_labels": 5}],
    "vit_mae": [VIT | {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2,
                       "decoder_num_hidden_layers": 3, "decoder_intermediate_size": 20, **more}
                for more in ({}, {"mask_ratio": 0.6, "qkv_bias": False, "num_channels": 1})],
    "convnext": [CONV, CONV | {"layer_scale_init_value": 0.0, "num_channels": 1},
                 CONV | {"hidden_sizes": [8, 8, 12], "depths": [1, 2, 2], "num_stages": 3,
                         "patch_size": 2, "num_labels": 9}],
    "convnextv2": [CONV, CONV | {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 3],
                                 "num_labels": 3}],
    "resnet": [RES, RES | {"layer_type": "basic"}, RES | {"downsample_in_bottleneck": True},
               RES | {"downsample_in_first_stage": True, "num_channels": 1, "num_labels": 11},
               RES | {"layer_type": "basic", "hidden_sizes": [8, 8, 16]}],
    "swin": [SWIN, SWIN | {"qkv_bias": False, "use_absolute_embeddings": True,
                           "num_channels": 1, "encoder_stride": 8},
             SWIN | {"mlp_ratio": 2.5, "window_size": 5, "num_labels": 6,
                     "image_size": [80, 80]}],
    "whisper": [WHISPER, WHISPER | {"use_weighted_layer_sum": True, "num_labels": 4},
                WHISPER | {"tie_word_embeddings": False, "decoder_layers": 1}],
    "clip": [{"text_config": TEXT, "vision_config": VIT, "projection_dim": 9},
             {"text_config": TEXT | {"hidden_size": 16},
              "vision_config": VIT | {"num_channels": 1}, "num_labels": 3}],
    "clip_text_model": [TEXT, TEXT | {"projection_dim": 9}],
    "clip_vision_model": [VIT, VIT | {"projection_dim": 9, "num_channels": 1}],
    "siglip": [{"text_config": TEXT | {"projection_size": 24}, "vision_config": VIT},
               {"text_config": TEXT | {"hidden_size": 24}, "vision_config": VIT,
                "num_labels": 4}],
    "siglip_text_model": [TEXT | {"projection_size": 9}, TEXT | {"projection_size": None}],
    "siglip_vision_model": [VIT, VIT | {"vision_use_head": False, "num_channels": 1}],
    "audio-spectrogram-transformer": [
        {name: VIT[name] for name in VIT if name != "image_size"} | more | {
            "max_length": 40, "num_mel_bins": 20, "frequency_stride": 5, "time_stride": 6}
        for more in ({}, {"qkv_bias": False, "num_labels": 9})],
    "segformer": [SEG, SEG | {"sr_ratios": [1, 2], "mlp_ratios": [3, 1], "num_labels": 5}],
    "swinv2": [SWIN, SWIN | {"qkv_bias": False, "num_channels": 1, "encoder_stride": 8},
               SWIN | {"mlp_ratio": 2.5, "window_size": 6, "num_labels": 6}],
    "regnet": [RES | {"hidden_sizes": [16, 24, 32], "groups_width": 8, **more} for more in
               ({}, {"layer_type": "x"}, {"downsample_in_first_stage": False, "num_labels": 4,
                                          "groups_width": 100})],
    "wav2vec2": [WAV, WAV | {"feat_extract_norm": "layer", "do_stable_layer_norm": True,
                             "conv_bias": True, "num_conv_pos_embeddings": 7},
                 WAV | {"mask_time_prob": 0.0, "use_weighted_layer_sum": True,
                        "num_labels": 5, "num_codevectors_per_group": 6},
                 WAV | {"do_stable_layer_norm": True, "feat_extract_norm": "layer",
                        "adapter_attn_dim": 6}],
    "hubert": [WAV, WAV | {"feat_proj_layer_norm": False, "num_labels": 5},
               WAV | {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}],
}
CASES = [(family, head, number) for family, configs in ODD.items()
         for head in WALKS[family]["heads"] for number in range(len(configs))]


def saved(family, head, number):
    """A config as it would be saved, with its class."""
    return {"model_type": family, "architectures": [head]} | ODD[family][number]


def module(config, device="meta"):
    """The module that transformers builds from a saved config."""
    config = {name: value for name, value in config.items() if name != "architectures"} | {
        "architectures": config["architectures"]}
    made = transformers.AutoConfig.for_model(**json.loads(json.dumps(config)))
    kind = getattr(transformers, config["architectures"][0])
    with torch.device(device):
        return kind._from_config(made, attn_implementation="eager").eval()


def inputs_of(config, length, batch, device="meta"):
    """What a model of this class is fed, for a `seq_len` as `count_flop` reads it."""
    family, head = config["model_type"], config["architectures"][0]
    spec = ModelSpec.from_config(config)
    text = {"input_ids": torch.ones(batch, length, dtype=torch.long, device=device)}

    def pixels(side):
        shape = batch, spec.sizes["channels"], side, side
        return {"pixel_values": torch.ones(shape, device=device)}

    if family in ("wav2vec2", "hubert"):
        return {"input_values": torch.ones(batch, length, device=device)}
    if family == "whisper":
        shape = batch, spec.sizes["mels"], 2 * spec.sizes["source"]
        sound = {"input_features": torch.ones(shape, device=device)}
        if head.endswith("CausalLM"):
            return text
        if head.endswith("Classification"):
            return sound
        return sound | {"decoder_input_ids": text["input_ids"]}
    if family == "audio-spectrogram-transformer":
        shape = batch, spec.sizes["frames"], spec.sizes["mels"]
        return {"input_values": torch.ones(shape, device=device)}
    if family in ("clip_text_model", "siglip_text_model"):
        return text
    if family in ("clip", "siglip"):
        return pixels(spec.sizes["image"]) | (
            {} if head.endswith("Classification") else text)
    if length_unit(spec.layout).startswith("pixels"):
        return pixels(length)
    if family.startswith("dinov2"):
        patches = length - 1 - spec.sizes.get("registers", 0)
        return pixels(round(patches**0.5) * spec.sizes["patch"])
    more = {}
    if family == "beit" and head.endswith("Modeling") and spec.sizes["masked"]:
        more = {"bool_masked_pos": torch.zeros(batch, length - 1, dtype=torch.bool,
                                               device=device)}
    return pixels(spec.sizes["image"]) | more


def lengths_of(config):
    """Two lengths of input that a model takes, or the one that it insists on."""
    spec = ModelSpec.from_config(config)
    family, head = config["model_type"], config["architectures"][0]
    if family in ("wav2vec2", "hubert"):
        return [333, 1024]
    if length_unit(spec.layout).startswith("pixels"):
        if family.startswith("swin") and (head.endswith("Modeling") or spec.sizes["absolute"]):
            return [spec.sizes["image"]]
        return [96, 75]
    if family.startswith("dinov2"):
        return [count * count + 1 + spec.sizes.get("registers", 0) for count in (4, 3)]
    if family in ("clip", "siglip", "whisper") and not head.endswith("Classification"):
        return [7, spec.max_tokens]
    return [spec.max_tokens]


def counted_flop(config, length, batch, mode):
    """What torch's counter says of one step, every output in the loss."""
    from torch.utils.flop_counter import FlopCounterMode

    model = module(config, "cpu")
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    if config["architectures"][0] == "Wav2Vec2ForPreTraining" and mode == "training":
        model.train()  # only then does the quantizer let a gradient through
        model.config.layerdrop, model.config.apply_spec_augment = 0.0, False
        model.wav2vec2.feature_extractor._requires_grad = False  # asks for the input's
    inputs = inputs_of(config, length, batch, "cpu")
    with FlopCounterMode(display=False) as counter:
        outputs = model(**inputs)
        if mode == "training":
            wanted = [t for t in outputs.to_tuple() if torch.is_tensor(t) and t.requires_grad]
            sum(t.sum() for t in wanted).backward()
    return counter.get_total_flops()


# ------------------------------------------------------------------ parameters
def test_every_walk_has_odd_configs():
    assert set(ODD) == set(WALKS) == {name for name, layout in model_families().items()
                                      if "walk" in layout}


@pytest.mark.parametrize(("family", "head", "number"), CASES)
def test_params_equal_the_module(family, head, number):
    config = saved(family, head, number)
    weights = sum(weight.numel() for weight in module(config).parameters())
    assert count_params(config).total == weights
    told = describe_params(config)
    assert told["total"] == told["active"] == sum(told["breakdown"].values())
    spec = ModelSpec.from_config(config)
    tables = family not in ("resnet", "regnet", "convnext", "convnextv2", "segformer")
    tables &= spec.sizes.get("timemask") != 0  # wav2vec2's one table is its mask
    assert tables == (0 < told["embedding"] < told["total"])
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize(("family", "head"), [(family, head) for family, layout in WALKS.items()
                                              for head in layout["heads"]])
def test_modules_have_the_names_that_are_told(family, head):
    """LoRA asks for matrices by name, so the table's names are those of the modules."""
    config = saved(family, head, 0)
    own = [name for name, _ in module(config).named_modules()]
    spec = ModelSpec.from_config(config)
    for step in walk_model(spec.layout, spec.sizes, head):
        if step.linear:
            assert any(f".{name}".endswith(f".{step.path}") for name in own), step.path


@pytest.mark.parametrize("family", ODD)
def test_defaults_are_those_of_transformers(family):
    made = transformers.AutoConfig.for_model(family)
    for key, default in WALKS[family]["defaults"].items():
        theirs = made
        for step in key.split("."):
            theirs = getattr(theirs, step, None)
        if key.endswith(("pooler_output_size", "projection_size")):
            assert default is None and theirs == 768  # filled with the width
            continue
        assert (list(theirs) if isinstance(theirs, tuple) else theirs) == default, key
    head = WALKS[family]["base"]
    bare = {"model_type": family, "architectures": [head]}
    weights = sum(weight.numel() for weight in module(bare).parameters())
    assert count_params({"model_type": family}).total == weights


@pytest.mark.parametrize(("family", "number"), [(family, number) for family in ODD
                                                for number in range(len(ODD[family]))])
def test_to_dict_of_transformers_reads_the_same(family, number):
    """Every field of a saved config is honoured, and the many unknown ones change nothing."""
    config = {"model_type": family} | ODD[family][number]
    made = transformers.AutoConfig.for_model(**json.loads(json.dumps(config)))
    again = json.loads(json.dumps(made.to_dict(), default=str))
    assert count_params(again).total == count_params(config).total
    assert count_params(config | {"colour": "red"}).total == count_params(config).total


# ------------------------------------------------------------------ FLOP
FLOP_CASES = [case for case in CASES if case[2] == 0 or (  # every head, every config
    case[1] == WALKS[case[0]]["heads"][case[2] % len(WALKS[case[0]]["heads"])])]


@pytest.mark.parametrize(("family", "head", "number", "mode"), [
    *[(*case, "training") for case in FLOP_CASES],
    *[(*case, "forward") for case in FLOP_CASES if case[2] == 0]])
def test_flop_equal_torch(family, head, number, mode):
    config = saved(family, head, number)
    for length in lengths_of(config)[:2 if number == 0 and mode == "training" else 1]:
        ours = count_flop(config, length, batch=2, mode=mode, like_torch=True)
        assert ours.total == counted_flop(config, length, 2, mode)
        assert ours.total == sum(ours.parts.values())


@pytest.mark.parametrize("name", ["resnet-50", "convnext-tiny", "swin-tiny", "whisper-tiny"])
def test_flop_equal_torch_at_full_size(name):
    """The public models themselves, on the meta device, forward."""
    from torch.utils.flop_counter import FlopCounterMode

    config = model_catalogue()[name]["config"]
    length = 224 if "whisper" not in name else 448
    model, inputs = module(config), inputs_of(config, length, 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    assert count_flop(name, length, mode="forward").total == counter.get_total_flops()


def test_the_counter_counts_grouped_gradients_too_often():
    """torch's formula is `groups` times the arithmetic: one depthwise layer, by hand."""
    from torch.utils.flop_counter import FlopCounterMode

    layer = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6)
    with FlopCounterMode(display=False) as counter:
        layer(torch.ones(1, 6, 10, 10, requires_grad=True)).sum().backward()
    once = 2 * 9 * 6 * 100  # FLOP of the forward pass
    assert counter.get_total_flops() == once * (1 + 1 + 6)
    config = saved("convnext", "ConvNextModel", 0)
    spec = ModelSpec.from_config(config)
    more = sum(2 * step.multiply_adds * step.copies * (step.groups - 1)
               for step in walk_model(spec.layout, spec.sizes, spec.head_class, length=96))
    ours, theirs = (count_flop(config, 96, like_torch=like).total for like in (False, True))
    assert theirs - ours == more > 0
    joined = saved("resnet", "ResNetModel", 0)
    assert count_flop(joined, 96).total == count_flop(joined, 96, like_torch=True).total


def test_training_is_three_passes_less_the_input():
    """Every gradient but the image's: 3 x forward, once less for the first convolution."""
    for name in ("resnet-50", "convnext-tiny", "swin-tiny", "beit-base"):
        spec = ModelSpec.from_config(name)
        length = 197 if name == "beit-base" else 224
        first = next(step for step in walk_model(spec.layout, spec.sizes, spec.head_class,
                                                 length=length) if step.first)
        forward, training = (count_flop(name, length, mode=mode).total
                             for mode in ("forward", "training"))
        assert training == 3 * forward - 2 * first.multiply_adds


def test_arrays_agree_with_numbers():
    sides, batch = np.array([96, 224, 333]), np.array([1, 4, 2])
    for name in ("resnet-50", "convnext-tiny", "swin-tiny"):
        sides = np.maximum(sides, 224) if "swin" in name else sides
        together = count_flop(name, sides, batch=batch).total
        single = [count_flop(name, int(side), batch=int(rows)).total
                  for side, rows in zip(sides, batch, strict=True)]
        assert together.tolist() == single
    tokens = np.array([1, 77])
    assert count_flop("clip-vit-base-patch32", tokens).total.tolist() == [
        count_flop("clip-vit-base-patch32", count).total for count in (1, 77)]


def test_whisper_has_two_lengths():
    """The encoder hears its whole window whatever the transcript; the decoder's part grows."""
    zero, one, two = (count_flop("whisper-tiny", count, mode="forward").total
                      for count in (100, 200, 300))
    scores = 4 * 2 * 2 * 384  # FLOP of 4 layers' two products for each pair of tokens
    assert two - 2 * one + zero == scores * (300**2 - 2 * 200**2 + 100**2)
    encoder = count_flop(model_catalogue()["whisper-tiny"]["config"] | {
        "architectures": ["WhisperForAudioClassification"]}, 3000, mode="forward")
    heard = encoder.total - encoder.parts["head"]
    cross = 4 * 2 * 1500 * 2 * 384 * 384  # keys and values of the encoder, once a layer
    assert zero - (one - zero - scores * (200**2 - 100**2)) - scores * 100**2 == heard + cross
    full, half = (count_flop("whisper-tiny", 448, causal=causal).parts["attention scores"]
                  for causal in (False, True))
    assert full - half == 3 * 4 * 2 * 2 * 384 * 448**2 / 2
    assert kv_bytes_per_token("whisper-tiny") == 4 * 2 * 384 * 2


# ------------------------------------------------------------------ published
PUBLISHED = {  # torchvision's and the authors' own counts
    "resnet-18": 11_689_512, "resnet-34": 21_797_672, "resnet-50": 25_557_032,
    "resnet-101": 44_549_160, "resnet-152": 60_192_808, "swin-tiny": 28_288_354,
    "swin-base": 87_768_224, "convnext-tiny": 28_589_128, "convnext-base": 88_591_464,
    "whisper-tiny": 37_760_640, "whisper-large-v3": 1_543_490_560,
    "deit-base-distilled": 87_338_192, "dinov2-base": 86_580_480, "beit-base": 86_530_984,
    "clip-vit-base-patch32": 151_277_313, "clip-vit-large-patch14": 427_616_513,
    "siglip-base-patch16-224": 203_155_970, "wav2vec2-base-960h": 94_396_320}
GIGA_MAC = {"resnet-50": 4.089, "swin-tiny": 4.491, "convnext-tiny": 4.456,
            "convnext-base": 15.355, "swin-base": 15.431}  # torchvision, at 224 pixels


@pytest.mark.parametrize(("name", "total"), PUBLISHED.items())
def test_published_totals(name, total):
    assert count_params(name).total == total


@pytest.mark.parametrize(("name", "giga"), GIGA_MAC.items())
def test_published_multiply_adds(name, giga):
    counted = count_flop(name, 224, mode="forward").total / 2e9
    assert counted == pytest.approx(giga, abs=6e-3)  # torchvision counts by hooks, 3 decimals


@pytest.mark.parametrize("name", [name for name, entry in model_catalogue().items()
                                  if entry["config"]["model_type"] in WALKS])
def test_catalogue_models_equal_their_module(name):
    entry = model_catalogue()[name]
    assert entry["source"]
    weights = sum(weight.numel() for weight in module(entry["config"]).parameters())
    assert describe_params(name)["total"] == weights


def test_resnet_50_by_the_digit():
    assert count_flop("resnet-50", 224, mode="forward").total == 8_178_368_512
    assert count_params("resnet-50").total == 25_557_032
    first = model_catalogue()["resnet-50"]["config"] | {"downsample_in_bottleneck": True}
    assert count_flop(first, 224, mode="forward").total / 2 == pytest.approx(
        3.8e9, rel=0.02)  # He 2015, table 1, cut to two digits
    assert count_params(first).total == 25_557_032


# ------------------------------------------------------------------ LoRA
@pytest.mark.parametrize(("family", "targets", "own"), [
    ("deit", ("q", "v"), ["q_proj", "v_proj"]), ("swin", ("q", "k", "v", "o"),
                                                 ["q_proj", "k_proj", "v_proj", "o_proj"]),
    ("whisper", ("q_proj", "v_proj"), ["q_proj", "v_proj"]), ("clip", ("fc1",), ["fc1"]),
    ("convnext", ("pwconv1", "pwconv2"), ["pwconv1", "pwconv2"]),
    ("wav2vec2", ("out_proj",), ["out_proj"])])
def test_lora_params_equal_peft(family, targets, own):
    peft = pytest.importorskip("peft")
    config = saved(family, WALKS[family]["base"], 0)
    wrapped = peft.get_peft_model(module(config, "cpu"), peft.LoraConfig(
        r=3, target_modules=own))
    assert lora_params(config, 3, targets) == wrapped.get_nb_trainable_parameters()[0]


# ------------------------------------------------------------------ nonsense
@pytest.mark.parametrize(("config", "told"), [
    ({"model_type": "resnet", "depths": [3, 4]}, "depths=[3, 4] differs in length"),
    ({"model_type": "resnet", "depths": 50}, "depths=50 of a resnet is no list"),
    ({"model_type": "resnet", "depths": [3, 0, 1, 1]}, "is no list of positive whole"),
    ({"model_type": "resnet", "layer_type": "fancy"}, "write bottleneck or basic"),
    ({"model_type": "resnet", "downsample_in_bottleneck": 1}, "is neither true nor false"),
    ({"model_type": "resnet", "hidden_sizes": [2, 4, 8, 16]}, "too narrow for a bottleneck"),
    ({"model_type": "swin", "num_heads": [3, 6, 12, 25]}, "do not divide a stage's width"),
    ({"model_type": "swin", "mlp_ratio": float("nan")}, "mlp_ratio=nan"),
    ({"model_type": "swin", "mlp_ratio": "4"}, "mlp_ratio='4' of a swin is no number"),
    ({"model_type": "swin", "image_size": [224, 192]}, "image_size=[224, 192]"),
    ({"model_type": "convnext", "num_stages": 3}, "is no list of 3 stages"),
    ({"model_type": "whisper", "d_model": 385}, "do not divide the width 385"),
    ({"model_type": "whisper", "encoder_layers": 0}, "encoder_layers=0 of a whisper"),
    ({"model_type": "deit", "patch_size": 500}, "patch_size=500"),
    ({"model_type": "dinov2", "hidden_size": True}, "hidden_size=True"),
    ({"model_type": "clip", "text_config": {"hidden_size": -1}}, "text_config.hidden_size=-1"),
    ({"model_type": "wav2vec2", "conv_kernel": [3]}, "conv_dim"),
    ({"model_type": "wav2vec2", "add_adapter": True}, "add_adapter=True adds convolutions"),
    ({"model_type": "wav2vec2", "num_conv_pos_embedding_groups": 7}, "do not divide the width"),
    ({"model_type": "resnet", "num_labels": 0}, "num_labels=0"),
    ({"model_type": "resnet", "architectures": ["ResNetBackbone"]}, "near: ResNetModel"),
    ({"model_type": "convnxt"}, "near: convnext"), ({"model_type": "swim"}, "near: swin")])
def test_bad_configs_are_refused(config, told):
    with pytest.raises(InputError) as problem:
        count_params(config)
    assert told in str(problem.value)


@pytest.mark.parametrize(("call", "told"), [
    (lambda: count_flop("resnet-50", 0), "seq_len=0"),
    (lambda: count_flop("resnet-50", -224), "seq_len=-224"),
    (lambda: count_flop("resnet-50", "224"), "seq_len='224'"),
    (lambda: count_flop("convnext-tiny", 31), "give a side of at least 32"),
    (lambda: count_flop("swin-tiny", 160), "it is pixels of the image's side"),
    (lambda: count_flop("deit-base-distilled", 197), "is not the 198 tokens"),
    (lambda: count_flop("beit-base", 224), "is not the 197 tokens"),
    (lambda: count_flop("dinov2-base", 1), "leaves no patch"),
    (lambda: count_flop("whisper-tiny", 449), "give at most 448"),
    (lambda: count_flop("clip-vit-base-patch32", 78), "give at most 77"),
    (lambda: count_flop("wav2vec2-base-960h", 100), "too few for the convolutions"),
    (lambda: count_flop("resnet-50", 224, causal=True), "causal=True"),
    (lambda: count_flop("resnet-50", 224, batch=0), "batch=0"),
    (lambda: step_flop("resnet-50", batch=1, tokens=224, method="lora"), "method='lora'"),
    (lambda: kv_bytes_per_token("resnet-50"), "keeps no cache"),
    (lambda: generation_flop("whisper-tiny", 10, 10), "whisper"),
    (lambda: count_flop("resnet-50", 224, recompute="full"), "recompute=True"),
    (lambda: count_flop("resnet-50", 224, decoder_len=7), "decoder_len=7"),
    (lambda: lora_params("resnet-50", 8, ("convolution",)), "is no matrix of this model")])
def test_nonsense_is_refused(call, told):
    with pytest.raises(InputError) as problem:
        call()
    assert told in str(problem.value)


def test_transformers_refuses_the_same_windows():
    """A stage smaller than its window: the module's own bias table does not fit."""
    config = saved("swin", "SwinModel", 0)
    with pytest.raises(RuntimeError):
        module(config, "cpu")(**inputs_of(config, 32, 1, "cpu"))
    with pytest.raises(InputError, match="smaller than a window"):
        count_flop(config, 32)


@pytest.mark.parametrize("name", ["resnet-50", "whisper-tiny", "dinov2-base"])
def test_estimates_answer_or_say_what_they_cannot(name):
    from flm_nb.invest import cost

    with pytest.raises(InputError) as problem:
        cost.estimate_pretrain(model=name, tokens=1e12, accelerator="A100-80GB-SXM", count=8)
    assert ModelSpec.from_config(name).family in str(problem.value)
    order = {"model": name, "examples": 10, "seq_len": 224, "batch_size": 5, "epochs": 1,
             "accelerator": "A100-80GB-SXM"}
    told = cost.estimate_finetune_plan(method="full", **order)
    assert told["predicted_flop"] == 2 * step_flop(name, batch=5, tokens=224).total
    with pytest.raises(InputError, match="method='lora' is not counted"):
        cost.estimate_finetune_plan(method="lora", **order)


def test_units_and_sizes_are_told():
    assert length_unit(ModelSpec.from_config("resnet-50").layout) == \
        "pixels of the image's side"
    assert ModelSpec.from_config("resnet-50").max_tokens is None
    assert ModelSpec.from_config("whisper-tiny").max_tokens == 448
    assert ModelSpec.from_config("dinov2-base").max_tokens == 1370
    older = {"model_type": "clip", "text_config_dict": {"hidden_size": 64,
                                                        "num_attention_heads": 4},
             "text_config": {"hidden_size": 32}, "architectures": ["CLIPModel"]}
    weights = sum(weight.numel() for weight in module(older).parameters())
    assert count_params(older).total == weights
    nested = read_walk_sizes({"text_config": {"hidden_size": 64}}, WALKS["clip"])
    assert nested["t_width"] == 64 and nested["v_width"] == 768


# ------------------------------------------------------------------ without torch
BLOCKED = """
import sys
for name in ("torch", "transformers", "pandas", "scipy", "matplotlib"):
    sys.modules[name] = None
from flm_nb.count.params import describe_params
from flm_nb.count.flop import count_flop
assert describe_params("resnet-50")["total"] == 25_557_032
assert describe_params("whisper-tiny")["total"] == 37_760_640
assert count_flop("resnet-50", 224, mode="forward").total == 8_178_368_512
"""


def test_counting_needs_no_torch():
    subprocess.run([sys.executable, "-c", BLOCKED], check=True, timeout=60)


@pytest.mark.parametrize("name", ["resnet-152", "whisper-large-v3", "swin-base"])
def test_counting_is_quick(name):
    import time

    count_params(name)  # reads the tables once
    start = time.process_time()
    count_params(name)
    assert time.process_time() - start < 0.1


# ------------------------------------------------------------------ wrappers
SIGHT = {  # the numbers that official repositories save, at small size
    "clip_vision_model": VIT, "siglip_vision_model": VIT,
    "pixtral": {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
                "num_attention_heads": 4, "head_dim": 6, "patch_size": 8, "image_size": 32},
    "idefics3_vision": VIT, "smolvlm_vision": VIT,
    "qwen2_vl_vision": {"depth": 2, "embed_dim": 24, "num_heads": 4, "hidden_size": 20,
                        "mlp_ratio": 3, "patch_size": 7},
    "qwen2_5_vl_vision": {"depth": 2, "hidden_size": 24, "num_heads": 4,
                          "intermediate_size": 34, "out_hidden_size": 20}}
LANGUAGE = {name: TEXT[name] for name in TEXT if name != "max_position_embeddings"}
WRAPPERS = [(family, sight, text) for family, entry in walk_table()["wrappers"].items()
            for sight in entry["vision"] if sight in SIGHT for text in entry["text"]]


@pytest.mark.parametrize(("family", "sight", "text"), WRAPPERS)
def test_wrappers_equal_the_module(family, sight, text):
    entry = walk_table()["wrappers"][family]
    base = {"model_type": family, "vision_config": SIGHT[sight] | {"model_type": sight},
            "text_config": LANGUAGE | {"model_type": text, "num_key_value_heads": 1}}
    base |= {"projection_dim": 20} if family == "paligemma" else {}
    more = [{}, {"tie_word_embeddings": not entry["tied"]}]
    more += [{key: not value if isinstance(value, bool) else value + 1}
             for key, value in entry["defaults"].items() if key != "projection_dim"]
    for head in entry["heads"]:
        for changes in more:
            config = base | changes | {"architectures": [head]}
            built = sum(weight.numel() for weight in module(config).parameters())
            assert count_params(config).total == built, (head, changes)


def test_a_flat_config_of_qwen_is_read_as_it_is_saved():
    config = LANGUAGE | {"model_type": "qwen2_vl", "tie_word_embeddings": True,
                         "architectures": ["Qwen2VLForConditionalGeneration"],
                         "num_key_value_heads": 1, "vision_config": SIGHT["qwen2_vl_vision"]}
    built = sum(weight.numel() for weight in module(config).parameters())
    assert count_params(config).total == built


def test_gemma_3_4b_with_its_eyes():
    """The released weights: 4,300,079,472 parameters."""
    config = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
              "text_config": {"model_type": "gemma3_text", "hidden_size": 2560,
                              "intermediate_size": 10240, "num_hidden_layers": 34},
              "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152,
                                "intermediate_size": 4304, "num_hidden_layers": 27,
                                "num_attention_heads": 16, "image_size": 896, "patch_size": 14,
                                "vision_use_head": False}}
    assert count_params(config).total == 4_300_079_472
    text = config["text_config"] | {"architectures": ["Gemma3ForCausalLM"]}
    assert count_flop(config, 64).total == count_flop(text, 64).total
    with pytest.raises(InputError, match="vision_config=None of a gemma3 is missing"):
        count_params({"model_type": "gemma3", "text_config": config["text_config"]})


@pytest.mark.parametrize("model", ["resnet-50", "vit-b16"])
def test_no_text_tokens_no_pretraining_order(model):
    from flm_nb.invest.cost import estimate_pretrain

    with pytest.raises(InputError, match="reads no text tokens"):
        estimate_pretrain(model=model, tokens=1e9, accelerator="T4", count=8)
