"""Two processes that train together are one training: same curve, one writer, one stop."""
import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from flm_nb.adapt import finetune, pretrain
from flm_nb.cli import main
from flm_nb.tasks.heads import classification_loss
from flm_nb.train.checkpoint import list_checkpoints
from flm_nb.train.loop import FitConfig, fit
from flm_nb.train.many import SHARDS, processes

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] good bad a the film very long".split()
TOLERANCE = 2e-5  # of a loss: fp32 sums are cut in two, and 32 updates carry that on [nats]
STOP = 9  # the step after which a run is told to stop
TEXT = {"text": "text", "label": "label", "epochs": 2, "max_length": 32, "batch_size": 7,
        "lr": 1e-3, "save_every": 4, "valid_share": 0.1, "dropout": 0.0, "precision": "fp32",
        "progress": False}  # 7 rows: one process has 4 of them, the other 3
LANGUAGE = {"model": "30k", "tokens": 5_200, "max_length": 32, "batch_size": 5, "lr": 3e-3,
            "save_every": 20, "precision": "fp32", "progress": False}


def text_job(work):
    return TEXT | {"data": work / "films.csv", "model": work / "base"}


def language_job(work):
    return LANGUAGE | {"data": work / "words.txt"}


def stopped(job, step, who=lambda: True):
    """The message of a text run that is told to stop after a step."""
    def tell(record, model):
        if record["step"] == step and who():
            signal.raise_signal(signal.SIGTERM)

    finetune.fit = partial(fit, callbacks=[tell])
    try:
        finetune.tune(**job)
    except KeyboardInterrupt as interrupt:
        return str(interrupt)
    finally:
        finetune.fit = fit


def best_of_three(work):
    """A run that ends with the weights of its first epoch, for later ones score worse."""
    values, job = iter([1.0, 2.0, 3.0]), finetune.TextJob(
        work / "films.csv", "text", "label", work / "base", 32, 0, 0.5, "full", 8, 0.0)
    model = job.build()
    fit(model, job.train, FitConfig(epochs=3, lr=1e-3, precision="fp32", patience=2),
        loss=classification_loss, evaluate=lambda model: next(values), progress=False)
    return torch.cat([weight.flatten() for weight in model.parameters()]).tolist()


def together(work):
    """What each of two processes does; it notes what came of it, and what it wrote."""
    written = []

    def listen(event, told):
        if event == "open" and isinstance(told[0], str) and told[2] & (os.O_WRONLY | os.O_RDWR):
            written.append(told[0])
        elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            written.append(str(told[0]))

    sys.addaudithook(listen)
    me, note = processes().process_index, {}
    assert os.environ.pop(SHARDS) == "true"  # the launcher's word; first without
    text, language = text_job(work), language_job(work)
    note["text"] = finetune.tune(**text, out=work / "text-2")
    note["language"] = pretrain.tune_language(**language, out=work / "language-2")
    note["from one"] = finetune.tune(**text, out=work / "from-one", resume=True)
    note["stopped"] = stopped(text | {"out": work / "to-one"}, STOP, lambda: me == 1)
    os.environ[SHARDS] = "true"
    note["language cut"] = pretrain.tune_language(**language, out=work / "language-cut")
    note["cut stopped"] = stopped(text | {"out": work / "cut"}, STOP, lambda: me == 1)
    note["cut"] = finetune.tune(**text, out=work / "cut", resume=True)
    note["cut to one"] = stopped(text | {"out": work / "cut-to-one"}, STOP, lambda: me == 0)
    said, words = StringIO(), ["--data", work / "films.csv", "--model", work / "base",
                               "--max-length", 32, "--out", work / "launched"]
    with redirect_stdout(said):
        assert main(["tune", "--json", *map(str, words)]) == 0
    note["answer"] = said.getvalue()
    note["best"] = best_of_three(work)
    note["written"] = [path for path in written if str(work) in path]
    (work / f"note-{me}.json").write_text(json.dumps(note, default=str))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("many")
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
        for i in range(120):
            filler = " ".join(chance.choices(WORDS[7:], k=chance.randint(2, 20)))
            sheet.writerow([f"{filler} {('bad', 'good')[i % 2]} film {i}", i % 2])
    (work / "words.txt").write_text(" ".join(chance.choices(WORDS[5:], k=900)))
    return work


