"""Text and bytes reach a model whole: nothing lost, nothing doubled, nothing leaked."""
import csv
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("datasets")
from transformers import AutoTokenizer  # noqa: E402

from flm_nb.core import InputError, model_folder  # noqa: E402
from flm_nb.data.language import (  # noqa: E402
    BytePart,
    compressor_bits_per_byte,
    language_bundle,
    library_files,
    unigram_bits_per_byte,
)
from flm_nb.data.text import (  # noqa: E402
    collate,
    excerpt,
    load_table,
    look,
    normal_form,
    reviews,
    text_bundle,
)

ROWS = [("good film", "up"), ("bad film", "down"), ("fine", "up"), ("dull", "down")]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_folder("all-MiniLM-L6-v2"))


def write(path):
    records = [{"words": text, "mood": label} for text, label in ROWS]
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, ("words", "mood"),
                                  delimiter="\t" if path.suffix == ".tsv" else ",")
            rows.writeheader()
            rows.writerows(records)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(records).to_parquet(str(path))
    else:
        datasets.Dataset.from_list(records).save_to_disk(str(path))
    return path


# ------------------------------------------------------------------ tables
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.json", "t.parquet", "folder"])
def test_every_form_of_a_table_gives_the_same_rows(tmp_path, name):
    table = load_table(write(tmp_path / name), "words", "mood")
    assert list(zip(table.texts, table.labels, strict=True)) == ROWS
    assert load_table(tmp_path / name, "words").labels is None
    with pytest.raises(InputError, match="'moood'.*mood"):
        load_table(tmp_path / name, "words", "moood")


def test_class_numbers_of_datasets_become_names_and_parts_are_chosen(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"),
                                  "label": datasets.ClassLabel(names=["no", "yes"])})
    part = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    datasets.DatasetDict({"train": part, "test": part.select([0])}).save_to_disk(tmp_path / "d")
    assert load_table(tmp_path / "d", "text", "label").labels == ("yes", "no")
    assert load_table(tmp_path / "d", "text", "label", part="test").texts == ("a",)
    with pytest.raises(InputError, match="part='dev' is not in d; there is train, test"):
        load_table(tmp_path / "d", "text", "label", part="dev")


@pytest.mark.parametrize("name, content, words", [
    ("t.csv", b"", "holds no rows"), ("t.csv", b"words,mood\n", "holds no rows"),
    ("t.csv", "words\ncaf\u00e9\n".encode("latin-1"), "is not UTF-8"),
    ("t.csv", b"words,mood\n,up\n", "is an empty text in row 1"),
    ("t.jsonl", b'{"words": "a"\n', "is not valid JSON"), ("t.txt", b"words", "is no .csv"),
    ("t.parquet", b"not parquet", "cannot be read"), ("missing.csv", None, "cannot be read")])
