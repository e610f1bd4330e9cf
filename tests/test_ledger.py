"""No line of a ledger can be changed unseen, and two processes can write at once."""
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from flm_nb.core import InputError
from flm_nb.ledger import Entry, Ledger, measure, predict, table

TELL = {"unit": "s", "p50": 10.0, "p10": 8.0, "p90": 12.0, "source": "a rule"}


def filled(path):
    for name in ("one", "two", "three"):
        predict(path, name, **TELL)
        measure(path, name, 11.0)
    return path


def test_a_pair_is_read_back_as_it_was_written(tmp_path):
    path = tmp_path / "deep" / "ledger.jsonl"
    sealed = predict(path, "train", **TELL)
    done = measure(path, "train", 11, machine="a laptop")
    assert (sealed.seal, done.value, done.machine) == (done.seal, 11.0, "a laptop")
    assert table(path).entries == (done,) and done.ratio == 1.1 and done.inside


@pytest.mark.parametrize("field, value", [
    ("p50", 10.5), ("p90", 99.0), ("time", "2020-01-01T00:00:00+00:00"), ("name", "other"),
    ("source", "nicer"), ("version", "9"), ("value", 10.0), ("of", "0" * 64)])
def test_every_field_of_every_line_is_under_seal(tmp_path, field, value):
    path = filled(tmp_path / "ledger.jsonl")
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        changed = json.loads(line)
        if field in changed:
            changed[field] = value
            path.write_text("\n".join([*lines[:number], json.dumps(changed, sort_keys=True),
                                       *lines[number + 1:]]) + "\n")
            for act in (table, lambda p: predict(p, "new", **TELL)):
                with pytest.raises(InputError, match=f"line {number + 1} is broken"):
                    act(path)


@pytest.mark.parametrize("spoil", [
    lambda lines: lines[1:], lambda lines: lines[:2] + lines[3:],
    lambda lines: [lines[1], lines[0], *lines[2:]], lambda lines: [*lines, lines[-1]],
    lambda lines: [*lines, "{}"], lambda lines: [*lines, "no json"], lambda lines: ["[]"]])
def test_lines_cannot_be_left_out_swapped_or_added(tmp_path, spoil):
    path = filled(tmp_path / "ledger.jsonl")
    path.write_text("\n".join(spoil(path.read_text().splitlines())) + "\n")
    before = path.read_bytes()
    with pytest.raises(InputError, match="is broken"):
        measure(path, "one", 1.0)
    assert path.read_bytes() == before


def test_a_write_that_was_cut_off_is_found(tmp_path):
    path = filled(tmp_path / "ledger.jsonl")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="middle of a line"):
        table(path)


@pytest.mark.parametrize("change, words", [
    ({"p50": float("nan")}, "p50"), ({"p50": "soon"}, "p50"), ({"p50": 20.0}, "ascending"),
    ({"p10": None}, "both ends"), ({"p90": float("inf")}, "p90"), ({"source": ""}, "source")])
def test_bad_predictions_leave_no_line(tmp_path, change, words):
    path = filled(tmp_path / "ledger.jsonl")
    before = path.read_bytes()
    with pytest.raises(InputError, match=words):
        predict(path, "bad", **(TELL | change))
    assert path.read_bytes() == before


def test_measurements_need_a_prediction_and_come_once(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with pytest.raises(InputError, match="predict before you measure"):
        measure(path, "train", 1.0)
    assert not path.exists()
    predict(path, "train", **TELL)
    with pytest.raises(InputError, match="was not predicted; there is train"):
        measure(path, "trian", 1.0)
    for nothing in (float("nan"), None, "fast"):
        with pytest.raises(InputError, match="finite"):
            measure(path, "train", nothing)
    measure(path, "train", 1.0)
    with pytest.raises(InputError, match="measured already"):
        measure(path, "train", 2.0)


def test_names_come_back_in_another_run(tmp_path):
    path = tmp_path / "ledger.jsonl"
    predict(path, "train", **TELL)  # never measured: it crashed
    predict(path, "train", **TELL)
    predict(path, "train", run="night", **TELL)
    with pytest.raises(InputError, match="has a prediction"):
        predict(path, "train", run="night", **TELL)
    assert measure(path, "train", 11.0).run == "night"
    assert measure(path, "train", 12.5, run="2").inside is False
    assert [entry.value for entry in table(path).entries] == [None, 12.5, 11.0]
    assert table(path).summary == "1 of 2 intervals held; 1 predicted and not measured."
    assert len(table(path, run="2").entries) == 1


def test_two_processes_write_one_chain(tmp_path):
    path = tmp_path / "ledger.jsonl"
    script = ("import sys; from flm_nb.ledger import measure, predict\n"
              "for i in range(25):\n"
              "    name = f'{sys.argv[2]} {i}'\n"
              "    predict(sys.argv[1], name, unit='s', p50=1, source='s')\n"
              "    measure(sys.argv[1], name, 1.0)\n")
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), name])
               for name in ("a", "b")]
    assert [writer.wait() for writer in writers] == [0, 0]
    entries = table(path).entries
    assert len(entries) == 50 and all(entry.ratio == 1 for entry in entries)


def test_the_table_escapes_and_has_every_form(tmp_path):
    path = tmp_path / "ledger.jsonl"
    predict(path, "<b>a|b</b>", **(TELL | {"unit": "USD"}))
    shown = table(path)
    assert "<b>" not in shown._repr_html_() and r"a\|b" in shown._repr_markdown_()
    assert "10 USD" in repr(shown)
    assert list(shown.to_frame().columns[:3]) == ["name", "run", "unit"]
    assert Ledger(()).to_frame().empty and "no interval" in Ledger(()).summary


@settings(max_examples=50)
@given(some.lists(some.tuples(some.floats(-1e9, 1e9), some.floats(0, 1e9), some.floats(0, 1e9),
                              some.floats(-2e9, 2e9)), min_size=1, max_size=20))
def test_held_counts_what_lies_between(rows):
    entries = tuple(Entry(str(i), "1", "s", mid, mid - low, mid + high, "", "", "", "", value)
                    for i, (mid, low, high, value) in enumerate(rows))
    by_hand = sum(mid - low <= value <= mid + high for mid, low, high, value in rows)
    assert Ledger(entries).held == (by_hand, len(rows))
