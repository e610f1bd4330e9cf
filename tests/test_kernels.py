"""Quick kernels change the time, not the model; a step's mean is over what it predicts."""
import shutil

import numpy as np
import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from flm_nb.core import InputError
from flm_nb.plan import MULTIPLE, padded_shapes, plan_batches
from flm_nb.tasks.heads import (
    load_classifier,
    load_language_model,
    next_token_loss,
    predicted_tokens,
    set_dropout,
)
from flm_nb.train import kernels, loop
from flm_nb.train.loop import FitConfig, fit

GPT = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4,
       "n_positions": 32, "bos_token_id": None, "eos_token_id": None}
BERT = {"model_type": "bert", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}


class Blocks:
    """Rows of random tokens, of many lengths; the loss is over what they predict."""

    def __init__(self, rows=24, longest=24):
        draw = torch.Generator().manual_seed(3)
        self.ids = torch.randint(1, 64, (rows, longest), generator=draw)
        self.lengths = np.random.default_rng(3).integers(4, longest + 1, rows)

    def plan(self, *, batch_size, seed, epoch, max_tokens=None):
        return plan_batches(self.lengths, batch_size=batch_size, seed=seed, epoch=epoch,
                            max_tokens=max_tokens)

    def batch(self, rows):
        mask = torch.arange(self.ids.shape[1]) < torch.tensor(self.lengths[rows])[:, None]
        return {"input_ids": self.ids[rows], "attention_mask": mask.long()}


def trained(**settings):
    options = {"batch_size": 8, "lr": 1e-3, "precision": "fp32"} | settings
    model = load_language_model(GPT, seed=0)
    model_dropout = options.pop("dropout", None)
    if model_dropout is not None:
        set_dropout(model, model_dropout)
    history = fit(model, Blocks(), FitConfig(**options), loss=next_token_loss,
                  weigh=predicted_tokens, progress=False)
    return model, history


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_as_many_numbers_are_dropped_as_were_asked_for(share):
    torch.manual_seed(1)
    kept = kernels.keep_mask((1000, 1001), share).float().mean().item()
    assert abs(kept - (1 - share)) < 4 * (share * (1 - share) / 1_001_000) ** 0.5 + 1 / 65_536


def test_the_generator_of_torch_decides_the_coins_and_goes_on():
    torch.manual_seed(1)
    first, second = (kernels.keep_mask((64, 64), 0.3) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(kernels.keep_mask((64, 64), 0.3), first)
    assert not torch.equal(first, second)
    rows = (first.float().mean(1) - 0.7).abs().max().item()
    assert rows < 5 * (0.21 / 64) ** 0.5  # no row is favoured


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [None, "bool", "added"])
@pytest.mark.parametrize("shared", [1, 2])
def test_three_products_attend_as_the_fused_kernel_does(causal, masked, shared):
    layer = torch.nn.Module()
    layer.is_causal, layer.num_key_value_groups = causal, shared
    q = torch.randn(2, 4, 24, 8).bfloat16().requires_grad_()
    k, v = (torch.randn(2, 4 // shared, 24, 8).bfloat16().requires_grad_() for _ in range(2))
    mask = None
    if masked:
        mask = torch.ones(2, 1, 24, 24, dtype=torch.bool).tril()
        mask[1, :, :, 20:] = False
        if masked == "added":
            mask = torch.zeros(2, 1, 24, 24).bfloat16().masked_fill(~mask, -1e9)
    found = []
    for attend in (kernels._matmul_attention, sdpa_attention_forward):
        out, _ = attend(layer, q, k, v, mask)
        found.append((out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours.float(), theirs.float(), rtol=0.05, atol=0.06)


def test_long_texts_and_fp32_are_left_to_the_fused_kernel(monkeypatch):
    asked = []
    monkeypatch.setattr(kernels, "sdpa_attention_forward", lambda *args: asked.append(args))
    layer = torch.nn.Module()
    q = torch.randn(1, 1, kernels.SHORT + 8, 4)
    kernels._matmul_attention(layer, q[:, :, :8], q[:, :, :8], q[:, :, :8], None)
    kernels._matmul_attention(layer, *[q.bfloat16()] * 3, None)
    kernels._matmul_attention(layer, q.bfloat16()[:, :, :1], *[q.bfloat16()] * 2, None)
    assert len(asked) == 3


def test_a_model_gets_its_own_kernels_back_even_after_an_error():
    model = load_classifier_of(BERT)
    with pytest.raises(RuntimeError, match="broke"), kernels.training_kernels(model, "quick"):
        assert any(isinstance(part, kernels.QuickDropout) for part in model.modules())
        assert model.config._attn_implementation == "matmul"
        raise RuntimeError("it broke")
    assert model.config._attn_implementation == "sdpa"
    assert not any(isinstance(part, kernels.QuickDropout) for part in model.modules())


def load_classifier_of(config):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**config))


def test_dropout_is_set_everywhere_or_left_out_of_attention(tmp_path):
    load_classifier_of(BERT).save_pretrained(tmp_path)
    usual = load_classifier(tmp_path, ["a", "b"])
    assert usual.config.attention_probs_dropout_prob == 0.0
    assert usual.config.hidden_dropout_prob == 0.1
    off = load_classifier(tmp_path, ["a", "b"], dropout=0.0)
    equal = load_classifier(tmp_path, ["a", "b"], dropout=0.2)
    for model, share in ((off, 0.0), (equal, 0.2)):
        shares = {part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)}
        assert shares == {share}
        assert model.config.attention_probs_dropout_prob == share
    gpt = load_language_model(GPT, seed=0)
    set_dropout(gpt)
    drops = {name: part.p for name, part in gpt.named_modules()
             if isinstance(part, torch.nn.Dropout)}
    assert all((share == 0) == name.endswith("attn_dropout") for name, share in drops.items())


