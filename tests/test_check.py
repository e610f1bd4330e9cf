"""Answers are understood in every form, and no mistake passes for the truth."""
import json
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from flm_nb.check import MISTAKES, check, read_answer, seal, seal_exercise
from flm_nb.units import format_si, parse_quantity

READ = [  # text, value in base units, base unit
    ("92.2 ZFLOP", 92.2e21, "FLOP"), ("14 GB", 14e9, "B"), ("14GB", 14e9, "B"),
    ("16 GiB", 16 * 2**30, "B"), ("14 Gb", 14e9, "bit"), ("14 gb", 14e9, "B"),
    ("3.5 h", 12_600, "s"), ("90 min", 5400, "s"), ("12 ms", 0.012, "s"), ("2/3", 2 / 3, ""),
    ("66.7 %", 0.667, ""), ("66.7%", 0.667, ""), ("1.2k", 1200, ""), ("7B", 7e9, ""),
    ("7 B", 7, "B"), ("7B tokens", 7e9, "token"), ("2T", 2e12, ""), ("300k rows", 3e5, "row"),
    ("7 billion parameters", 7e9, "parameter"), ("1,024", 1024, ""), ("1_000_000", 1e6, ""),
    ("3.5e22 FLOP", 3.5e22, "FLOP"), ("3.5×10^22 FLOP", 3.5e22, "FLOP"),
    ("3.5 * 10**22 FLOP", 3.5e22, "FLOP"), ("~ 5", 5, ""), ("−5", -5, ""), (".5", 0.5, ""),
    ("$5.576M", 5.576e6, "USD"), ("$2B", 2e9, "USD"), ("18 kUSD", 18e3, "USD"),
    ("$2 per Mtok", 2e-6, "USD/token"), ("0.5 USD per 1,000 items", 5e-4, "USD/item"),
    ("$0.40/h", 0.4 / 3600, "USD/s"), ("312 TFLOP/s", 312e12, "FLOP/s"),
    ("0.4 kWh", 1.44e6, "J"), ("31.22 tCO2", 31.22e6, "g"), ("5 kg CO2e", 5000, "g"),
    ("1.14 bits per byte", 1.14, "bit/B"), ("2x", 2, ""), ("7 TMAC", 7e12, "MAC"),
    ("294912 weights", 294_912, "parameter"), ("3 cards", 3, "accelerator"),
    ("3 GPUs", 3, "accelerator"), ("0.111 cents", 0.00111, "USD"), ("USD 7842", 7842, "USD"),
    ("-USD 7.8k", -7800, "USD"), ("1.5M req", 1.5e6, "request"),
    ("12 requests/month", 12 / 2_629_800, "request/s"),
    ("12 requests a month", 12 / 2_629_800, "request/s"),
    ("0.4 USD an hour", 0.4 / 3600, "USD/s"),
]
UNREADABLE = ["", "ten", "3,5", "0,00111", "0,111", "1.234,5",
              "5 parsecs", "5 FLOPS", "1/0", "GB", "-", "2 h 30", "7m"]


@pytest.mark.parametrize("text, value, unit", READ)
def test_quantities_are_read(text, value, unit):
    assert parse_quantity(text) == (pytest.approx(value, rel=1e-12), unit)


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_could_mean_two_things_is_refused(text):
    with pytest.raises(ValueError):
        parse_quantity(text)


@given(some.floats(1e-8, 9e26), some.sampled_from(["FLOP", "B", "s", "J", "W", "USD"]))
def test_what_format_si_writes_is_read_back(value, unit):
    if unit not in ("FLOP", "B") or value >= 1:  # a milli-FLOP is not read
        text = format_si(value, unit)
        assert parse_quantity(text, unit=unit) == (pytest.approx(value, rel=0.0051), unit)


def book(right, unit, **options):
    return {"t.1": seal_exercise("t.1", right, unit=unit, hint="H.", why="Y.", **options)}


@pytest.mark.parametrize("answer", [
    0.5, "0.5", "1/2", "50 %", "50%", np.float32(0.5), np.array([[0.5]]), [0.5], (0.5,),
    Fraction(1, 2), Decimal("0.5"), "5e-1"])
def test_equal_forms_are_accepted(answer):
    assert check("t.1", answer, book=book(0.5, ""))


def test_tensors_of_one_element_are_accepted():
    torch = pytest.importorskip("torch")
    for answer in (torch.tensor(0.5), torch.tensor([0.5], requires_grad=True)):
        assert check("t.1", answer, book=book(0.5, ""))


@pytest.mark.parametrize("answer", [
    math.nan, math.inf, "nan", "inf", "", "...", None, ..., True, 1j, [], [1, 2], {}, object(),
    np.array([1.0, 2.0]), "many", "1e999", 10**400, "3 GB", b"3", -0.0, 0])
def test_odd_answers_get_a_sentence_and_no_traceback(answer):
    verdict = check("t.1", answer, book=book(12.0, "s"))
    assert not verdict and len(verdict.message) > 5


