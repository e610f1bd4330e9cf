"""Text of any size becomes blocks that lose nothing; a killed pretraining ends the same."""
import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

torch = pytest.importorskip("torch")
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from flm_nb.adapt.pretrain import (  # noqa: E402
    LanguageJob,
    find_source,
    llama_config,
    tune_language,
)
from flm_nb.adapt.saved import load_tuned  # noqa: E402
from flm_nb.cli import main  # noqa: E402
from flm_nb.core import InputError, file_sha256, pick_precision  # noqa: E402
from flm_nb.data import tokens  # noqa: E402
from flm_nb.data.blocks import language_parts, shuffled_rows  # noqa: E402
from flm_nb.data.tokens import open_corpus, token_store, train_bpe  # noqa: E402
from flm_nb.specs import Accelerator  # noqa: E402
from flm_nb.tasks.heads import load_language_model  # noqa: E402
from flm_nb.train.checkpoint import list_checkpoints  # noqa: E402

LM = {"method", "train_s", "train_cpu_s", "samples_per_s", "tokens_per_s", "accuracy",
      "macro_f1", "trainable_params", "resumed_step", "predicted_s", "predicted_cpu_s",
      "predicted_flop", "predicted_peak_bytes", "loss", "valid_loss", "bits_per_byte", "mfu"}
WORDS = "the of and a to in is you that it caf\u00e9 \u4e2d\u6587 don't 12 x=y".split()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the other cores are somebody else's, and toys need none
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    chance = random.Random(0)
    file = tmp_path_factory.mktemp("text") / "words.txt"
    file.write_text("".join(chance.choice(WORDS) + chance.choice(" \n") for _ in range(9000)),
                    encoding="utf-8")
    return file


def job(text, out, **options):
    return {"data": text, "model": "30k", "tokens": 6000, "max_length": 32, "lr": 3e-3,
            "batch_size": 4, "precision": "fp32", "progress": False, "out": str(out)} | options


# ------------------------------------------------------------------ packing
strings = some.text(alphabet=some.one_of(
    some.sampled_from("ab \n\t,.'1"),
    some.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=60)


@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=some.lists(strings, min_size=1, max_size=4), piece=some.integers(1, 12),
       share=some.floats(0, 0.9), block=some.integers(2, 9), batch=some.integers(1, 5),
       steps=some.one_of(some.none(), some.integers(1, 40)), seed=some.integers(0, 5))
def test_no_token_is_lost_or_doubled(texts, piece, share, block, batch, steps, seed,
                                     tmp_path_factory, monkeypatch):
    monkeypatch.setattr(tokens, "PIECE", piece)
    whole = "".join(texts).encode()
    folder = tmp_path_factory.mktemp("texts")
    files = [folder / f"{i}.txt" for i in range(len(texts))]
    for file, content in zip(files, texts, strict=True):
        file.write_bytes(content.encode())
    if not whole:
        with pytest.raises(InputError, match="holds no text"):
            open_corpus(files)
        return
    corpus = open_corpus(files, valid_share=share)
    wished = round((1 - share) * len(whole))
    assert wished - 3 <= corpus.cut <= wished
    whole[:corpus.cut].decode(), whole[corpus.cut:].decode()  # no character was cut
    assert b"".join(corpus.pieces(0, corpus.size)) == whole
    store = token_store(corpus)
    assert store.mapped().tobytes() == whole and store.cut == corpus.cut
    if store.cut < 2 or store.tokens - store.cut == 1:
        with pytest.raises(InputError, match="part of . tokens"):
            language_parts(store, block=block)
        return
    sides = language_parts(store, block=block, steps=steps)
    for side, content in zip(sides, (whole[:corpus.cut], whole[corpus.cut:]), strict=True):
        if side is None:
            assert content == b""
            continue
        plan = side.plan(batch_size=batch, seed=seed, epoch=0)
        dealt = np.concatenate(list(plan))
        counts = np.bincount(dealt, minlength=side.rows)
        for first in range(0, len(dealt) - side.rows + 1, side.rows):  # each whole pass
            assert len(set(dealt[first:first + side.rows])) == side.rows
        if side.steps is None:  # one pass
            assert set(counts) == {1}
        else:
            assert {len(rows) for rows in plan} == {batch} and len(plan) == steps
            assert counts.max() - counts.min() <= 1 and len(counts) == side.rows
        predicted = []
        for part in side.blocks(batch):
            ids = part["input_ids"]
            mask = part.get("attention_mask", torch.ones_like(ids))
            assert (ids[mask == 0] == 0).all() and ids.shape[1] == block
            predicted += ids[:, 1:][mask[:, 1:] == 1].tolist()
        assert bytes(predicted) == content[1:]


