"""A training that is killed and resumed ends in the same bytes as one that is left alone."""
import csv
import inspect
import json
import multiprocessing
import random
import re
import shlex
import shutil
import time

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from flm_nb.adapt import finetune
from flm_nb.adapt.finetune import tune
from flm_nb.cli import build_parser, main
from flm_nb.core import InputError, file_sha256
from flm_nb.train.checkpoint import list_checkpoints
from flm_nb.train.guard import OutOfMemory

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] good bad a the film very long".split()
KILLS = 6


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    work = tmp_path_factory.mktemp("resume")
    (work / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(work / "vocab.txt")).save_pretrained(work / "base")
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64)).save_pretrained(work / "base")
    chance = random.Random(0)
    with open(work / "films.csv", "w", newline="") as file:
        sheet = csv.writer(file)
        sheet.writerow(["text", "label"])
        for i in range(300):
            filler = " ".join(chance.choices(WORDS[7:], k=chance.randint(2, 20)))
            sheet.writerow([f"{filler} {('bad', 'good')[i % 2]} film {i}", i % 2])
    return {"data": str(work / "films.csv"), "text": "text", "label": "label", "epochs": 4,
            "model": str(work / "base"), "max_length": 32, "batch_size": 8, "lr": 1e-3,
            "save_every": 5, "valid_share": 0.1, "progress": False}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_killed_at_random_moments_it_ends_in_the_same_bytes(job, method, tmp_path):
    weights = {"full": "model.safetensors", "lora": "adapter_model.safetensors"}[method]
    alone = tune(**job, method=method, out=str(tmp_path / "alone"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flm_nb.adapt.finetune"])
    settings = job | {"method": method, "out": str(tmp_path / "killed"), "resume": True}
    moments, killed = random.Random(method), 0
    for _ in range(30):
        if killed == KILLS:
            break
        child = context.Process(target=tune, kwargs=settings)
        child.start()
        seen = len(list_checkpoints(tmp_path / "killed"))
        while child.is_alive() and len(list_checkpoints(tmp_path / "killed")) == seen < 2:
            time.sleep(0.005)  # let it get somewhere before the first kills
        time.sleep(moments.uniform(0, 0.4))
        killed += child.is_alive()
        child.kill()
        child.join()
        if (tmp_path / "killed" / "run.json").exists():
            break
    assert killed >= 2, "the run was over before it could be killed twice"
    resumed = tune(**settings)
    assert resumed["resumed_step"] > 0
    alone_bytes, killed_bytes = (file_sha256(tmp_path / run / weights)
                                 for run in ("alone", "killed"))
    assert alone_bytes == killed_bytes
    assert resumed["accuracy"] == alone["accuracy"]
    if resumed["losses"]:  # None if the last child had finished already
        assert resumed["losses"] == alone["losses"]


def test_the_saved_model_has_nothing_of_the_run_in_it(job, tmp_path):
    for name in ("one", "two"):
        tune(**job, out=str(tmp_path / name))
    for file in ("model.safetensors", "config.json", "flm.json", "tokenizer.json"):
        assert file_sha256(tmp_path / "one" / file) == file_sha256(tmp_path / "two" / file)
    assert file_sha256(tmp_path / "one" / "README.md") == file_sha256(
        tmp_path / "two" / "README.md")
    everything = "".join(path.read_text("utf-8", errors="ignore")
                         for path in (tmp_path / "one").iterdir())
    assert str(tmp_path) not in everything and job["model"] not in everything


def test_the_command_on_the_card_makes_the_same_weights(job, tmp_path):
    tuned = tune(**job, out=tmp_path / "one")
    card = (tmp_path / "one" / "README.md").read_text("utf-8")
    command = re.search(r"\| what made it \| flm (.*) \|", card)[1]
    options = vars(build_parser().parse_args(shlex.split(command)))
    assert "films.csv" in options["data"] and options["model"] == "base"
    assert f"| accuracy | {tuned['accuracy']:.6g} |" in card
    named = {name: options[name] for name in inspect.signature(tune).parameters
             if name in options}
    tune(**named | {"data": job["data"], "model": job["model"], "out": tmp_path / "two"},
         progress=False)
    assert file_sha256(tmp_path / "one" / "model.safetensors") == file_sha256(
        tmp_path / "two" / "model.safetensors")


def test_another_base_of_the_same_shape_does_not_resume(job, tmp_path):
    shutil.copytree(job["model"], tmp_path / "base")
    tune(**job | {"epochs": 1, "model": str(tmp_path / "base")}, out=tmp_path / "run")
    torch.manual_seed(7)
    config = BertConfig.from_pretrained(job["model"])
    BertForSequenceClassification(config).save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match="base=.* differs from .* of the saved run"):
        tune(**job | {"epochs": 1, "model": str(tmp_path / "base")}, out=tmp_path / "run",
             resume=True)


def test_a_note_that_cannot_be_read_costs_no_work(job, tmp_path, capsys):
    context = multiprocessing.get_context("forkserver")
    child = context.Process(target=tune, kwargs=job | {"out": str(tmp_path)})
    child.start()
    while child.is_alive() and not list_checkpoints(tmp_path):
        time.sleep(0.005)
    child.kill()
    child.join()
    (tmp_path / "job.json").write_text('{"data": ')
    assert tune(**job, out=str(tmp_path), resume=True)["resumed_step"] > 0
    assert "job.json is broken" in capsys.readouterr().err


def test_another_setting_or_other_data_does_not_resume(job, tmp_path):
    context = multiprocessing.get_context("forkserver")
    child = context.Process(target=tune, kwargs=job | {"out": str(tmp_path)})
    child.start()
    while child.is_alive() and not list_checkpoints(tmp_path):
        time.sleep(0.005)
    child.kill()
    child.join()
    assert list_checkpoints(tmp_path)
    with pytest.raises(InputError, match="lr=0.01 differs from 0.001 of the saved run"):
        tune(**job | {"lr": 0.01}, out=str(tmp_path), resume=True)
    with pytest.raises(InputError, match="valid_share=0.3 differs from 0.1 of the saved run"):
        tune(**job | {"valid_share": 0.3}, out=str(tmp_path), resume=True)
    with pytest.raises(InputError, match="max_length=24 differs from 32 of the saved run"):
        tune(**job | {"max_length": 24}, out=str(tmp_path), resume=True)


def test_an_adapter_leaves_when_a_whole_model_comes(job, tmp_path):
    tune(**job, method="lora", out=str(tmp_path))
    tune(**job, method="full", out=str(tmp_path))
    assert not list(tmp_path.glob("adapter_*")) and (tmp_path / "model.safetensors").exists()
    tune(**job, method="lora", out=str(tmp_path))
    assert not (tmp_path / "model.safetensors").exists()


def test_a_broken_checkpoint_is_passed_over(job, tmp_path, capsys):
    context = multiprocessing.get_context("forkserver")
    child = context.Process(target=tune, kwargs=job | {"out": str(tmp_path)})
    child.start()
    while child.is_alive() and len(list_checkpoints(tmp_path)) < 2:
        time.sleep(0.005)
    child.kill()
    child.join()
    newest, before = list_checkpoints(tmp_path)[:2]
    tensors = newest / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-40])
    resumed = tune(**job, out=str(tmp_path), resume=True)
    step = json.loads((before / "state.json").read_text())["step"] if before.exists() else None
    assert resumed["resumed_step"] == int(before.name.split("-")[1]) and step is None
    assert f"{newest.name} is broken" in capsys.readouterr().err


def test_the_roof_says_what_would_have_fitted(job, tmp_path, monkeypatch, capsys):
    def greedy(*_, **__):
        raise OutOfMemory(100_000_000, 32, 3_000_000_000)

    monkeypatch.setattr(finetune, "fit", greedy)
    code = main(["tune", "--data", job["data"], "--model", job["model"], "--text", "text",
                 "--label", "label", "--max-length", "32", "--out", str(tmp_path)])
    said = capsys.readouterr().err
    assert code == 2 and "batch=100000000 rows of length=32 do not fit beside 3.0 GB" in said
    told = re.search(r"of the (\S+) GB here, --batch-size (\d+) takes (\S+) GB", said)
    assert float(told[3]) <= float(told[1]) < 2.1 * float(told[3])  # twice the rows: no more
    assert 100_000_000 >> 20 < int(told[2]) < 100_000_000
    assert said.rstrip().endswith("the last checkpoint stays")
