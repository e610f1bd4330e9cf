"""Workers share a search, die in the middle of it, and nothing is lost, doubled or hidden."""
import csv
import multiprocessing
import random
import signal
import time
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from flm_nb.adapt.crew import Crew, shared_seconds
from flm_nb.adapt.finetune import TextJob, tune
from flm_nb.adapt.search import _Trainer, search
from flm_nb.core import InputError
from flm_nb.count.finetune import predict_finetune
from flm_nb.train.checkpoint import list_checkpoints
from flm_nb.train.guard import NonFiniteLoss

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] good bad a the film very long".split()
HALVING = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    work = tmp_path_factory.mktemp("search")
    (work / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(work / "vocab.txt"), model_max_length=64).save_pretrained(
        work / "base")
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64)).save_pretrained(work / "base")
    chance = random.Random(0)
    with open(work / "films.csv", "w", newline="") as file:
        sheet = csv.writer(file)
        sheet.writerow(["text", "label"])
        for i in range(200):
            filler = " ".join(chance.choices(WORDS[7:], k=chance.randint(2, 10)))
            sheet.writerow([f"{filler} {('bad', 'good')[i % 2]} film {i}", i % 2])
    return {"data": work / "films.csv", "text": "text", "label": "label",
            "model": work / "base", "space": {"lr": (1e-4, 1e-2), "batch_size": [8, 16]},
            "trials": 3, "epochs": 2, "max_length": 32, "finalists": 1, "seeds": 2,
            "valid_share": 0.2, "test_share": 0.2, "precision": "fp32"}


def trials_in(folder, name):
    """What the journal itself says."""
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / "journal.log")))
    return optuna.load_study(study_name=name, storage=storage).trials


def start(job, barrier=None):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flm_nb.adapt.search"])
    child = context.Process(target=take_part, args=(job, barrier))
    child.start()
    return child


def take_part(job, barrier):
    if barrier:
        barrier.wait()
    search(**job)


def test_two_workers_share_one_search(job, tmp_path):
    job = job | {"out": tmp_path, "trials": 8, "usd_per_hour": 3.6}
    barrier = multiprocessing.get_context("forkserver").Barrier(2)
    began = time.time()
    crew = [start(job, barrier) for _ in range(2)]
    for child in crew:
        child.join()
        assert child.exitcode == 0
    wall = time.time() - began
    found = search(**job)
    held = trials_in(tmp_path, "trials")
    assert len(held) == 8 and {trial.user_attrs["worker"] for trial in held} == {0, 1}
    assert len({trial.params["lr"] for trial in held}) == 8  # nobody repeats another's draws
    again = trials_in(tmp_path, "reruns")
    assert sorted(trial.user_attrs["seed"] for trial in again) == [1, 2]
    assert 0 < found.spent["seconds"] < wall  # a shared second is paid once
    assert found.spent["usd"] == pytest.approx(found.spent["seconds"] / 1000)
    assert sum(row["cpu_s"] for row in found.trials) == pytest.approx(found.spent["cpu_s"])
    judged = [trial.user_attrs["judged"] for trial in again]
    assert found.score.value == np.mean(judged) and found.score.n == 2
    assert found.score_per_usd.value == pytest.approx(np.mean(
        [row["judged"] / row["usd"] for row in found.trials if row["list"] == "reruns"]))
    assert "trials</td>" in found._repr_html_() and "USD" in repr(found)


def test_killed_and_called_again_it_goes_on_where_it_was(job, tmp_path, capsys):
    job = job | {"space": {"lr": (1e-3, 1e-2)}, "trials": 2, "epochs": 8, "batch_size": 8}
    alone = search(**job, out=tmp_path / "alone")
    child = start(job | {"out": tmp_path / "killed"})
    place = tmp_path / "killed" / "trials" / "1"
    while child.is_alive() and len(list_checkpoints(place)) == 0:
        time.sleep(0.005)
    child.kill()
    child.join()
    assert list_checkpoints(place), "the run was over before it could be killed"
    found = search(**job, out=tmp_path / "killed")
    assert "trial 1 was left running by a worker that is gone" in capsys.readouterr().err
    left, lost, heir = trials_in(tmp_path / "killed", "trials")
    assert [one.state.name for one in (left, lost, heir)] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert heir.user_attrs["resumed_step"] > 0 and not place.exists()
    whole = trials_in(tmp_path / "alone", "trials")[1]
    assert heir.params == whole.params and heir.value == whole.value
    assert heir.intermediate_values == whole.intermediate_values
    assert found.settings == alone.settings and found.score == alone.score
    assert found.spent["cpu_s"] > sum(  # what the dead worker did is paid for too
        row["cpu_s"] for row in found.trials if row["state"] == "complete")


