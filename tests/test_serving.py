"""Serving: known answers, what must grow with what, mistakes of others, and unseen servers."""
import json

import numpy as np
import pytest
from scipy.optimize import least_squares

from flm_nb.core import InputError, catalogue_rows
from flm_nb.count.serving import (
    FORMATS,
    LOAD,
    ServedModel,
    cache_bytes,
    requests_that_fit,
    served_model,
    serving_fit,
    serving_rows,
    serving_scores,
    serving_times,
    speculative_speedup,
    token_parts,
    weight_bytes,
    weight_format,
)
from flm_nb.count.time import expected_experts
from flm_nb.families import model_families
from flm_nb.invest.cost import estimate_serve
from flm_nb.invest.prices import usd_per_mtok

H100 = {"accelerator": "H100-SXM-80GB", "count": 4, "input_tokens": 1024, "output_tokens": 512}
CONFIGS = {  # name in the measured table -> config.json
    "Qwen3-32B": {
        "model_type": "qwen3", "hidden_size": 5120, "num_hidden_layers": 64, "head_dim": 128,
        "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 25600,
        "vocab_size": 151936, "architectures": ["Qwen3ForCausalLM"]},
    "MiniMax-M2.5": {"model_type": "minimax_m2"},  # the family's defaults are this model's
    "gpt-oss-120b": {"model_type": "gpt_oss"},
    "Llama-3.1-70B": "llama-3.1-70b", "Llama-3.1-8B": "llama-3.1-8b",
    "Qwen3-235B-A22B": "qwen3-235b-a22b", "DeepSeek-V3/R1": "deepseek-v3"}


def times(model="llama-3.1-70b", batch=16, **more):
    return serving_times(model, batch=batch, **H100 | more)


# ------------------------------------------------------------------ counts
def test_weights_of_70b_through_two_h100_take_21_ms():
    assert 2 * 70_553_706_496 / (2 * 3.35e12) == pytest.approx(21.06e-3, rel=1e-3)
    assert weight_bytes(served_model("llama-3.1-70b"), 2) == pytest.approx(
        2 * 70_553_706_496, rel=1e-4)  # norms aside


@pytest.mark.parametrize(("name", "expected"), [
    ("llama-2-7b", 524_288), ("llama-2-70b", 327_680), ("llama-3.1-8b", 131_072),
    ("llama-3.1-405b", 516_096), ("deepseek-v3", 70_272)])
def test_cache_of_a_token(name, expected):
    """Keys and values both count, grouped heads once, latents once for all heads."""
    assert cache_bytes(served_model(name), 1, 2) == expected


def test_a_window_stops_the_cache():
    config = {"model_type": "mistral", "sliding_window": 4096}
    short, long = (cache_bytes(served_model(config), tokens) for tokens in (4096, 100_000))
    assert short == long == 4096 * 131_072
    unused = served_model({"model_type": "qwen2", "use_sliding_window": False})
    assert cache_bytes(unused, 10_000) == 10_000 * cache_bytes(unused, 1)
    half = served_model({"model_type": "gpt_oss"})  # every other layer looks back 128 tokens
    assert cache_bytes(half, 10_000) == pytest.approx((10_000 + 128) / 2 * 73_728)


def test_sixty_four_tokens_touch_222_of_256_experts():
    assert expected_experts(256, 8, 64) == pytest.approx(222.4, abs=0.05)
    model = served_model("deepseek-v3")
    read = weight_bytes(model, 1, 64) - weight_bytes(model, 1, 1)
    assert read == pytest.approx(model.expert_params * (222.4 - 8) / 256, rel=1e-3)


def test_four_bits_leave_head_and_attention_of_experts_alone():
    dense, mixture = served_model("llama-3.1-70b"), served_model("qwen3-235b-a22b")
    each = FORMATS["nvfp4"][0]
    assert weight_bytes(dense, each, 1) == pytest.approx(
        0.5625 * dense.dense + 2 * dense.head)
    assert weight_bytes(mixture, each) == pytest.approx(
        0.5625 * mixture.expert_params + 2 * (mixture.params - mixture.expert_params))


