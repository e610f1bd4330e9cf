"""A run may break anywhere: what is saved is whole, what goes on is exact, words help."""
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from flm_nb.core import InputError, file_sha256
from flm_nb.plan import plan_batches
from flm_nb.tasks.heads import classification_loss
from flm_nb.train import loop
from flm_nb.train.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from flm_nb.train.guard import ExplodingGradient, NonFiniteLoss, OutOfMemory
from flm_nb.train.loop import FitConfig, fit

ROOT = Path(__file__).parents[1]
SETTINGS = {"lr": 0.05, "epochs": 4, "batch_size": 16, "accumulation": 3, "patience": 2,
            "precision": "fp32", "save_every": 3}


class Points:
    """Sixty points; the bundle draws with numpy, so a resume has to get that right too."""

    def __init__(self, rows=60, shift=0.0):
        self.x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1))
        self.y = (self.x.sum(1, keepdim=True) + shift)

    def plan(self, *, batch_size, seed, epoch):
        return plan_batches([1] * len(self.x), batch_size=batch_size, seed=seed, epoch=epoch)

    def batch(self, rows):
        noise = torch.from_numpy(np.random.normal(0, 0.1, (len(rows), 4))).float()
        return {"input": self.x[rows] + noise, "y": self.y[rows]}


class Net(torch.nn.Sequential):
    """Dropout draws with torch; a batch norm keeps statistics that no gradient moves."""

    def __init__(self):
        super().__init__(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3),
                         torch.nn.Linear(8, 1))

    def forward(self, input, y):
        return super().forward(input)


def squared(outputs, batch):
    return (outputs - batch["y"]).square().mean() * random.uniform(0.9, 1.1)  # Python draws



def drawn_score(model):
    """A score that depends on the weights and on a draw: the draw has to be the same too."""
    return model[0].weight.abs().sum().item() + np.random.random() + random.random()


def train(out, *, net=None, **options):
    settings = FitConfig(**SETTINGS | options.pop("settings", {}))
    if net is None:
        torch.manual_seed(0)
        net = Net()
    return net, fit(net, options.pop("bundle", None) or Points(), settings,
                    loss=options.pop("loss", squared), evaluate=drawn_score, out=out,
                    progress=False, **options)


def everything(net, history, out):
    """Weights, buffers, history, and the bytes of the newest checkpoint: state of optimizer."""
    newest = list_checkpoints(out)[0]
    facts = json.loads((newest / "state.json").read_text())
    return ({name: one.tolist() for name, one in net.state_dict().items()}, history.steps,
            history.evaluations, newest.name, file_sha256(newest / "state.safetensors"), facts)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    return everything(*train(out), out)


@pytest.mark.parametrize("step", range(1, 13))
def test_broken_off_after_any_step_it_ends_in_the_same_bits(step, alone, tmp_path):
    def fail(record, model):
        if record["step"] == step:
            raise RuntimeError("the power went out")

    with pytest.raises(RuntimeError, match="the power went out"):
        train(tmp_path, callbacks=[fail])
    net, history = train(tmp_path, resume=True)
    assert history.resumed_step == (step - 1) // 3 * 3
    assert everything(net, history, tmp_path) == alone
    assert len(history.steps) == 12 < history.total_steps  # patience ran out in between


@pytest.mark.parametrize("where", ["forward", "update", "callback", "evaluate"])
def test_an_interrupt_in_the_middle_of_a_step_does_no_harm(where, alone, tmp_path, monkeypatch):
    seen = []

    def interrupt(*_):
        seen.append(1)
        if len(seen) == {"forward": 14, "evaluate": 2}.get(where, 5):
            raise KeyboardInterrupt

    def loss(outputs, batch):
        if where == "forward":
            interrupt()
        return squared(outputs, batch)

    def score(model):
        if where == "evaluate":
            interrupt()
        return drawn_score(model)

    class Torn(torch.optim.AdamW):
        def step(self, closure=None):
            half = self.param_groups
            self.param_groups = half[:1]
            super().step()
            interrupt()  # the matrices are new, the biases are not
            self.param_groups = half[1:]
            super().step()
            self.param_groups = half

    torch.manual_seed(0)
    net = Net()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if where == "update":
            patch.setattr(torch.optim, "AdamW", Torn)
        fit(net, Points(), FitConfig(**SETTINGS), loss=loss, evaluate=score, out=tmp_path,
            callbacks=[interrupt] if where == "callback" else [], progress=False)
    saved = int(list_checkpoints(tmp_path)[0].name.split("-")[1])
    # a batch norm moves in the forward pass, so what is between two updates there is no step
    assert saved == {"forward": 3, "update": 3, "callback": 5, "evaluate": 8}[where]
    again, history = train(tmp_path, net=net, resume=True)  # the same, torn model
    assert everything(again, history, tmp_path) == alone