@settings(max_examples=60, deadline=None)
@given(size=some.integers(1, 3000), seed=some.integers(0, 9), epoch=some.integers(0, 3))
def test_every_place_has_a_row_of_its_own(size, seed, epoch):
    rows = shuffled_rows(np.arange(size), size, (seed, epoch))
    assert sorted(rows) == list(range(size))
    some_places = np.arange(size)[::-3]
    assert (shuffled_rows(some_places, size, (seed, epoch)) == rows[some_places]).all()


def test_the_order_is_no_pattern():
    size = 4096
    rows = shuffled_rows(np.arange(size), size, (0, 0))
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.08  # 5 standard errors, 1/sqrt(n)
    assert abs(np.corrcoef(rows, np.arange(size))[0, 1]) < 0.08
    fixed = (rows == np.arange(size)).sum()
    assert fixed < 12  # a random order keeps one in its place, 12 at p < 1e-8
    other = shuffled_rows(np.arange(size), size, (0, 1))
    assert (rows == other).sum() < 12  # the next pass has another order


# ------------------------------------------------------------------ the store
def test_pieces_leave_no_trace_in_the_tokens(tmp_path, monkeypatch):
    chance = random.Random(1)
    gaps = [" ", " ", " ", "  ", "\n", "\n\n", "\n    ", "\t", "\u00a0 ", " \u00a0"]
    for trial in range(20):
        words = "".join(chance.choice(WORDS) + chance.choice(gaps) for _ in range(400))
        (tmp_path / f"{trial}.txt").write_bytes(words.encode())
        corpus = open_corpus([tmp_path / f"{trial}.txt"], valid_share=0)
        tokenizer = train_bpe(corpus, 300)
        monkeypatch.setattr(tokens, "PIECE", chance.randint(60, 300))
        store = token_store(corpus, tokenizer)
        whole = tokenizer.encode(words, add_special_tokens=False).ids
        assert store.read(0, store.tokens).tolist() == whole
        assert tokenizer.decode(whole) == words
        assert len(list(corpus.pieces(0, corpus.size))) > 3


def test_padding_and_truncation_of_a_tokenizer_do_not_reach_the_text(text):
    tokenizer = train_bpe(open_corpus([text]), 300)
    plain = token_store(open_corpus([text]), tokenizer)
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    assert token_store(open_corpus([text]), tokenizer) == plain and plain.tokens > 10_000