@pytest.mark.parametrize("right, unit, answer, words", [
    (92.2e21, "FLOP", 46.1e21, "multiply-add is 2 FLOP"),
    (92.2e21, "FLOP", "92.2 ZMAC", "A MAC is 2 FLOP"),
    (92.2e21, "FLOP", 92.2e21 / 3, "forward pass"),
    (92.2e21, "FLOP", 92.2e21 / 6, "2 FLOP a token forward"),
    (14, "GB", 14 / 1.073741824, "binary units"),
    (14, "GB", "14 GiB", "2**30 bytes to the GB"),
    (14, "GB", 112, "those are bits"),
    (14, "GB", "14 Gbit", "bits for bytes"),
    (14, "GB", 28, "bf16"),
    (12_600, "s", 3.5, "hours and seconds"),
    (12_600, "s", 210, "minutes"),
    (0.667, "", 66.7, "Those are percent"),
    (66.7, "%", 0.667, "A hundredth"),
    (5.0, "USD", 5000, "the prefix is not"),
    (5.0, "USD", 15, "3 times too much"),
    (5.0, "USD", 30, "6 times too much"),
    (5.0, "USD", -5, "sign"),
    (8.37, "", 1 / 8.37, "one over it"),
    (0.813, "", 0.187, "the rest up to one"),
    (12.66, "day", 13, "Close"),
    (0.4, "kWh", "0.4 MWh", "1,000 times"),
])
def test_usual_mistakes_are_named(right, unit, answer, words):
    verdict = check("t.1", answer, book=book(right, unit))
    assert not verdict and words in verdict.message


@given(some.floats(1e-12, 1e24), some.sampled_from(MISTAKES))
def test_no_mistake_passes_for_the_truth(right, mistake):
    factor, where, _ = mistake
    unit = where.split()[0] if where.strip("-") else ""
    assert not check("t.1", right * factor, book=book(right, unit))


@given(some.floats(1e-12, 1e24), some.floats(-0.0009, 0.0009))
def test_a_rounded_answer_is_right_and_a_twentieth_more_is_not(right, error):
    assert check("t.1", right * (1 + error), book=book(right, ""))
    assert not check("t.1", right * 1.05, book=book(right, ""))


@pytest.mark.parametrize("answer", [
    1.5e6, "1.5M", "1.5M requests/month", "1.5M/month", "1.5M req", "1.5M requests a month",
    "1.5 million requests", "18M requests/year"])
def test_a_month_may_be_left_to_understand(answer):
    assert check("t.1", answer, book=book(1.5e6, "request/month"))
    assert not check("t.1", "5 GB", book=book(5, "GB/s"))  # an amount is no rate


@pytest.mark.parametrize("answer, unit, words", [
    ("5 parsecs", "accelerator", "write a number of accelerator"),
    ("many", "", "write a plain number"),
    ("0,00111", "USD", "write a decimal point"), ("0,111", "USD", "write a decimal point"),
    ("1/0", "", "divides by zero")])
def test_an_unreadable_answer_hears_how_to_write_it(answer, unit, words):
    assert words in check("t.1", answer, book=book(3, unit)).message


@pytest.mark.parametrize("key, answer, right, words", [
    ("00.1", "294912 weights", True, "294,912"), ("00.1", 295_000, True, "294,912"),
    ("00.1", 296_448, False, "includes the head"), ("00.1", 293_400, False, ""),
    ("00.2", "0.111 cents", True, ""), ("00.2", "0,00111", False, "decimal point"),
    ("00.3", "1.5M requests/month", True, ""), ("00.3", "1.5M/month", True, ""),
    ("00.3", 18e6, False, "in a year"), ("90.1", "1.4M req", True, ""),
    ("90.2", "3 cards", True, ""), ("90.2", "3 GPUs", True, ""),
    ("90.3", "USD 7842", True, "")])
def test_the_books_own_exercises_take_the_words_that_people_use(key, answer, right, words):
    verdict = check(key, answer)
    assert verdict.right is right and words in verdict.message


def test_words_are_compared_without_case():
    words = book("own hardware", "word", wrong={"api": "That one wins today."})
    assert check("t.1", " Own_Hardware ", book=words)
    assert check("t.1", "API", book=words).message == "That one wins today."


def test_a_wrong_answer_that_is_the_right_one_is_refused():
    with pytest.raises(ValueError, match="cannot be told"):
        book(14, "GB", wrong={"14.01 GB": "no"})


def test_a_book_is_kept_sorted_and_shows_no_answer(tmp_path):
    path = tmp_path / "exercises.json"
    for key, right in {"b.2": 77.7, "a.1": 12.34}.items():
        seal_exercise(key, right, unit="s", hint="H.", why="Y.", book=path)
    text = path.read_text("utf-8")
    assert list(json.loads(text)) == ["a.1", "b.2"] and "12.3" not in text
    assert check("a.1", 12.34, book=json.loads(text))


def test_the_same_number_has_another_seal_in_another_exercise():
    assert seal("a", 1.0) != seal("b", 1.0) and seal("a", 1.0) == seal("a", 1.001)
    assert read_answer("2 kB", "B") == 2000