@pytest.mark.parametrize("name", CONFIGS)
def test_config_and_measured_table_agree(name):
    row = next(row for row in catalogue_rows("serving_open") if row["model"] == name)
    model = served_model(CONFIGS[name])
    for field in ServedModel.__dataclass_fields__:
        if field == "window" and not model.window_share:
            continue
        slack = 0.12 if field == "active" else 2e-3  # sources leave the input table out
        count = field in ("dense", "expert_params")  # theirs are rounded, and biases go along
        assert getattr(model, field) == pytest.approx(
            float(row[field]), rel=slack, abs=1e-3 * model.params if count else 0), field


def test_a_mixture_by_its_model_card():
    """Qwen3-30B-A3B: 30.5 billion weights, 3.3 active, four key-value heads."""
    model = served_model({
        "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48,
        "head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 4,
        "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
        "vocab_size": 151936, "architectures": ["Qwen3MoeForCausalLM"]})
    assert model.params == pytest.approx(30.53e9, rel=1e-3)
    assert model.active == pytest.approx(3.35e9, rel=1e-2)
    assert 2 * model.cache == 98_304
    assert model.expert_params == 48 * 128 * 3 * 2048 * 768


def test_every_decoder_can_be_served():
    found = 0
    for family, layout in model_families().items():
        if layout["kind"] == "decoder" and family not in ("deepseek_v2", "dots1"):
            answer = times({"model_type": family}, count=1)
            assert 0 < answer.tpot_s[0] < answer.tpot_s[1] < answer.tpot_s[2] < 1, family
            found += 1
    assert found > 50


def test_a_model_that_also_sees_is_served_by_its_language_part():
    inner = CONFIGS["Qwen3-32B"]
    outer = {"model_type": "sees_and_writes", "text_config": inner, "torch_dtype": "float16"}
    assert served_model(outer) == served_model(inner)
    assert weight_format(outer)[0] == "fp16"


# ------------------------------------------------------------------ formats
@pytest.mark.parametrize(("saved", "expected"), [
    ({}, "bf16"), ({"torch_dtype": "float16"}, "fp16"), ({"dtype": "float32"}, "fp32"),
    ({"torch_dtype": "torch.bfloat16"}, "bf16"),
    ({"quantization_config": {"quant_method": "fp8"}, "torch_dtype": "bfloat16"}, "fp8"),
    ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
    ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4",
                              "kv_cache_quant_algo": "FP8"}}, "nvfp4"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "int4"),
    ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "int4"),
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "int4"),
    ({"quantization_config": {"config_groups": {"a": {"weights": {
        "num_bits": 4, "type": "int"}}}, "kv_cache_scheme": {"type": "float"}}}, "int4"),
    ({"quantization_config": {"weights": {"num_bits": 8, "type": "float"}}}, "fp8"),
    ({"quantization_config": {"weights": {"num_bits": 8, "type": "int"}}}, "int8")])
def test_format_is_read_from_the_config(saved, expected):
    assert weight_format({"model_type": "llama"} | saved)[0] == expected
    assert weight_format({"model_type": "llama"} | saved, "bf16") == ("bf16", "given")


def test_arithmetic_uses_the_format_where_the_chip_has_one():
    said = {chip: times(accelerator=chip, dtype="fp8").assumptions["arithmetic"][0]
            for chip in ("H100-SXM-80GB", "A100-80GB-SXM")}
    assert said == {"H100-SXM-80GB": "fp8", "A100-80GB-SXM": "bf16"}
    assert times(accelerator="A100-80GB-SXM", dtype="nvfp4").tpot_s[1] < times(
        accelerator="A100-80GB-SXM").tpot_s[1]  # fewer bytes are read all the same


# ------------------------------------------------------------------ what grows with what
@pytest.mark.parametrize("model", ["llama-3.1-70b", "qwen3-235b-a22b", "deepseek-v3", "gpt2"])
def test_more_work_takes_longer(model):
    for change in ("batch", "input_tokens"):
        found = [times(model, **{change: size}) for size in (8, 64, 512)]
        for field in ("tpot_s", "ttft_s"):
            middle = [getattr(one, field)[1] for one in found]
            assert middle == sorted(middle) and middle[0] < middle[-1], (change, field)
    least = [times(model, dtype=dtype).max_batch for dtype in ("fp32", "bf16", "fp8")]
    assert least == sorted(least)


