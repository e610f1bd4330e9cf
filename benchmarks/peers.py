"""Parameters and forward FLOP of nine models: ours and eight other counters against torch.

    python benchmarks/peers.py [PYTHON]

PYTHON is an interpreter that has the other counters beside torch and transformers, because
they are not in requirements.lock: `pip install --no-deps calflops fvcore iopath yacs ptflops
thop torchinfo llm-analysis deepspeed` into a copy of the environment. A counter that is not
there is named and left out. Truth: the module on the meta device and torch's FlopCounterMode
with eager attention. What a counter calls MAC or counts as multiply-adds is doubled here.
"""
import json
import os
import subprocess
import sys
from pathlib import Path
from time import process_time

ROOT = str(Path(__file__).parents[1])
TOKENS, SIDE = 512, 224  # of every text, pixels of every image
MODELS = ("gpt2", "bert-base-uncased", "llama-3.1-8b", "qwen2.5-0.5b", "mixtral-8x7b",
          "deepseek-v3", "t5-base", "vit-b16", "resnet-50")
PACKAGES = {"ours": "flm_nb", "calflops": "calflops", "fvcore": "fvcore", "ptflops": "ptflops",
            "thop": "thop", "torchinfo": "torchinfo", "deepspeed": "deepspeed",
            "llm-analysis": "llm-analysis", "transformers 6ND": "transformers",
            "accelerate": "accelerate"}


def build(name):
    """The module on the meta device, what it is called with, and its config."""
    import torch
    import transformers

    from flm_nb.specs import ModelSpec, model_catalogue

    saved = model_catalogue()[name]["config"]
    config = transformers.AutoConfig.for_model(**saved)
    kind = getattr(transformers, ModelSpec.from_config(name).head_class)
    sparse = saved["model_type"] in ("mixtral", "deepseek_v3")
    options = {"experts_implementation": "batched_mm"} if sparse else {}
    with torch.device("meta"):  # sparse models refuse fp32 there
        module = kind._from_config(
            config, dtype=torch.bfloat16 if sparse else torch.float32,
            **{} if saved["model_type"] == "resnet" else {"attn_implementation": "eager"},
            **options).eval()
        if module.main_input_name == "pixel_values":
            return module, {"pixel_values": torch.zeros(1, 3, SIDE, SIDE)}, saved
        ids = torch.ones(1, TOKENS, dtype=torch.long)
        both = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}
        return module, {"input_ids": ids} | both, saved