@pytest.mark.parametrize("dropout", [1.0, -0.1])
def test_a_wrong_dropout_is_refused(dropout):
    with pytest.raises(InputError, match="dropout"):
        set_dropout(load_language_model(GPT, seed=0), dropout)


def test_a_step_in_parts_weighs_every_token_alike():
    whole, one = trained(dropout=0.0)
    parts, other = trained(dropout=0.0, accumulation=4)
    assert other.losses == pytest.approx(one.losses, rel=1e-5)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-4)


def test_forgotten_activations_change_no_loss():
    _, plain = trained(dropout=0.1)
    _, again = trained(dropout=0.1, recompute=True)
    assert again.losses == pytest.approx(plain.losses, rel=1e-6)


def test_a_budget_of_tokens_fills_steps_and_loses_no_row():
    random = np.random.default_rng(0)
    for _ in range(50):
        lengths = random.integers(1, 300, random.integers(1, 200))
        most = int(random.integers(8, 3000))
        plan = plan_batches(lengths, batch_size=4, seed=1, epoch=0, max_tokens=most)
        assert sorted(np.concatenate(plan).tolist()) == list(range(len(lengths)))
        shapes = padded_shapes(lengths, plan)
        assert all(rows == 1 or rows * width <= most for rows, width in shapes.tolist())
        assert len(plan) <= len(lengths)
    plan = plan_batches([5] * 64, batch_size=4, seed=0, epoch=0, max_tokens=16 * MULTIPLE)
    assert [len(rows) for rows in plan] == [16] * 4
    _, history = trained(max_tokens=96)
    assert history.total_steps == len(Blocks().plan(batch_size=8, seed=0, epoch=0,
                                                    max_tokens=96))
    with pytest.raises(InputError, match="max_tokens"):
        plan_batches([3], batch_size=1, seed=0, epoch=0, max_tokens=0)


@pytest.mark.parametrize("step", [2, 4])
def test_with_quick_dropout_a_resumed_run_ends_in_the_same_bits(step, tmp_path):
    def run(out, **options):
        model = load_language_model(GPT, seed=0)  # GPT-2 drops in three kinds of places
        fit(model, Blocks(), FitConfig(batch_size=8, lr=1e-3, epochs=2, precision="bf16",
                                       save_every=1), loss=next_token_loss, progress=False,
            out=out, **options)
        return {name: one.clone() for name, one in model.state_dict().items()}

    def fail(record, model):
        if record["step"] == step:
            raise RuntimeError("the power went out")

    alone = run(tmp_path / "alone")
    with pytest.raises(RuntimeError):
        run(tmp_path / "broken", callbacks=[fail])
    again = run(tmp_path / "broken", resume=True)
    assert all(torch.equal(alone[name], again[name]) for name in alone)


def test_a_run_keeps_the_kernels_that_it_began_with(tmp_path, monkeypatch, capsys):
    def run(**options):
        return fit(load_language_model(GPT, seed=0), Blocks(), FitConfig(
            batch_size=8, epochs=2, precision="fp32"), loss=next_token_loss, progress=False,
            out=tmp_path, **options)

    monkeypatch.setattr(loop, "pick_kernels", lambda device: "torch")

    def fail(record, model):
        assert not any(isinstance(part, kernels.QuickDropout) for part in model.modules())
        if record["step"] == 4:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run(callbacks=[fail])
    monkeypatch.undo()
    history = run(resume=True)
    assert history.resumed_step == 3 and history.numerics["kernels"] == "torch"
    assert "torch kernels, as it began" in capsys.readouterr().err


def test_without_a_compiler_compile_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match="compile"):
        trained(compile=True)