def test_more_machines_are_faster_but_not_in_proportion():
    found = [times(count=count, batch=8).tpot_s[1] for count in (1, 2, 4, 8)]
    assert all(after < before < 2 * after for before, after in zip(found, found[1:],
                                                                   strict=False))


def test_nothing_beats_the_roofline():
    for model in ("llama-3.1-70b", "qwen3-235b-a22b"):
        for batch in (1, 32, 512):
            floor = weight_bytes(served_model(model), 2, batch) / (4 * 3.35e12)
            prompt = 2 * 1024 * served_model(model).active / (4 * 989.4e12)
            answer = times(model, batch=batch)
            assert answer.tpot_s[1] > floor and answer.ttft_s[1] > prompt + answer.tpot_s[1]


def test_prompts_read_elsewhere_and_replicas():
    together, apart = times(), times(mode="disaggregated")
    assert apart.parts["prompts of others"] == 0 < together.parts["prompts of others"]
    single = serving_times("llama-3.1-8b", batch=16, **H100 | {"count": 1})
    four = serving_times("llama-3.1-8b", batch=64, tensor_parallel=1, **H100)
    assert four.tpot_s == pytest.approx(single.tpot_s)
    assert four.tokens_per_s == pytest.approx(single.tokens_per_s)


def test_arrays_give_what_numbers_give():
    model, constants = served_model("qwen3-235b-a22b"), serving_fit()["constants"]
    load = dict(zip(LOAD, (8.0, 100.0, 50.0, 4, 2, 2, 1e15, 3e12, 4e11), strict=True))
    many = token_parts(model, constants, **load | {"batch": np.array([8.0, 64.0])})
    one = token_parts(model, constants, **load)
    assert sum(many.values())[0] == pytest.approx(sum(one.values()))


def test_unlike_chips_get_wider_intervals():
    seen, unlike = (times(accelerator=chip).tpot_s for chip in ("H200-SXM", "MI300X"))
    assert unlike[2] / unlike[0] > 1.3 * seen[2] / seen[0]


def test_speculation():
    assert speculative_speedup(0.8, 4, 0.05) == pytest.approx((1 - 0.8**5) / (0.2 * 1.2))
    assert speculative_speedup(1, 4, 0.25) == pytest.approx(5 / 2)  # 5 tokens in 2 steps
    both = speculative_speedup(np.array([0.5, 0.9]), np.array([1, 4]), 0.1)
    assert both == pytest.approx([1.5 / 1.1, (1 - 0.9**5) / (0.1 * 1.4)])