def test_without_a_batch_norm_an_interrupt_saves_the_last_whole_step(tmp_path):
    class Line(torch.nn.Linear):
        def forward(self, input, y):
            return super().forward(input)

    calls = []

    def loss(outputs, batch):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return squared(outputs, batch)

    settings = FitConfig(epochs=3, precision="fp32")
    with pytest.raises(KeyboardInterrupt, match="stopped after step 5; resume goes on"):
        fit(Line(4, 1), Points(), settings, loss=loss, out=tmp_path, progress=False)
    assert list_checkpoints(tmp_path)[0].name == "checkpoint-00000005"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves_and_a_second_one_leaves_at_once(number, alone, tmp_path):
    def once(record, model):
        if record["step"] == 5:
            signal.raise_signal(number)

    def twice(record, model):
        once(record, model)
        once(record, model)

    with pytest.raises(KeyboardInterrupt, match="stopped after step 5; resume goes on"):
        train(tmp_path / "polite", callbacks=[once])
    assert list_checkpoints(tmp_path / "polite")[0].name == "checkpoint-00000005"
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "twice", callbacks=[twice])
    assert list_checkpoints(tmp_path / "twice")[0].name == "checkpoint-00000003"
    for out in (tmp_path / "polite", tmp_path / "twice"):
        assert everything(*train(out, resume=True), out) == alone
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)


# ------------------------------------------------------------------ what is on the disk
def broken_off(out, step=8):
    """A run with the checkpoints 3 and 6, broken off after a step."""
    def fail(record, model):
        if record["step"] == step:
            raise RuntimeError("the power went out")

    with pytest.raises(RuntimeError):
        train(out, callbacks=[fail])
    return list_checkpoints(out)


def test_one_flipped_bit_anywhere_is_found(tmp_path):
    rate = {"weight": torch.randn(3, 3), "step": torch.tensor(2.0)}
    save_checkpoint(tmp_path, 1, rate, {"loss": [0.5]})
    newest = save_checkpoint(tmp_path, 2, rate, {"loss": [0.5, 0.25]})
    flips = random.Random(0)
    for file in ("state.json", "state.safetensors"):
        whole = (newest / file).read_bytes()
        for place in flips.sample(range(len(whole)), 60):
            content = bytearray(whole)
            content[place] ^= 1 << flips.randrange(8)
            (newest / file).write_bytes(content)
            assert load_checkpoint(tmp_path)[0] == 1, (file, place)
        for size in (0, 7, len(whole) // 2, len(whole) - 1):
            (newest / file).write_bytes(whole[:size])
            assert load_checkpoint(tmp_path)[0] == 1, (file, size)
        (newest / file).write_bytes(whole)
    assert load_checkpoint(tmp_path)[0] == 2


@pytest.mark.parametrize("harm", ["truncated", "emptied", "foreign data", "foreign model",
                                  "renamed"])
def test_a_useless_checkpoint_is_passed_over_aloud(harm, alone, tmp_path, capsys):
    newest, before = broken_off(tmp_path / "run")
    if harm == "truncated":
        content = (newest / "state.safetensors").read_bytes()
        (newest / "state.safetensors").write_bytes(content[:-1])
    elif harm == "emptied":
        (newest / "state.json").unlink()
    elif harm == "renamed":
        os.replace(newest, newest := newest.with_name("checkpoint-00000099"))
    else:
        other = {"foreign data": {"bundle": Points(shift=1.0)},
                 "foreign model": {"net": torch.nn.Sequential()}}[harm]
        if harm == "foreign model":
            class Wide(Net):
                def __init__(self):
                    torch.nn.Sequential.__init__(self, torch.nn.Linear(4, 9),
                                                 torch.nn.BatchNorm1d(9), torch.nn.Dropout(0.3),
                                                 torch.nn.Linear(9, 1))
            other = {"net": Wide()}
        train(tmp_path / "other", **other)
        shutil.rmtree(newest)
        stranger = next(path for path in list_checkpoints(tmp_path / "other"))
        newest = shutil.copytree(stranger, newest.with_name(stranger.name))
    net, history = train(tmp_path / "run", resume=True)
    kind = "is of another run" if "foreign" in harm else "is broken"
    assert f"{Path(newest).name} {kind}" in capsys.readouterr().err
    assert history.resumed_step == 3
    assert everything(net, history, tmp_path / "run") == alone


def test_where_nothing_can_be_used_nothing_is_started(tmp_path):
    for path in broken_off(tmp_path):
        (path / "state.json").write_text("{}")
    with pytest.raises(InputError, match="holds only broken checkpoints"):
        train(tmp_path, resume=True)


def test_checkpoints_of_an_earlier_life_do_not_outlive_the_new_run(alone, tmp_path):
    train(tmp_path, settings={"lr": 0.01, "epochs": 8, "patience": 8})  # as far as step 30
    newest = broken_off(tmp_path)[0]
    assert newest.name == "checkpoint-00000006"
    assert {path.name for path in tmp_path.glob("aside-*")} == {
        "aside-checkpoint-00000027", "aside-checkpoint-00000030"}
    assert everything(*train(tmp_path, resume=True), tmp_path) == alone


def test_checkpoints_of_other_tools_are_left_alone(tmp_path):
    (tmp_path / "checkpoint-500").mkdir()
    train(tmp_path)
    assert (tmp_path / "checkpoint-500").exists()


def test_half_written_checkpoints_do_not_pile_up(tmp_path):
    (tmp_path / ".writing-00000003-1").mkdir(parents=True)
    train(tmp_path)
    assert not list(tmp_path.glob(".writing-*"))


def on_a_full_disk(out, answers):
    """In a process of its own: no file may grow beyond a limit once six steps are done."""
    def fill(record, model):
        if record["step"] == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))

    try:
        train(out, callbacks=[fill])
    except InputError as problem:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        answers.put(str(problem))