def test_a_second_start_neither_reads_nor_tokenizes(text, tmp_path, monkeypatch):
    copy = tmp_path / "copy.txt"
    copy.write_bytes(text.read_bytes() + b"other")
    now = time.time_ns
    monkeypatch.setattr(tokens.time, "time_ns", lambda: now() + 10**10)  # ten seconds later
    first = token_store(open_corpus([copy]))

    def never(*_):
        raise AssertionError("it read or tokenized again")

    with monkeypatch.context() as patched:
        patched.setattr(tokens, "_checked_sha256", never)
        patched.setattr(tokens, "_numbers", never)
        assert token_store(open_corpus([copy])) == first
    content = copy.read_bytes()
    stamp = copy.stat()
    copy.write_bytes(b"X" + content[1:])  # same size, and the old time of change put back
    os.utime(copy, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    changed = token_store(open_corpus([copy]))
    assert changed.fingerprint != first.fingerprint
    assert changed.mapped().tobytes() == b"X" + content[1:]


def test_a_store_that_was_cut_off_is_made_again(text):
    store = token_store(open_corpus([text], valid_share=0.17))
    store.path.write_bytes(store.path.read_bytes()[:-3])
    again = token_store(open_corpus([text], valid_share=0.17))
    assert again.mapped().tobytes() == text.read_bytes()


def test_a_file_just_written_is_not_trusted(tmp_path):
    file = tmp_path / "young.txt"
    file.write_text("one two")
    one = open_corpus([file])
    file.write_text("two one")
    assert open_corpus([file]).fingerprint != one.fingerprint


MEMORY = """
import resource, sys
from tokenizers import Tokenizer, models, pre_tokenizers
from flm_nb.data import blocks, tokens
here = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
line = " ".join(f"word{i % 97}" for i in range(2000)).encode() + b"\\n"
def write(path, size):
    with open(path, "wb") as file:
        for i in range(size // len(line)):
            file.write(b"%d " % i + line)
write(sys.argv[1], 240_000_000)
write(sys.argv[2], 16_000_000)
words = Tokenizer(models.WordLevel({f"word{i}": i for i in range(97)} | {"?": 97}, "?"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
before = here()
for path, tokenizer in ((sys.argv[1], None), (sys.argv[2], words)):
    store = tokens.token_store(tokens.open_corpus([path]), tokenizer)
    train, valid = blocks.language_parts(store, block=512)
    plan = train.plan(batch_size=16, seed=0, epoch=0)
    for rows in plan[: 2000 if tokenizer is None else 300]:
        train.batch(rows)
    print(here() - before, store.tokens)
"""


def test_memory_stays_bounded_whatever_the_size_of_the_text(tmp_path):
    told = subprocess.run([sys.executable, "-c", MEMORY, tmp_path / "a", tmp_path / "b"],
                          capture_output=True, text=True, check=True).stdout
    for file in "ab":
        (tmp_path / file).unlink()
    (plain, count), (worded, _) = (map(int, row.split()) for row in told.splitlines())
    assert count > 239_000_000
    assert plain < 60e6  # a quarter of the text, and of its 240 MB of tokens
    assert worded < 250e6  # what `tokenizers` holds for the 2 MB that are tokenized at once


# ------------------------------------------------------------------ the run
def test_killed_at_random_moments_it_ends_in_the_same_bytes(text, tmp_path):
    settings = job(text, tmp_path / "killed", bpe=280, tokens=12_000, save_every=5, resume=True)
    alone = tune_language(**settings | {"out": str(tmp_path / "alone")})
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flm_nb.adapt.pretrain"])
    moments, killed = random.Random(0), 0
    for _ in range(20):
        if killed == 3:
            break
        child = context.Process(target=tune_language, kwargs=settings)
        child.start()
        seen = len(list_checkpoints(tmp_path / "killed"))
        while child.is_alive() and len(list_checkpoints(tmp_path / "killed")) == seen < 2:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.25))
        killed += child.is_alive()
        child.kill()
        child.join()
        if (tmp_path / "killed" / "run.json").exists():
            break
    assert killed >= 2, "the run was over before it could be killed twice"
    resumed = tune_language(**settings)
    assert resumed["resumed_step"] > 0
    assert all(resumed[name] == alone[name] for name in ("loss", "valid_loss"))
    for file in ("model.safetensors", "config.json", "tokenizer.json", "flm.json"):
        assert file_sha256(tmp_path / "alone" / file) == file_sha256(tmp_path / "killed" / file)
    assert not list_checkpoints(tmp_path / "killed")
    with pytest.raises(InputError, match="tokens=6000 differs from 12000 of the saved run"):
        tune_language(**settings | {"tokens": 6000})