def test_a_pruned_trial_leaves_cleanly_and_costs_less(job, tmp_path):
    before = signal.getsignal(signal.SIGINT), torch.get_num_threads()
    found = search(**job | {"space": {"lr": [1e-7, 3e-3]}, "trials": 6, "epochs": 6},
                   out=tmp_path, pruner=HALVING)
    assert (signal.getsignal(signal.SIGINT), torch.get_num_threads()) == before
    pruned = [row for row in found.trials if row["state"] == "pruned"]
    whole = [row for row in found.trials if row["state"] == "complete"]
    assert pruned and all(row["epochs done"] < 6 and row["lr"] == 1e-7 for row in pruned)
    assert np.mean([row["cpu_s"] for row in pruned]) < np.mean([row["cpu_s"] for row in whole])
    assert found.settings["lr"] == 3e-3 and found.score.value > 0.9
    assert not list((tmp_path / "trials").iterdir())


def test_more_trials_and_seeds_can_be_asked_for_later(job, tmp_path):
    def predict(**settings):  # this machine is measured in what it would choose itself
        return predict_finetune(**settings | {"precision": "auto"})

    first = search(**job, out=tmp_path, predict=predict)
    assert first.usd is None and first.score_per_usd is None and "no price" in repr(first)
    more = search(**job | {"trials": 4, "seeds": 3}, out=tmp_path)
    rows = [(row["list"], row["state"]) for row in more.trials]
    assert len([one for one in rows if one[0] == "trials"]) == 4
    assert more.score.n == 3 and rows.count(("reruns", "complete")) in (3, 5)
    assert more.predicted["cpu_s"] / first.predicted["cpu_s"] == pytest.approx(
        len(rows) / len(first.trials))


def test_the_prediction_is_for_the_rows_that_are_trained_on(job, tmp_path):
    asked = []

    def predict(**settings):
        asked.append(settings)
        return SimpleNamespace(summary=lambda: {"predicted_s": 1.0, "predicted_cpu_s": 2.0})

    found = search(**job | {"trials": 1}, out=tmp_path, predict=predict)
    assert found.predicted == {"seconds": 3.0, "cpu_s": 6.0, "usd": None}  # 1 + 2 seeds
    assert {settings["batch_size"] for settings in asked} == {8, 16}
    learned = TextJob(job["data"], "text", "label", job["model"], 32, 0,
                      asked[0]["valid_share"], "full", 8)
    assert len(learned.train.labels) == 120


def test_the_rows_that_judge_choose_nothing(job, tmp_path, monkeypatch):
    seen = []
    original = _Trainer.rate

    def spy(self, model, part):
        seen.append(frozenset(part.ids.rows.tolist()))
        return original(self, model, part)

    monkeypatch.setattr(_Trainer, "rate", spy)
    search(**job | {"trials": 1, "epochs": 1}, out=tmp_path)
    steering, judging = sorted(set(seen), key=seen.index)
    assert len(steering) == len(judging) == 40 and not steering & judging
    assert seen.count(judging) == 2  # once for each seed, never for a trial


def test_the_best_settings_are_options_of_tune(job, tmp_path):
    found = search(**job | {"space": {"method": ["lora"], "r": [2, 4], "dropout": [0.0],
                                      "max_length": (16, 24)}, "trials": 1, "epochs": 1},
                   out=tmp_path / "search")
    tuned = tune(**found.settings, **{name: job[name] for name in (
        "data", "text", "label", "model", "precision")}, out=tmp_path / "tuned", progress=False)
    assert tuned["method"] == "lora" and found.settings["r"] in (2, 4)