@pytest.fixture(scope="module")
def alone(work):
    """The same jobs in one process, with one thread as each of the two has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    text = text_job(work)
    try:
        assert f"step {STOP}" in stopped(text | {"out": work / "from-one"}, STOP)
        language = pretrain.tune_language(**language_job(work), out=work / "language-1")
        yield {"text": finetune.tune(**text, out=work / "text-1"), "language": language}
    finally:
        torch.set_num_threads(threads)


def launch(launcher, *words, **more):
    """What a program prints that `python -m launcher` starts, with one thread a process."""
    started = subprocess.Popen(
        [sys.executable, "-m", *launcher.split(), *map(str, words)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | more)
    try:
        out, told = started.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        started.terminate()  # it takes its processes with it
        out, told = started.communicate()
    assert started.returncode == 0, told[-3000:]
    return out


@pytest.fixture(scope="module")
def notes(work, alone):
    """What the two processes noted."""
    launch("accelerate.commands.launch --use_fsdp --num_processes 2 --main_process_port 0",
           __file__, work, ACCELERATE_USE_CPU="true")
    return [json.loads((work / f"note-{me}.json").read_text()) for me in (0, 1)]


@pytest.mark.parametrize("run, same", [
    ("text", "text"), ("language", "language"), ("language cut", "language"),
    ("from one", "text"), ("cut", "text")])
def test_two_processes_have_the_curve_of_one(notes, alone, run, same):
    for note in notes:  # both know the loss of the whole step
        curve, wanted = note[run]["losses"], alone[same]["losses"]
        assert len(curve) == len(wanted) > 30
        assert np.abs(np.subtract(curve, wanted)).max() < TOLERANCE
    resumed = STOP if run in ("from one", "cut") else 0
    assert notes[0][run]["resumed_step"] == resumed


@pytest.mark.parametrize("run, same", [
    ("text-2", "text-1"), ("language-2", "language-1"), ("language-cut", "language-1"),
    ("cut", "text-1"), ("from-one", "text-1")])
def test_the_saved_model_is_whole_and_the_same(work, notes, run, same):
    found, wanted = (load_file(work / name / "model.safetensors") for name in (run, same))
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-3)


def test_the_best_weights_come_back_whole(work, notes):
    for note in notes:
        torch.testing.assert_close(torch.tensor(note["best"]),
                                   torch.tensor(best_of_three(work)), rtol=1e-3, atol=1e-4)


def test_only_the_first_process_writes(work, notes):
    first, second = (note["written"] for note in notes)
    assert second == [str(work / "note-1.json")] or second == []
    assert any("text-2" in path for path in first)
    assert any("checkpoint" in path or ".writing" in path for path in first)


def test_rows_and_tokens_are_those_of_both(notes, alone):
    assert notes[0]["text"]["accuracy"] == notes[1]["text"]["accuracy"]
    for run in ("text", "language"):
        one, two = (told[run]["tokens_per_s"] / told[run]["samples_per_s"]
                    for told in (alone, notes[0]))
        assert one == pytest.approx(two)


@pytest.mark.parametrize("run, folder", [
    ("stopped", "to-one"), ("cut to one", "cut-to-one")])
def test_a_signal_to_one_stops_both_and_one_goes_on_alone(work, notes, alone, run, folder):
    told = {note[run] for note in notes}
    step = int(re.search(r"stopped after step (\d+)", told.pop())[1])
    assert not told and step == STOP
    newest = list_checkpoints(work / folder)[0]
    assert newest.name == f"checkpoint-{STOP:08d}"
    kept = load_file(newest / "state.safetensors")  # whole tensors, though they were cut
    for name, weight in load_file(work / "text-1" / "model.safetensors").items():
        for part in ("model", "optimizer.exp_avg", "optimizer.exp_avg_sq"):
            assert kept[f"{part}.{name}"].shape == weight.shape
    ended = finetune.tune(**text_job(work), out=work / folder, resume=True)
    assert ended["resumed_step"] == STOP
    assert np.abs(np.subtract(ended["losses"], alone["text"]["losses"])).max() < TOLERANCE


def test_of_two_processes_one_answers(work, notes):
    answer = json.loads(notes[0]["answer"])  # one object, and nothing from the other
    assert notes[1]["answer"] == "" and answer["resumed_step"] == 0
    assert 0.4 < answer["accuracy"] <= 1


def test_a_launcher_can_start_the_roof_as_a_module():
    told = launch("flm_nb.cli", "--version")
    assert told.startswith("flm ")


if __name__ == "__main__":
    together(Path(sys.argv[1]))
