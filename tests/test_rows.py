"""A table that is streamed gives what a table in memory gives, in memory that does not grow."""
import csv
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from flm_nb import rows
from flm_nb.adapt.finetune import tune
from flm_nb.adapt.saved import load_tokenizer
from flm_nb.core import InputError, set_seed
from flm_nb.data.text import text_bundle
from flm_nb.plan import read_rows, split_rows
from flm_nb.rows import row_store, split_store, stream_rows
from flm_nb.tasks.heads import classification_loss, load_classifier
from flm_nb.train.loop import FitConfig, fit

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] good bad a the film very long".split()
CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=9)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLM_NB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def toy():
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)},
                                           unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def write_table(path, rows):
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            sheet = csv.writer(file, delimiter=",\t"[path.suffix == ".tsv"])
            sheet.writerows([("text", "label"), *rows])
        return
    objects = [{"text": text, "label": label} for text, label in rows]
    lines = "\n".join(map(json.dumps, objects))
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(objects), "utf-8")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
@settings(max_examples=40, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(CELLS, st.sampled_from("abc")), min_size=1, max_size=40),
       seed=st.integers(0, 5), share=st.floats(0, 0.5))
def test_streamed_rows_and_their_split_are_those_in_memory(suffix, rows, seed, share, toy,
                                                           tmp_path):
    path = tmp_path / f"table{suffix}"
    write_table(path, rows)
    texts, labels = read_rows(path, "text", "label")
    assert list(stream_rows(path, "text", "label")) == list(zip(texts, labels, strict=True))
    store = row_store(path, "text", "label", tokenizer=toy, max_length=5)
    assert [row.tolist() for row in store.read(range(len(store)))] == [
        toy.encode(text).ids[:5] for text in texts]
    expected = split_rows(texts, labels, valid_share=share, seed=seed)
    found = split_store(store, valid_share=share, seed=seed)
    for part in ("train", "valid", "test"):
        assert getattr(found, part).tolist() == getattr(expected, part).tolist()


def test_two_starts_at_once_leave_one_store_for_both(toy, tmp_path, monkeypatch):
    write_table(tmp_path / "table.csv", [("good film", "a"), ("bad film", "b")])
    write, ids = rows._write, iter([1, 2])

    def overtaken(folder, *rest):  # the other start ends while this one is at work
        monkeypatch.setattr(rows, "_write", write)
        write(folder, *rest)
        others.append(row_store(tmp_path / "table.csv", "text", "label", tokenizer=toy,
                                max_length=5))

    others = []
    monkeypatch.setattr(rows.os, "getpid", lambda: next(ids))
    monkeypatch.setattr(rows, "_write", overtaken)
    mine = row_store(tmp_path / "table.csv", "text", "label", tokenizer=toy, max_length=5)
    assert mine.path == others[0].path and mine.fingerprint == others[0].fingerprint
    assert [row.tolist() for row in mine.read([0, 1])] == [[5, 9], [6, 9]]
    assert len(list(mine.path.parent.parent.glob(".*"))) == 0  # nothing half lies around


@pytest.mark.parametrize(("content", "told"), [
    ("text,label\n", "holds no rows"), ("", "holds no rows"),
    ("text,label\ngood,1\n,1\n", "is an empty text in row 2 of films.csv"),
    ("text,label\ngood\n", "is an empty label in row 1"),
    ("words,label\ngood,1\n", "column='text' is not in films.csv; there is 'words', 'label'"),
    ("text,label\ngood,1,2\n", "has more cells in row 1"), (b"text,label\n\xff,1\n", "UTF-8")])