def test_broken_files_get_one_sentence(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        load_table(tmp_path / name, "words", "mood")
    assert "\n" not in str(caught.value)


def test_a_hub_name_without_network_is_an_error_and_not_a_minute(monkeypatch):
    def no_network(*_):
        raise OSError("no network in this test")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    with pytest.raises(InputError, match="could not be fetched from the hub"):
        load_table("nobody/nothing-of-this-name", "text")


def test_reviews_are_balanced_distinct_and_repeatable():
    short = reviews("rotten")
    assert len(short) == len(set(short.texts)) and short.labels.count("positive") == 4265
    everything = reviews("all")
    assert (len(everything), everything.dropped) == (33_434, 96)
    assert reviews("all", 500, seed=3) == reviews("all", 500, seed=3)
    assert reviews("all", 500, seed=3).texts != reviews("all", 500, seed=4).texts
    for bad in (1, 0, -5, 2.5, True):
        with pytest.raises(InputError, match="limit"):
            reviews("rotten", bad)


# ------------------------------------------------------------------ bundles
def bundle_of(tokenizer, texts, labels, **options):
    options = {"max_length": 16, "valid_share": 0.25, "test_share": 0.25} | options
    return text_bundle(texts, labels, tokenizer=tokenizer, **options)


@settings(max_examples=40, deadline=None)
@given(rows=some.lists(some.tuples(some.sampled_from("abcdefghijklmnop"), some.booleans()),
                       min_size=12, max_size=60), seed=some.integers(0, 9))
def test_every_row_is_on_one_side_and_no_text_on_two(tokenizer, rows, seed):
    texts = [word * 3 for word, _ in rows]
    labels = [str(kind) for _, kind in rows]
    if len(set(labels)) == 2 and len(set(texts)) > 5:
        bundle = bundle_of(tokenizer, texts, labels, seed=seed)
        parts = (bundle.train, bundle.valid, bundle.test)
        pairs = sorted((text, bundle.label_names[kind]) for part in parts
                       for text, kind in zip(part.texts, part.labels, strict=True))
        assert pairs == sorted(zip(texts, labels, strict=True))
        assert bundle.report.leaks == 0
        assert bundle.report.duplicates == len(texts) - len(set(texts))
        owners = {text: {kind for other, kind in zip(texts, labels, strict=True)
                         if other == text} for text in texts}
        assert bundle.report.conflicts == sum(len(kinds) == 2 for kinds in owners.values())


def test_a_plan_uses_every_training_row_once_and_batches_decode_to_their_texts(tokenizer):
    table = reviews("rotten", 300)
    part = bundle_of(tokenizer, table.texts, table.labels, max_length=100).train
    plan = part.plan(batch_size=16, seed=1, epoch=2)
    assert sorted(np.concatenate(plan)) == list(range(len(part)))
    for rows in plan:
        batch = part.batch(rows)
        longest = max(part.lengths[rows])
        assert batch["input_ids"].shape == (len(rows), -(-longest // 8) * 8)
        assert batch["attention_mask"].sum(1).tolist() == part.lengths[rows].tolist()
        for i, row in enumerate(rows):
            ids = batch["input_ids"][i][batch["attention_mask"][i] == 1].tolist()
            assert ids == tokenizer(part.texts[row])["input_ids"]
            assert batch["labels"][i] == part.labels[row]


def test_truncation_keeps_the_last_special_token(tokenizer):
    bundle = bundle_of(tokenizer, ["w " * n for n in range(1, 41)], [n % 2 for n in range(40)],
                       max_length=10)
    assert bundle.report.cut == np.mean([n + 2 > 10 for n in range(1, 41)])
    assert all(one[-1] == tokenizer.sep_token_id for one in bundle.train.ids)


@pytest.mark.parametrize("texts, labels, options, words", [
    (["a", "b"], [0], {}, "labels=1 do not match 2 texts"),
    (["a", " ", "c"], [0, 1, 0], {}, "text=' ' is empty in row 2"),
    (["a", None, "c"], [0, 1, 0], {}, "text=None is empty in row 2"),
    (["a", "b", "c"], [1, 1, 1], {}, "only class"),
    (["a", "b", "c"], [0, 1, 2], {"label_names": "01"}, "label=2 of row 3"),
    (["a", "b", "c"], [0, 1, -1], {"label_names": ["0", "1"]}, "label=-1 of row 3"),
    (["a", "b", "c"], [0, 1, 0], {"max_length": 2}, "max_length=2"),
    (["a", "b", "c"], [0, 1, 0], {"valid_share": 1.5}, "valid_share=1.5"),
    (["a", "b", "c"], [0, 1, 0], {"valid_share": 0.9}, "valid_share=0.9 leaves none"),
    ([], [], {}, "only class"),
])
def test_bad_rows_are_refused_by_name(tokenizer, texts, labels, options, words):
    with pytest.raises(InputError, match=re.escape(words)):
        bundle_of(tokenizer, texts, labels, **options)


def test_numbered_classes_keep_their_order(tokenizer):
    texts = [f"text {i}" for i in range(24)]
    names = bundle_of(tokenizer, texts, [i % 12 for i in range(24)]).label_names
    assert names == tuple(map(str, range(12)))  # 10 comes after 9, not after 1


@given(some.text(alphabet="aB7'é-_ .,好\n", max_size=300), some.integers(1, 20))
def test_an_excerpt_never_shows_more_words_than_allowed(text, words):
    shown = excerpt(text, words)
    assert text.startswith(shown.removesuffix(" …"))
    assert len(re.findall(r"[a-z0-9']+", shown.lower())) <= words


def test_a_look_shows_at_most_twelve_words(tokenizer):
    table = reviews("imdb", 60)
    view = look(bundle_of(tokenizer, table.texts, table.labels, max_length=64), tokenizer)
    assert all(len(re.findall(r"[a-z0-9']+", words.lower())) <= 12 for *_, words in view.rows)
    assert "<table>" in view._repr_html_() and "alt=" in view._repr_html_()


def test_the_normal_form_forgets_case_punctuation_and_spaces():
    assert normal_form("  Fine, FILM!\n") == normal_form("fine film") == "finefilm"
    assert normal_form("電影 好!") == "電影好"


def test_collate_keeps_every_token():
    ids = [np.arange(1, n) for n in (3, 9, 18)]
    batch = collate(ids, np.array([0, 1, 0]), pad_id=7)
    assert batch["input_ids"].shape == (3, 24) and batch["input_ids"][0, 2:].unique() == 7
    for row, one in enumerate(ids):
        assert batch["input_ids"][row][: len(one)].tolist() == one.tolist()


# ------------------------------------------------------------------ bytes
@settings(deadline=None)
@given(data=some.binary(min_size=2, max_size=400), block=some.integers(2, 50),
       batch_size=some.integers(1, 5))
def test_blocks_in_order_lose_and_double_no_byte(data, block, batch_size):
    part = BytePart(np.frombuffer(data, np.uint8), block, ())
    rows = [row for batch in part.blocks(batch_size) for row in batch["input_ids"]]
    predicted = torch.cat([row[1:] for row in rows])
    assert bytes(predicted.tolist()) == data[1:]
    assert all(2 <= len(row) <= block for row in rows)
    before = torch.cat([row[:-1] for row in rows])  # what each was predicted from
    assert bytes(before.tolist()) == data[:-1]


@given(step=some.integers(0, 10_000), seed=some.integers(0, 99))
def test_random_blocks_depend_on_seed_and_step_alone(step, seed):
    part = BytePart(np.arange(200, dtype=np.uint8), 16, ())
    starts = part.starts(step, batch_size=8, seed=seed)
    assert (starts == part.starts(step, batch_size=8, seed=seed)).all()
    assert (0 <= starts).all() and (starts <= 200 - 16).all()
    steps = part.steps_per_epoch(8)
    later = part.plan(batch_size=8, seed=seed, epoch=step // steps)[step % steps]
    assert (later == starts).all()  # a resumed run finds its place
    assert part.batch(starts)["input_ids"].tolist() == [list(range(s, s + 16)) for s in starts]


@settings(max_examples=25)
@given(sizes=some.lists(some.integers(1, 300), min_size=4, max_size=30),
       share=some.floats(0.05, 0.6), seed=some.integers(0, 5))
def test_a_language_bundle_keeps_every_byte_and_cuts_by_file(sizes, share, seed):
    files = {f"f{i}.py": bytes([i + 1]) * size for i, size in enumerate(sizes)}
    total = sum(sizes) + len(sizes)
    try:
        bundle = language_bundle(block=2, valid_share=share, seed=seed, files=files)
    except InputError:
        assert share * total + max(sizes) + 1 > total - 2  # nothing is left to train on
        return
    assert set(bundle.train.files) | set(bundle.valid.files) == set(files)
    assert not set(bundle.train.files) & set(bundle.valid.files)
    for part in (bundle.train, bundle.valid):
        joined = b"".join(b"\0" + files[name] for name in part.files)
        assert part.data.tobytes() == joined
    assert share * total <= len(bundle.valid) <= share * total + max(sizes) + 1


def test_a_limit_is_kept_and_changes_the_fingerprint():
    small, other = (language_bundle(block=64, valid_share=0.2, limit_bytes=limit)
                    for limit in (300_000, 600_000))
    assert len(small.train) + len(small.valid) <= 300_000
    assert small.fingerprint != other.fingerprint
    assert small.fingerprint == language_bundle(block=64, valid_share=0.2,
                                                limit_bytes=300_000).fingerprint


@pytest.mark.parametrize("options, words", [
    ({"block": 1}, "block=1"), ({"valid_share": 0.0}, "valid_share"),
    ({"valid_share": 1.0}, "valid_share"), ({"limit_bytes": 0}, "limit_bytes=0 leaves"),
    ({"limit_bytes": 100}, "limit_bytes=100 leaves")])
def test_a_corpus_without_a_block_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        language_bundle(**({"block": 64, "valid_share": 0.1} | options))


def test_library_files_are_sources_and_no_tests():
    files = library_files()
    assert all(name.endswith(".py") and content for name, content in files.items())
    assert len(set(files.values())) == len(files) and b"\0" not in b"".join(files.values())
    assert not {"tests", "test", "site-packages"} & {w for n in files for w in n.split("/")}


def test_compressors_agree_with_the_libraries_behind_them():
    import lzma
    import zlib

    data = np.frombuffer(b"to be or not to be " * 200, np.uint8)
    part = BytePart(data, 8, ())
    assert compressor_bits_per_byte("zlib", part) == 8 * len(zlib.compress(data, 9)) / len(data)
    again = compressor_bits_per_byte("lzma", part, after=part)
    alone = len(lzma.compress(data.tobytes(), preset=9))
    assert 0 <= again < 8 * alone / len(data)  # what was read before costs next to nothing
    assert unigram_bits_per_byte(part, part) < 4  # seven letters: below log2 of sixteen