@pytest.mark.parametrize(("change", "words"), [
    ({"space": {}}, "space={} is empty; name some of lr"),
    ({"space": {"learning_rate": (1e-5, 1e-3)}}, "cannot be searched; near: lr"),
    ({"space": {"lr": (1e-3, 1e-5)}}, "lr=.* is no range .low, high. with low below high"),
    ({"space": {"lr": (1e-3,)}}, "lr=.* is no range"),
    ({"space": {"lr": []}}, "lr=.. is no range; write .low, high. or .choices"),
    ({"space": {"lr": 1e-3}}, "lr=0.001 is no range"),
    ({"space": {"lr": (0.0, 1e-3)}}, "lr=0.0 is not between 1e-12 and 10"),
    ({"space": {"batch_size": (8.0, 16.0)}}, "batch_size=8.0 is not a whole number from 1"),
    ({"space": {"method": ["full", "lore"]}}, "method='lore' is unknown; write full or lora"),
    ({"space": {"max_length": [32, 4096]}}, "max_length=4096 is not from 3 to the 64"),
    ({"space": {"dropout": [1.5]}}, "dropout=1.5 is not from 0 up to"),
    ({"trials": 0}, "trials=0 is not a whole number from 1"),
    ({"seeds": 1}, "seeds=1 is not a whole number from 2"),
    ({"finalists": 0}, "finalists=0 is not"),
    ({"epochs": 0}, "epochs=0 is not a whole number from 1"),
    ({"score": "f1"}, "score='f1' is unknown; write accuracy or macro_f1"),
    ({"usd_per_hour": 0}, "usd_per_hour=0 is no price above 0"),
    ({"test_share": 0}, "test_share=0 leaves 0 rows to score"),
    ({"valid_share": 0.8}, "valid_share=0.8 and test_share=0.2 leave no row to learn from"),
    ({"data": "nowhere.csv"}, "nowhere.csv"),
])
def test_bad_input_is_named_before_anything_runs(job, change, words, tmp_path):
    with pytest.raises(InputError, match=words):
        search(**job | {"out": tmp_path / "search"} | change)
    assert not (tmp_path / "search").exists()


def test_a_folder_of_another_search_is_refused(job, tmp_path):
    search(**job | {"trials": 1, "epochs": 1}, out=tmp_path)
    for change, words in [({"epochs": 2}, "epochs=2 differs from 1"), (
            {"space": {"lr": (1e-4, 1e-3)}, "batch_size": 16}, "space=.* differs from"),
            ({"seed": 1}, "seed=1 differs from 0"), ({"test_share": 0.1}, "test_share=0.1")]:
        with pytest.raises(InputError, match=words):
            search(**job | {"trials": 1, "epochs": 1} | change, out=tmp_path)


def test_settings_that_cannot_be_trained_end_their_trial_alone(tmp_path):
    space = {"x": optuna.distributions.IntDistribution(0, 9)}

    def train(study, trial, folder):
        if trial.number == 1:
            raise NonFiniteLoss("loss=nan")
        if trial.number == 3:
            raise KeyError("a mistake")
        return 1.0

    crew = Crew(tmp_path, {})
    with crew.at_work():
        study = crew.open_list("trials", optuna.pruners.NopPruner(), 0)
        crew.work(study, 3, space, train)
        states = [trial.state.name for trial in study.trials]
        assert states == ["COMPLETE", "PRUNED", "COMPLETE"]
        assert study.trials[1].user_attrs["stopped"] == "loss=nan"
        with pytest.raises(KeyError):
            crew.work(study, 4, space, train)
        assert study.trials[3].state.name == "FAIL"


def test_workers_alive_keep_what_they_took(tmp_path, capsys):
    space = {"x": optuna.distributions.IntDistribution(0, 9)}
    one, two = Crew(tmp_path, {}), Crew(tmp_path, {})
    with one.at_work(), two.at_work():
        assert (one.number, two.number) == (0, 1)
        mine = one.take(one.open_list("trials", optuna.pruners.NopPruner(), 0), 2, space)
        yours = two.take(two.open_list("trials", optuna.pruners.NopPruner(), 0), 2, space)
        assert {mine.number, yours.number} == {0, 1}
    assert capsys.readouterr().err == ""


def test_shares_of_a_machine_add_up_to_its_time():
    chance = np.random.default_rng(0)
    begun = chance.uniform(0, 10, 50)
    until, hosts = begun + chance.exponential(1, 50), chance.choice(["a", "b"], 50)
    shares = shared_seconds(hosts, begun, until)
    grid = np.arange(0, 20, 1e-3) + 5e-4
    busy = sum(((begun[hosts == host, None] <= grid) & (grid < until[hosts == host, None]))
               .any(0).sum() * 1e-3 for host in "ab")
    assert shares.sum() == pytest.approx(busy, abs=0.05)  # 1 ms for each of 50 ends
    assert (shares > 0).all() and (shares <= until - begun + 1e-12).all()