def truth(module, inputs, saved):
    """What torch says."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(**inputs)
    return sum(part.numel() for part in module.parameters()), counter.get_total_flops()


def ours(module, inputs, saved):
    from flm_nb.count import count_flop, count_params

    tokens = TOKENS
    if "pixel_values" in inputs:
        tokens = SIDE if saved["model_type"] == "resnet" else (
            SIDE // saved["patch_size"]) ** 2 + 1
    return count_params(saved).total, count_flop(saved, tokens, mode="forward").total


def calflops(module, inputs, saved):
    from calflops import calculate_flops

    flops, _, params = calculate_flops(module, kwargs=inputs, print_results=False,
                                       output_as_string=False)
    return params, flops


def fvcore(module, inputs, saved):
    import torch
    from fvcore.nn import FlopCountAnalysis, parameter_count

    class Plain(torch.nn.Module):  # it traces tensors in, a tensor out
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, *values):
            return self.inner(**dict(zip(inputs, values, strict=True)))[0]

    flop = FlopCountAnalysis(Plain(), tuple(inputs.values())).unsupported_ops_warnings(False)
    return parameter_count(module)[""], 2 * flop.total()


def ptflops(module, inputs, saved):
    from ptflops import get_model_complexity_info

    macs, params = get_model_complexity_info(
        module, (1,), input_constructor=lambda _: inputs, as_strings=False,
        print_per_layer_stat=False, verbose=False, backend="aten")
    return params, macs and 2 * macs


def thop(module, inputs, saved):
    from thop import profile

    keys = list(inputs)

    class Plain(type(module)):  # it passes values by position
        def forward(self, *values):
            return super().forward(**dict(zip(keys, values, strict=True)))

    module.__class__ = Plain
    macs, params = profile(module, tuple(inputs.values()), verbose=False)
    return params, 2 * macs


def torchinfo(module, inputs, saved):
    from torchinfo import summary

    told = summary(module, input_data=inputs, verbose=0, device="meta")
    return told.total_params, 2 * told.total_mult_adds


def deepspeed(module, inputs, saved):
    from deepspeed.profiling.flops_profiler import get_model_profile

    flops, _, params = get_model_profile(module, kwargs=inputs, print_profile=False,
                                         as_string=False, warm_up=0)
    return params, flops


def llm_analysis(module, inputs, saved):
    import tempfile
    from pathlib import Path

    from llm_analysis.analysis import LLMAnalysis
    from llm_analysis.config import get_gpu_config_by_name, get_model_config_from_hf

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(saved))
        tool = LLMAnalysis(get_model_config_from_hf(folder),
                           get_gpu_config_by_name("a100-sxm-80gb"))
    return tool.get_num_params_total(), tool.get_num_flops_fwd_total(1, TOKENS)


def six_nd(module, inputs, saved):
    """What Trainer.floating_point_ops says of a training step, a third of it."""
    from types import SimpleNamespace

    from transformers import Trainer

    told = Trainer.floating_point_ops(SimpleNamespace(model=module), inputs)
    return module.num_parameters(), told / 3


def accelerate(module, inputs, saved):
    from accelerate.utils import calculate_maximum_sizes

    bytes_each = next(module.parameters()).element_size()
    return calculate_maximum_sizes(module)[0] / bytes_each, None


COUNTERS = {"ours": ours, "calflops": calflops, "fvcore": fvcore, "ptflops": ptflops,
            "thop": thop, "torchinfo": torchinfo, "deepspeed": deepspeed,
            "llm-analysis": llm_analysis, "transformers 6ND": six_nd, "accelerate": accelerate}


def one(peer, name):
    """One counter on one model: its numbers, or its error in a word."""
    module, inputs, saved = build(name)
    began = process_time()
    try:
        params, flop = COUNTERS[peer](module, inputs, saved)
        error = "" if params or flop else "gave nothing"
    except Exception as problem:  # whatever another tool raises is its answer
        lines = str(problem).strip().splitlines() or [""]
        params, flop, error = None, None, f"{type(problem).__name__}: {lines[0]}"[:90]
    seconds = process_time() - began
    module, inputs, saved = build(name)  # some counters leave hooks behind
    right = truth(module, inputs, saved)
    ratios = [given / real if given else None
              for given, real in zip((params, flop), right, strict=True)]
    return {"params_ratio": ratios[0], "flop_ratio": ratios[1],
            "cpu_s": round(seconds, 3), "error": error}


def main(python):

    from common import write_table

    asked = ("from importlib.metadata import version; import sys; "
             "print(version(sys.argv[1]))")
    rows = []
    for peer, package in PACKAGES.items():
        found = subprocess.run([python, "-c", asked, package], capture_output=True, text=True,
                               cwd=ROOT)
        if found.returncode:
            print(f"{peer} is not installed in {python}: left out")
            continue
        for name in MODELS:
            done = subprocess.run([python, __file__, "--one", peer, name], capture_output=True,
                                  text=True, timeout=900, env=os.environ | {"PYTHONPATH": ROOT})
            last = (done.stdout.strip().splitlines() or [""])[-1]
            told = json.loads(last) if done.returncode == 0 and last.startswith("{") else {
                "params_ratio": None, "flop_ratio": None, "cpu_s": None, "error":
                (done.stderr.strip().splitlines() or ["stopped"])[-1][:90]}
            print(peer, name, told)
            rows.append({"counter": peer, "version": found.stdout.strip(), "model": name,
                         **told})
    write_table("peers", rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print("\n" + json.dumps(one(*sys.argv[2:4])))
    elif len(sys.argv) == 2:
        main(sys.argv[1])
    else:
        print(__doc__.split("\n\n")[2])  # without the others there is nothing to compare