def test_a_full_disk_leaves_the_last_good_one(alone, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flm_nb.adapt.finetune"])
    answers = context.Queue()
    child = context.Process(target=on_a_full_disk, args=(tmp_path, answers))
    child.start()
    told = answers.get(timeout=120)
    child.join()
    assert "cannot hold the checkpoint of step 9" in told and "free space" in told
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "checkpoint-00000006", "checkpoint-00000003"]
    assert not list(tmp_path.glob(".writing-*"))
    assert everything(*train(tmp_path, resume=True), tmp_path) == alone


def test_a_disk_that_fails_in_the_middle_leaves_the_last_good_one(alone, tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 10:  # in the third save
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device; free space"):
        train(tmp_path)
    assert list_checkpoints(tmp_path)[0].name == "checkpoint-00000006"
    assert everything(*train(tmp_path, resume=True), tmp_path) == alone


def test_without_save_every_time_decides_too(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_S", 0)
    train(tmp_path, settings={"save_every": None})
    assert len(list_checkpoints(tmp_path)) == 2
    steps = [int(path.name.split("-")[1]) for path in list_checkpoints(tmp_path)]
    assert steps[0] - steps[1] == 1


# ------------------------------------------------------------------ numbers stay the same
def test_a_resumed_run_keeps_threads_and_precision(alone, tmp_path, capsys, monkeypatch):
    before = torch.get_num_threads()
    settings = {"precision": "auto"}
    monkeypatch.setattr(loop, "pick_precision", lambda asked: "fp32")
    whole = train(tmp_path / "alone", settings=settings)
    monkeypatch.undo()

    def fail(record, model):
        assert torch.get_num_threads() == before
        if record["step"] == 8:
            raise RuntimeError("the power went out")

    monkeypatch.setattr(loop, "pick_precision", lambda asked: "fp32")
    with pytest.raises(RuntimeError):
        train(tmp_path / "run", settings=settings, callbacks=[fail])
    monkeypatch.setattr(loop, "pick_precision", lambda asked: "bf16")  # another machine
    torch.set_num_threads(before + 1)
    try:
        resumed = train(tmp_path / "run", settings=settings, resume=True)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert f"fit goes on in fp32 with {before} threads" in capsys.readouterr().err
    assert everything(*resumed, tmp_path / "run") == everything(*whole, tmp_path / "alone")


def test_same_seed_same_weights_other_seed_other_weights(alone, tmp_path):
    assert everything(*train(tmp_path / "same"), tmp_path / "same") == alone
    other = train(tmp_path / "other", settings={"seed": 1})[0].state_dict()
    assert other["0.weight"].tolist() != alone[0]["0.weight"]


# ------------------------------------------------------------------ errors that help
def test_each_broken_step_says_what_to_do_and_keeps_the_checkpoint(tmp_path):
    def harm(factor, at):
        calls = []

        def loss(outputs, batch):
            calls.append(1)
            return squared(outputs, batch) * (factor if len(calls) >= at else 1)
        return loss

    with pytest.raises(NonFiniteLoss, match=r"at step 5: the step was not taken; look for a "
                       r"broken row among \d+, .*try lr="):
        train(tmp_path / "nan", loss=harm(float("nan"), 13))
    with pytest.raises(ExplodingGradient, match="norm inf at step 5.*exploded; try lr="):
        train(tmp_path / "inf", loss=harm(1e30, 13))
    for out in ("nan", "inf"):
        assert list_checkpoints(tmp_path / out)[0].name == "checkpoint-00000003"


def test_memory_that_runs_out_is_told_in_rows_length_and_bytes(tmp_path):
    class Greedy(Net):
        def forward(self, input, y):
            if input.shape[0] == 4:  # the last part of an epoch
                torch.empty(2**58)
            return super().forward(input, y)

    with pytest.raises(OutOfMemory, match="batch=4 rows of length=4 do not fit") as caught:
        train(tmp_path, net=Greedy(), settings={"accumulation": 1, "batch_size": 56})
    assert caught.value.bytes > 1e7
    again = caught.value.__reduce__()
    assert str(again[0](*again[1])) == str(caught.value)


def test_memory_that_runs_out_in_the_update_is_told_too(tmp_path, monkeypatch):
    def step(self, closure=None):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(OutOfMemory, match="batch=16 rows"):
        train(tmp_path)


def test_what_cannot_be_trained_is_refused_before_the_first_step(tmp_path):
    class Empty(Points):
        def plan(self, *, batch_size, seed, epoch):
            return []

    with pytest.raises(InputError, match="bundle='Empty' has no rows to train on"):
        train(tmp_path, bundle=Empty())
    with pytest.raises(InputError, match="rows=0 are too few"):
        train(tmp_path, bundle=Points(rows=0))
    frozen = Net()
    frozen.requires_grad_(False)
    with pytest.raises(InputError, match="model='Net' has no weight to train"):
        train(tmp_path, net=frozen)


class Pictures:
    """Eight pictures with labels, and more if a test wants it."""

    def __init__(self, **more):
        self.more = more

    def plan(self, *, batch_size, seed, epoch):
        return [np.arange(8)]

    def batch(self, rows):
        return {"pixel_values": torch.zeros(len(rows), 3, 32, 32),
                "labels": torch.zeros(len(rows), dtype=torch.long)} | {
                    name: one[: len(rows)] for name, one in self.more.items()}


@pytest.mark.parametrize(("more", "told"), [
    ({"attention_mask": torch.ones(8, 4)}, "batch='attention_mask' is no argument of ResNet"),
    ({"labels": torch.full((8,), 3)}, "labels=3 is outside the classes 0 to 2"),
    ({"labels": torch.full((8,), -1)}, "labels=-1 is outside the classes 0 to 2")])
def test_a_batch_that_the_model_would_swallow_is_refused(more, told):
    net = ResNetForImageClassification(ResNetConfig(
        num_labels=3, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]))
    before = {name: one.clone() for name, one in net.state_dict().items()}
    with pytest.raises(InputError, match=told):
        fit(net, Pictures(**more), FitConfig(), loss=classification_loss, progress=False)
    assert all(torch.equal(one, before[name]) for name, one in net.state_dict().items())
    history = fit(net, Pictures(), FitConfig(), loss=classification_loss, progress=False)
    assert history.steps[0]["step"] == 1


def test_nothing_is_pickled_or_unpickled_and_no_remote_code_runs():
    forbidden = re.compile(r"torch\.(load|save)\(|\bimport (c?pickle|dill|joblib|shelve)\b|"
                           r"pickle\.(loads?|dumps?)|allow_pickle|trust_remote_code")
    files = [*ROOT.glob("flm_nb/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    assert len(files) > 40
    for path in files:
        for line in path.read_text("utf-8").splitlines():
            assert not forbidden.search(line), f"{path.name}: {line.strip()}"