# ------------------------------------------------------------------ room and money
def test_room():
    model = served_model("llama-3.1-70b")
    room = {"memory_bytes": 4 * 80e9, "tokens": 1536}
    assert requests_that_fit(model, **room) == int(
        (288e9 - weight_bytes(model, 2)) // (1536 * 327_680)) == times().max_batch
    assert requests_that_fit(model, memory_bytes=80e9, tokens=10) == 0


def test_what_does_not_fit_is_an_answer():
    told = estimate_serve(model="llama-3.1-405b", batch=4, **H100)
    assert told["fits"] is False and told["max_batch"] == 0
    assert "do not fit" in told["why"] and told["tpot_ms"]["p50"] > 0
    crowd = estimate_serve(model="llama-3.1-70b", batch=5000, **H100)
    assert crowd["fits"] is False and 0 < crowd["max_batch"] < 5000
    assert json.loads(json.dumps(told)) == told


def test_price_is_the_hour_over_its_tokens():
    told = estimate_serve(model="llama-3.1-8b", batch=8, usd_per_hour=2.5, **H100)
    speed = told["tokens_per_s_per_accelerator"]
    assert speed["p10"] < speed["p50"] < speed["p90"]
    assert told["usd_per_mtok"]["p50"] == pytest.approx(usd_per_mtok(4 * 2.5, 4 * speed["p50"]))
    assert told["usd_per_mtok"]["p10"] == pytest.approx(usd_per_mtok(2.5, speed["p90"]))
    request_s = (told["ttft_ms"]["p50"] + 511 * told["tpot_ms"]["p50"]) / 1e3
    assert speed["p50"] == pytest.approx(8 * 512 / request_s / 4)
    half = estimate_serve(model="llama-3.1-8b", batch=8, usd_per_hour=2.5, utilisation=0.5,
                          **H100)
    assert half["usd_per_mtok"]["p50"] == pytest.approx(2 * told["usd_per_mtok"]["p50"])


def test_without_a_price_the_rest_is_said():
    unpriced = next(row["name"] for row in catalogue_rows("accelerators")
                    if not row["rental_usd_h"] and row["fp16_bf16"] and row["interconnect_gbs"])
    told = estimate_serve(model="llama-3.1-8b", batch=8, **H100 | {"accelerator": unpriced})
    assert told["usd_per_mtok"] is None and "usd_per_mtok is null" in told["why"]
    assert told["tpot_ms"]["p50"] > 0


@pytest.mark.parametrize(("change", "told"), [
    ({"accelerator": "h1000"}, "near: H100"), ({"model": "lama-3.1-8b"}, "near: llama"),
    ({"model": "bert-base-uncased"}, "does not write text"), ({"batch": 0}, "batch=0"),
    ({"batch": float("nan")}, "batch=nan"), ({"batch": True}, "batch=True"),
    ({"count": 0}, "count=0"), ({"count": 2.5}, "count=2.5"),
    ({"input_tokens": -1}, "input_tokens=-1"),
    ({"output_tokens": 1e12}, "output_tokens"), ({"dtype": "fp5"}, "dtype='fp5' is unknown"),
    ({"dtype": "bf61"}, "near: bf16"), ({"mode": "both"}, "mode='both'"),
    ({"tensor_parallel": 3}, "does not divide 4"), ({"usd_per_hour": -1}, "usd_per_hour=-1"),
    ({"utilisation": 80}, "utilisation=80"), ({"utilisation": 0}, "utilisation=0")])
def test_bad_input_gets_one_sentence(change, told):
    with pytest.raises(InputError, match="=") as caught:
        estimate_serve(**{"model": "llama-3.1-8b", "batch": 8} | H100 | change)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_too_long_for_the_positions_is_said():
    assert "more than the 1,024 positions" in times("gpt2", input_tokens=4000).why
    assert "positions" not in times("gpt2", input_tokens=100).why


# ------------------------------------------------------------------ unseen servers
def test_unseen_servers():
    scores = serving_scores()
    for name in ("public rows, chip held out", "public rows, model held out",
                 "all rows, chip held out", "all rows, model held out"):
        assert scores[name].median_factor < 1.35 and scores[name].p90_factor < 2, name
        assert 0.75 < scores[name].coverage_80 < 0.88, name
    for rival in ("bandwidth floor", "floor + constant per layer"):
        assert scores[rival].median_factor > scores["all rows, chip held out"].median_factor
        assert scores[rival].p90_factor > 2
    assert scores["all rows, chip held out"].rows == serving_fit()["rows"]


def test_rows_without_licence_stay_outside():
    sets = {row["set"] for row in catalogue_rows("serving_open")}
    assert sets == {"aic-sample", "aic-refs"}
    assert all(row["source"] for row in catalogue_rows("serving_open"))


def test_stored_constants_are_those_of_a_fit():
    """A refit of the public rows from far away lands where the stored constants predict."""
    fit, (model, known) = serving_fit(), serving_rows()
    load, truth = {name: known[name] for name in LOAD}, np.log(known["tpot_s"])
    names = [name for name in fit["constants"] if not name.startswith("first")]
    stored = np.log([fit["constants"][name] for name in names])

    def off(logs):
        parts = token_parts(model, dict(zip(names, np.exp(logs), strict=True)), **load)
        return np.concatenate([np.log(sum(parts.values())) - truth, 0.1 * (logs - stored)])

    found = least_squares(off, stored + 0.5, loss="cauchy", f_scale=0.2, max_nfev=40).x
    before, after = (np.median(np.abs(off(logs)[:truth.size])) for logs in (stored, found))
    assert before < 0.16 and before - after < 0.05  # public rows alone gain little
