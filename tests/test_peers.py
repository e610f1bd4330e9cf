"""Mistakes that published calculators make: each one is tried here, and ours is right."""
import csv
from pathlib import Path

import pytest

from flm_nb.core import InputError
from flm_nb.count import (
    activation_bytes,
    count_flop,
    count_params,
    expected_experts,
    kv_bytes_per_token,
    lora_params,
    memory_bytes,
    step_flop,
    step_mfu,
)
from flm_nb.invest import energy_kwh, estimate_pretrain, usd_per_mtok
from flm_nb.specs import Accelerator

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 96, "vocab_size": 500, "max_position_embeddings": 64}


def test_the_cache_holds_keys_and_values_of_the_key_value_heads():
    """EleutherAI cookbook: no factor 2, kv_size_ratio unused. llm-analysis: MLA 25 x."""
    assert kv_bytes_per_token("llama-2-70b") == 2 * 80 * 8 * 128 * 2
    assert kv_bytes_per_token("llama-2-7b") == 2 * 32 * 32 * 128 * 2
    assert kv_bytes_per_token("deepseek-v3") == 61 * (512 + 64) * 2


def test_states_are_divided_once():
    """The cookbook divides by all accelerators what tensor and pipeline have divided."""
    assert memory_bytes(7e9, shards=8).total == 14e9
    stages = [memory_bytes(7e9, shards=8, stage=stage).total / 1e9 for stage in (1, 2, 3)]
    assert stages == [38.5, 26.25, 14.0]


def test_the_width_of_the_feed_forward_block_counts():
    """The cookbook parses --ffn-hidden-size and does not use it; llm-analysis guesses 4 h."""
    wide = LLAMA | {"intermediate_size": 192}
    more = count_params(wide).total - count_params(LLAMA).total
    assert more == 2 * 3 * 64 * 96  # layers, gated: three matrices
    assert count_flop(wide, 10).total > count_flop(LLAMA, 10).total


def test_the_head_is_trained_too_and_on_every_token():
    """The cookbook does not triple the logits; LLM-Viewer counts them for one token."""
    head = count_flop(LLAMA, 10, 3).parts["head"]
    assert head == 3 * count_flop(LLAMA, 10, 3, mode="forward").parts["head"]
    assert head == 3 * 2 * 64 * 500 * 10 * 3


def test_recomputing_blocks_keeps_their_inputs_alone():
    """The cookbook's "checkpoint" keeps 34 s b h a layer; full recomputation keeps 2."""
    kept = activation_bytes("gpt-3", batch=1, tokens=2048, recompute="full")
    assert kept.parts["block inputs"] == pytest.approx(2 * 2048 * 12288 * 96, rel=0.011)


def test_tied_weights_count_once():
    """torchinfo counts them twice, thop neither."""
    assert count_params("gpt2").total == 124_439_808
    untied = LLAMA | {"tie_word_embeddings": True}
    assert count_params(LLAMA).total - count_params(untied).total == 500 * 64


def test_attention_scores_grow_with_the_square():
    """calflops and torch's counter miss them in fused kernels: linear in the length."""
    one, two = (count_flop(LLAMA, tokens).parts["attention scores"] for tokens in (16, 32))
    assert two == 4 * one > 0


def test_frozen_weights_save_a_third_and_not_95_percent():
    """ROI calculators say LoRA saves 95 % of the FLOP; Trainer.floating_point_ops nothing."""
    full = step_flop("llama-2-7b", batch=1, tokens=512).total
    lora = step_flop("llama-2-7b", batch=1, tokens=512, method="lora").total
    assert 0.64 < lora / full < 0.69


def test_adapters_of_grouped_heads_are_narrower():
    """r (D_in + D_out) with the key-value width, not the model's."""
    assert lora_params(LLAMA, 8, ("q_proj", "v_proj")) == 2 * 8 * (64 + 64 + 64 + 32)


def test_one_token_does_not_pass_all_experts_and_a_batch_reads_most():
    """6 N D with all experts is 3.6 and 17.7 times too much (Trainer, Mixtral, DeepSeek-V3)."""
    forward = count_flop("mixtral-8x7b", 512, mode="forward").total
    assert forward / (2 * 46.7e9 * 512) < 0.3
    assert expected_experts(256, 8, 64) == pytest.approx(222.4, abs=0.05)


def test_an_encoder_decoder_is_no_dense_decoder():
    """llm-analysis sees half of T5; 6 N D gives T5-11B an MFU of 65 %."""
    assert count_params("t5-11b").total == 11_307_321_344
    assert count_flop("t5-base", 512, mode="forward").total == 257_194_721_280


def test_peaks_are_dense_and_of_the_number_format():
    """gpu_poor takes 19.5 TFLOP/s for an A100; headlines a sparse peak, twice as high."""
    assert Accelerator.named("A100-80GB-SXM").peak("bf16") == 312e12
    assert Accelerator.named("H100-SXM-80GB").peak("bf16") == 989.4e12
    assert Accelerator.named("H100-SXM-80GB").bytes_per_s == 3350e9  # LLM-Viewer: 3072
    assert step_mfu("H100-SXM-80GB").p90 < 0.75  # efficiency is expected, not typed in as 1


def test_unknown_hardware_is_loud():
    """Epoch's scripts fall through to an average, nanoGPT to a default."""
    with pytest.raises(InputError, match="near: H100-SXM-80GB"):
        Accelerator.named("H100-SXM-80G")


def test_an_unknown_model_is_not_guessed():
    with pytest.raises(InputError, match="model_type"):
        count_params(LLAMA | {"model_type": "lama3"})


def test_weights_are_not_the_memory_of_a_training():
    """accelerate estimate-memory and DeepSpeed's estimators leave activations out."""
    plan = {"tokens": 1e12, "accelerator": "H100-SXM-80GB", "count": 8}
    told = estimate_pretrain(model="llama-3.1-8b", seq_len=8192, **plan)
    states = 16 * count_params("llama-3.1-8b").total / 8
    assert told["memory_bytes_per_accelerator"] > states + 1e9


def test_idle_hours_and_buildings_count():
    """inference calculators assume a busy server; mlco2 leaves PUE to the reader."""
    assert usd_per_mtok(20, 2500, 0.5) == 2 * usd_per_mtok(20, 2500)
    assert energy_kwh(1000, 700, 1.25) == 1.25 * 700


def test_the_table_of_other_counters_says_the_same():
    with open(RESULTS / "peers.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ours = [row for row in rows if row["counter"] == "ours"]
    assert len(ours) == 9 and not any(row["error"] for row in ours)
    for row in ours:
        assert float(row["params_ratio"]) == 1
        assert float(row["flop_ratio"]) == pytest.approx(1, abs=1e-3)
    others = {row["counter"] for row in rows} - {"ours"}
    assert len(others) >= 8
    sparse = {row["counter"]: row["flop_ratio"] for row in rows
              if row["model"] == "deepseek-v3"}
    assert float(sparse["calflops"]) < 0.5 and float(sparse["transformers 6ND"]) > 10