def test_streaming_complains_like_reading(content, told, tmp_path):
    path = tmp_path / "films.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=told):
        list(stream_rows(path, "text", "label"))
    with pytest.raises(InputError, match=told):
        read_rows(path, "text", "label")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder with a small BERT and a table with duplicates and texts that are cut."""
    work = tmp_path_factory.mktemp("films")
    (work / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(work / "vocab.txt")).save_pretrained(work / "base")
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64)).save_pretrained(work / "base")
    random = np.random.default_rng(0)
    write_table(work / "films.csv", [
        (" ".join(random.choice(WORDS[7:], random.integers(1, 30)))
         + f" {('bad', 'good')[i % 2]}", ("no", "yes")[i % 2]) for i in range(200)])
    return work


def test_the_weights_are_those_of_a_training_with_texts_in_memory(films, tmp_path):
    tune(data=films / "films.csv", text="text", label="label", model=films / "base", lr=1e-3,
         max_length=16, epochs=2, seed=3, out=tmp_path / "tuned", progress=False)
    texts, labels = read_rows(films / "films.csv", "text", "label")
    bundle = text_bundle(texts, labels, tokenizer=load_tokenizer(films / "base", 16),
                         max_length=16, valid_share=0.1, seed=3)
    set_seed(3)
    model = load_classifier(films / "base", ["no", "yes"])
    fit(model, bundle.train, FitConfig(lr=1e-3, epochs=2, seed=3), loss=classification_loss,
        progress=False)
    tuned = load_classifier(tmp_path / "tuned", ["no", "yes"]).state_dict()
    assert all(torch.equal(one, tuned[name]) for name, one in model.state_dict().items())


def test_a_blank_text_and_a_single_class_are_refused(films, tmp_path):
    job = {"text": "text", "label": "label", "model": films / "base", "max_length": 16,
           "out": tmp_path / "tuned", "progress": False}
    write_table(tmp_path / "blank.csv", [("good", "a"), ("  ", "b")])
    with pytest.raises(InputError, match="text=' ' is empty in row 2"):
        tune(data=tmp_path / "blank.csv", **job)
    write_table(tmp_path / "single.csv", [("good", "a"), ("bad", "a")])
    with pytest.raises(InputError, match="labels='a' is the only class"):
        tune(data=tmp_path / "single.csv", **job)


def test_a_second_start_reads_no_text_and_a_changed_file_is_seen(toy, tmp_path, monkeypatch):
    path = tmp_path / "films.csv"
    write_table(path, [("good film", "a"), ("bad film", "b")] * 50)
    first = row_store(path, "text", "label", tokenizer=toy, max_length=5)
    with monkeypatch.context() as patch:
        patch.setattr("flm_nb.rows.stream_rows", None)
        again = row_store(path, "text", "label", tokenizer=toy, max_length=5)
    assert again.path == first.path and again.keys.tolist() == first.keys.tolist()
    for change in ({"max_length": 4}, {"text": "label"}):
        other = row_store(**{"path": path, "text": "text", "label": "label", "tokenizer": toy,
                             "max_length": 5} | change)
        assert other.path != first.path
    path.write_text(path.read_text().replace("good", "long"))
    assert row_store(path, "text", "label", tokenizer=toy, max_length=5).path != first.path


def test_a_store_is_whole_or_absent(toy, tmp_path, monkeypatch):
    path = tmp_path / "films.csv"
    path.write_text("text,label\n" + "good film,1\n" * 50 + ",1\n")
    with pytest.raises(InputError, match="is an empty text in row 51"):
        row_store(path, "text", "label", tokenizer=toy, max_length=5)
    left = {one.name for one in (tmp_path / "cache" / "rows").glob("*")}
    assert left <= {"files"}


SMALL = """
import resource, sys
from flm_nb.rows import row_store, split_store
from flm_nb.plan import plan_batches
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[2])
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
before = peak()
store = row_store(sys.argv[1], "text", "label", tokenizer=tokenizer, max_length=16)
split = split_store(store, valid_share=0.1)
plan = plan_batches(store.lengths[split.train], batch_size=16, seed=0, epoch=0)
for rows in plan[:200]:
    store.read(split.train[rows])
print(len(store), peak() - before)
"""


def test_a_table_several_times_larger_than_the_memory_is_read(toy, tmp_path):
    path, rows = tmp_path / "large.csv", 80_000
    filler = "very long text of a film that nobody has seen " * 25
    with path.open("w") as file:
        file.write("text,label\n")
        for i in range(rows):
            file.write(f"{('good', 'bad')[i % 2]} film {i} {filler},{i % 2}\n")
    toy.save(str(tmp_path / "tokenizer.json"))
    quiet = os.environ | {"RAYON_NUM_THREADS": "2"}  # more threads hold more pieces at once
    start = time.perf_counter()
    said = subprocess.run(
        [sys.executable, "-c", SMALL, str(path), str(tmp_path / "tokenizer.json")], text=True,
        capture_output=True, check=True, env=quiet).stdout.split()
    first, size = time.perf_counter() - start, path.stat().st_size
    assert int(said[0]) == rows
    assert int(said[1]) < size / 3, f"{int(said[1]) / 1e6:.0f} of {size / 1e6:.0f} MB"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", SMALL, str(path), str(tmp_path / "tokenizer.json")],
                   check=True, capture_output=True)
    assert time.perf_counter() - start < first / 2
    print(said, size, first)