def ask(capsys, *words):
    assert main([*map(str, words), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def two(text):
    """Two files: the text, and its words backwards."""
    more = text.with_name("more.txt")
    more.write_text(" ".join(reversed(text.read_text("utf-8").split())), encoding="utf-8")
    return [str(text), str(more)]


def test_the_command_answers_every_key(two, tmp_path, capsys):
    words = ["tune", "--task", "lm", "--data", *two, "--model", "30k", "--tokens", "10k",
             "--max-length", "32", "--batch-size", "8", "--out", tmp_path / "out"]
    answer = ask(capsys, *words)
    assert set(answer) == LM
    assert answer["accuracy"] is None and answer["macro_f1"] is None
    assert answer["resumed_step"] == 0 and answer["method"] == "full"
    blocks = 10_000 // (8 * 32) * 8
    assert answer["samples_per_s"] * answer["train_s"] == pytest.approx(blocks)
    assert answer["tokens_per_s"] * answer["train_s"] == pytest.approx(blocks * 32, rel=0.01)
    peak = Accelerator.named("here").peak(pick_precision())
    assert answer["mfu"] == pytest.approx(answer["predicted_flop"] / answer["train_s"] / peak)
    again = ask(capsys, *words, "--resume")
    assert again["resumed_step"] == blocks // 8 and again["mfu"] is None
    assert again["loss"] == answer["loss"]
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "flm tune --task lm --data words.txt more.txt --model 30k --out DIR --tokens" in card
    assert str(tmp_path) not in card and str(Path(two[0]).parent) not in card
    with pytest.raises(InputError, match="holds a language model"):
        load_tuned(tmp_path / "out")


def test_the_tail_scores_as_it_says(two, tmp_path):
    answer = tune_language(**job(two, tmp_path, tokens=40_000, lr=0.01, batch_size=8,
                                 valid_share=0.2))
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert sum(weight.numel() for weight in model.parameters()) == answer["trainable_params"]
    whole = b"".join(Path(file).read_bytes() for file in two)
    tail = torch.tensor(list(whole[round(0.8 * len(whole)):]))
    nats = 0.0
    with torch.inference_mode():
        for first in range(0, len(tail) - 1, 31):
            ids = tail[first:first + 32][None]
            nats += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    assert answer["valid_loss"] == pytest.approx(nats / (len(tail) - 1), rel=1e-4)  # fp32
    assert answer["bits_per_byte"] == pytest.approx(answer["valid_loss"] / math.log(2))
    counts = np.bincount(tail, minlength=256) / len(tail)
    entropy = -(counts[counts > 0] * np.log2(counts[counts > 0])).sum()
    assert answer["bits_per_byte"] < entropy  # better than knowing how often each byte occurs


def test_a_folder_brings_its_vocabulary_its_tokenizer_and_its_weights(text, tmp_path):
    shape = llama_config(3e4, vocab=320, block=64)
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / "config.json").write_text(json.dumps(shape))
    for name in ("bytes", "bytes/config.json"):
        tune_language(**job(text, tmp_path / "one", model=tmp_path / name))
        made = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
        assert made.config.vocab_size == 320 and not (tmp_path / "one/tokenizer.json").exists()

    known = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", *WORDS])}, "?"))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=known, unk_token="?")
    base = load_language_model(llama_config(3e4, vocab=64, block=64), seed=3)
    base.save_pretrained(tmp_path / "words")
    wrapped.save_pretrained(tmp_path / "words")
    frozen = tune_language(**job(text, tmp_path / "two", model=tmp_path / "words", lr=1e-12))
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    assert all(torch.allclose(old, new, atol=1e-6) for old, new in zip(
        base.parameters(), made.parameters(), strict=True))  # it began with those weights
    tail = text.read_bytes()[round(0.9 * text.stat().st_size):]
    ratio = frozen["bits_per_byte"] / (frozen["valid_loss"] / math.log(2))
    assert ratio == pytest.approx(len(tail.split()) / len(tail), rel=0.01)  # a word, a token
    back = AutoTokenizer.from_pretrained(tmp_path / "two")
    assert back("the of")["input_ids"] == [1, 2]
    tune_language(**job(text, tmp_path / "two"))  # bytes into the same folder
    assert not (tmp_path / "two" / "tokenizer.json").exists()


@pytest.mark.parametrize("wish", ["30k", "300k", "1M", "10M", "1B", "70B"])
@pytest.mark.parametrize("vocab", [256, 8192])
def test_a_size_becomes_a_model_of_about_that_size(wish, vocab):
    wished = find_source(wish).params
    if vocab * 32 > wished / 2:
        with pytest.raises(InputError, match="is no size that a Llama with 8,192 tokens"):
            llama_config(wished / 10, vocab=vocab)
        return
    with torch.device("meta"):
        model = load_language_model(llama_config(wished, vocab=vocab))
    total = sum(weight.numel() for weight in model.parameters())
    assert total == pytest.approx(wished, rel=0.1)


# ------------------------------------------------------------------ errors
@pytest.mark.parametrize("words, told", [
    ({"--tokens": "100"}, "tokens=100.0 are fewer than one step of 16 blocks of 128"),
    ({"--tokens": None}, "tokens=None is missing"), ({"--model": "10"}, "is no size"),
    ({"--data": "missing.txt"}, "cannot be read"), ({"--data": "."}, "cannot be read"),
    ({"--model": "nowhere"}, "nowhere"), ({"--model": "all-MiniLM-L6-v2"}, "reads both ways"),
    ({"--text": "text"}, "text='text' is not for --task lm"), ({"--r": "4"}, "r=4 is not for"),
    ({"--epochs": "2"}, "epochs=2 is not for --task lm"), ({"--valid-share": "1"}, "share"),
    ({"--max-length": "1"}, "max_length=1"), ({"--batch-size": "0"}, "batch_size=0"),
    ({"--bpe": "100"}, "bpe=100"), ({"--model": "1000T"}, "is no size that a Llama"),
    ({"--model": "gpt2", "--max-length": "2000", "--tokens": "1M"}, "longer than the 1,024"),
    ({"--model": "90B"}, "GB"), ({"--task": "text"}, "tokens=6000.0 is not for --task text")])
def test_errors_name_the_field_and_nothing_is_begun(words, told, text, tmp_path, capsys):
    given = {"--task": "lm", "--data": text, "--model": "30k", "--tokens": "6000",
             "--out": tmp_path / "out"} | words
    line = [str(part) for name, value in given.items() if value is not None
            for part in (name, value)]
    assert main(["tune", *line, "--json"]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content, told", [
    (b"", "holds no text"), (b"a\0b", "zero byte at byte 1"), (b"abc\xff", "UTF-8 at byte 3"),
    (b"a", "part of 1 tokens"), ("caf\u00e9".encode()[:-1], "UTF-8")])
def test_what_is_no_text_is_refused(content, told, tmp_path):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(InputError, match=told):
        LanguageJob(data=tmp_path / "t.txt", model="30k", tokens=6000, valid_share=0)


def test_a_vocabulary_that_is_too_small_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(llama_config(3e4, vocab=200)))
    with pytest.raises(InputError, match="vocab_size=200 is smaller than the 256 values"):
        LanguageJob(data=text, model=tmp_path, tokens=6000)
    (tmp_path / "config.json").write_text(json.dumps(llama_config(3e4, vocab=270)))
    with pytest.raises(InputError, match="vocab_size=270 is smaller than the 280 values"):
        LanguageJob(data=text, model=tmp_path, tokens=6000, bpe=280)
