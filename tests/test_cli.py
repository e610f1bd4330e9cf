"""The contract of `flm`: keys, exit codes, one sentence for a mistake, light imports."""
import csv
import json
import math
import random
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import house_rules as rules
import pytest

from flm_nb.cli import main
from flm_nb.core import model_folder

EXAMPLE = str(files("flm_nb") / "catalogue" / "example.toml")
RANGE = {"p10", "p50", "p90"}
PRETRAIN = ["estimate", "pretrain", "--tokens", "2T", "--accelerator", "h100-sxm-80gb",
            "--count", "256"]
H100 = PRETRAIN[4:6]
TUNED = {"method", "train_s", "train_cpu_s", "samples_per_s", "tokens_per_s", "accuracy",
         "macro_f1", "trainable_params", "resumed_step", "predicted_s", "predicted_cpu_s",
         "predicted_flop", "predicted_peak_bytes"}
PREDICTED = {name for name in TUNED if name.startswith("predicted_")}


def ask(capsys, *words):
    """The JSON answer of one command."""
    code = main([*map(str, words), "--json"])
    told = capsys.readouterr()
    assert code == 0, told.err
    return json.loads(told.out.splitlines()[-1], parse_constant=lambda name: pytest.fail(name))


def refuse(capsys, *words):
    """The one sentence that a mistake earns."""
    code = main([*map(str, words)])
    told = capsys.readouterr()
    assert (code, told.out) == (2, "")
    assert len(told.err.strip().splitlines()) == 1 and told.err.startswith("flm: ")
    assert "Traceback" not in told.err
    return told.err


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """Sixty short made-up reviews, half of each kind."""
    path, chance = tmp_path_factory.mktemp("rows") / "rows.csv", random.Random(0)
    moods = {"good": ["fine", "great", "warm", "wise"], "bad": ["dull", "flat", "cold", "weak"]}
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for i in range(60):
            kind = ("good", "bad")[i % 2]
            table.writerow([f"scene {i} is {' and '.join(chance.choices(moods[kind], k=3))}",
                            kind])
    return path


# ------------------------------------------------------------------ params
def test_params_counts_gpt2(capsys):
    answer = ask(capsys, "params", "gpt2")
    assert set(answer) >= {"model", "total", "active", "embedding", "breakdown"}
    assert answer["total"] == 124_439_808  # Radford 2019: 124M, weights tied
    assert sum(answer["breakdown"].values()) == answer["total"]


def test_params_reads_a_config_and_a_folder(capsys, tmp_path):
    folder = model_folder("all-MiniLM-L6-v2")
    assert ask(capsys, "params", folder)["total"] == 22_713_216  # as its safetensors hold
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "nonsense"}))
    assert "nonsense" in refuse(capsys, "params", tmp_path / "config.json")


def test_params_names_near_misses(capsys):
    assert "gpt2" in refuse(capsys, "params", "gpt-2")


# ------------------------------------------------------------------ estimate pretrain
@pytest.mark.parametrize("model", [["--model", "llama-2-7b"], ["--params", "7B"]])
def test_pretrain_answers_every_key(model, capsys):
    answer = ask(capsys, *PRETRAIN, *model)
    assert set(answer) >= {
        "flop", "accelerator_hours", "days", "usd", "kwh", "co2_kg", "fits", "why",
        "step_tokens_per_s_per_accelerator", "memory_bytes_per_accelerator", "min_accelerators",
        "assumptions"}
    hours, days = answer["accelerator_hours"], answer["days"]
    assert set(hours) == RANGE and hours["p10"] <= hours["p50"] <= hours["p90"]
    assert days["p50"] == pytest.approx(hours["p50"] / 256 / 24)
    assert answer["assumptions"]


def test_pretrain_with_parameters_alone_is_six_n_d(capsys):
    assert ask(capsys, *PRETRAIN, "--params", "7e9")["flop"] == pytest.approx(6 * 7e9 * 2e12)
    mixed = ask(capsys, *PRETRAIN, "--params", "47B", "--active-params", "13B")
    assert mixed["flop"] == pytest.approx(6 * 13e9 * 2e12)
    shape = ["--layers", "32", "--width", "4096", "--seq-len", "4096"]
    attention = 12 * 32 * 4096 * 4096 * 2e12
    whole = ask(capsys, *PRETRAIN, "--params", "7e9", *shape)
    assert whole["flop"] == pytest.approx(6 * 7e9 * 2e12 + attention)


def test_what_is_given_has_no_range(capsys):
    hours = ask(capsys, *PRETRAIN, "--params", "7B", "--mfu", "0.4")["accelerator_hours"]
    assert hours["p10"] == hours["p50"] == hours["p90"]
    by_hand = 6 * 7e9 * 2e12 / (0.4 * 989.4e12) / 3600  # accelerators.csv: dense bf16 peak
    assert hours["p50"] == pytest.approx(by_hand, rel=1e-3)
    given = "--accelerator-hours 1000 --usd-per-hour 2 --watt 700 --pue 1 --grid-kg-per-kwh 0.5"
    money = ask(capsys, *PRETRAIN, "--params", "7B", *given.split())
    assert money["usd"] == {"p10": 2000, "p50": 2000, "p90": 2000}
    assert money["kwh"]["p50"] == pytest.approx(700)
    assert money["co2_kg"]["p50"] == pytest.approx(350)


def test_not_fitting_is_an_answer(capsys):
    answer = ask(capsys, *PRETRAIN[:6], "--count", "1", "--params", "70B")
    assert answer["fits"] is False and answer["why"] and answer["usd"]
    least = answer["min_accelerators"]
    assert 16 * 70e9 / least <= 80e9 < 16 * 70e9 / (least * 0.8)  # reserve of at most 15 %


@pytest.mark.parametrize("words, told", [
    (["--params", "7B", "--mfu", "45"], "mfu=45"),
    (["--params", "7B", "--mfu", "0"], "mfu"),
    (["--params", "nan"], "nan"), (["--params", "-7B"], "--params"),
    (["--params", "0"], "params"),
    (["--params", "7B", "--dtype", "fp12"], "fp12"), (["--params", "7Q"], "7Q"),
    ([], "--model"), (["--params", "7B", "--model", "gpt2"], "not allowed with"),
    (["--params", "7B", "--active-params", "8B"], "active"),
    (["--params", "7B", "--pue", "0.5"], "pue")])
def test_pretrain_refuses(words, told, capsys):
    assert told in refuse(capsys, *PRETRAIN, *words)


def test_pretrain_names_near_accelerators(capsys):
    words = [*PRETRAIN[:4], "--accelerator", "H100-SXM-80G", "--count", "8", "--params", "7B"]
    assert "H100-SXM-80GB" in refuse(capsys, *words)
    for count in ("0", "1.5", "many"):
        assert count in refuse(capsys, *PRETRAIN[:6], "--params", "7B", "--count", count)


# ------------------------------------------------------------------ estimate serve, backtest
SERVE = ["estimate", "serve", "--model", "llama-3.1-8b", "--accelerator", "H100-SXM-80GB",
         "--count", "1", "--input-tokens", "1000", "--output-tokens", "200", "--batch", "8"]

def test_serve_answers_every_key(capsys):
    answer = ask(capsys, *SERVE)
    assert set(answer) >= {"ttft_ms", "tpot_ms", "tokens_per_s_per_accelerator", "max_batch",
                           "usd_per_mtok", "fits", "why", "assumptions"}
    for name in ("ttft_ms", "tpot_ms", "tokens_per_s_per_accelerator", "usd_per_mtok"):
        low, mid, high = (answer[name][q] for q in ("p10", "p50", "p90"))
        assert 0 < low < mid < high
    assert answer["fits"] is True and answer["max_batch"] > 8
    half = ask(capsys, *SERVE, "--dtype", "fp8")
    assert half["tpot_ms"]["p50"] < answer["tpot_ms"]["p50"]
    dear = ask(capsys, *SERVE, "--usd-per-hour", "29.9")  # ten times the catalogue's 2.99
    assert dear["usd_per_mtok"]["p50"] == pytest.approx(10 * answer["usd_per_mtok"]["p50"])


def test_a_model_that_does_not_fit_is_served_on_paper(capsys):
    answer = ask(capsys, *[word.replace("3.1-8b", "3.1-405b") for word in SERVE])
    assert answer["fits"] is False and answer["max_batch"] == 0 and answer["tpot_ms"]["p50"] > 0


@pytest.mark.parametrize("words, told", [
    (["--batch", "0"], "batch=0"), (["--output-tokens", "0"], "output_tokens=0"),
    (["--dtype", "fp12"], "fp12"), (["--model", "llama-3.1-9b"], "llama-3.1-8b"),
    (["--accelerator", "H1000"], "H100"), (["--utilisation", "80"], "0.8"),
    (["--model", "bert-base-uncased"], "bert-base-uncased")])
def test_serve_refuses(words, told, capsys):
    assert told in refuse(capsys, *SERVE, *words)


def test_backtest_answers_every_key(capsys, tmp_path):
    answer = ask(capsys, "backtest")
    assert set(answer) >= {"rows", "n", "median_factor", "p90_factor", "coverage_80"}
    assert all(set(row) >= {"model", "p10", "p50", "p90", "published", "used", "why"}
               for row in answer["rows"])
    assert answer["n"] == sum(row["used"] for row in answer["rows"])
    one = tmp_path / "runs.csv"
    with (files("flm_nb") / "catalogue" / "runs.csv").open(encoding="utf-8") as file:
        one.write_text("".join(file.readlines()[:4]), "utf-8")
    assert len(ask(capsys, "backtest", "--runs", one)["rows"]) == 3
    assert "nowhere.csv" in refuse(capsys, "backtest", "--runs", "nowhere.csv")


# ------------------------------------------------------------------ estimate finetune, lora
@pytest.mark.parametrize("method", ["finetune", "lora"])
def test_a_plan_on_other_hardware(method, capsys):
    answer = ask(capsys, "estimate", method, "--model", "llama-2-7b", "--examples", "10k",
                 "--seq-len", "512", "--batch-size", "32", "--epochs", "2", *H100,
                 "--accelerator", "A100-80GB-SXM")
    assert set(answer) >= PREDICTED | {"fits", "why"}
    assert answer["predicted_flop"] > 0


def test_a_plan_knows_how_to_save_memory(capsys):
    plan = ["estimate", "lora", "--model", "llama-2-7b", "--examples", "1k", "--seq-len",
            "1024", "--batch-size", "4", "--accelerator", "A100-80GB-SXM"]
    whole = ask(capsys, *plan)["predicted_peak_bytes"]
    for words in (["--quantize", "nf4"], ["--recompute", "full"], ["--micro-batch", "1"]):
        assert ask(capsys, *plan, *words)["predicted_peak_bytes"] < whole
    assert "max_length=64" in refuse(capsys, *plan, "--max-length", "64")


def test_a_plan_and_a_table_do_not_mix(capsys, rows):
    words = ["estimate", "lora", "--model", "all-MiniLM-L6-v2", "--data", rows]
    assert "quantize='nf4'" in refuse(capsys, *words, "--quantize", "nf4")


def test_estimate_says_what_is_missing(capsys):
    assert "--data" in refuse(capsys, "estimate", "lora", "--model", "gpt2")
    assert "missing.csv" in refuse(capsys, "estimate", "lora", "--model", "all-MiniLM-L6-v2",
                                   "--data", "missing.csv")


@pytest.mark.parametrize("method", ["finetune", "lora"])
def test_estimate_from_texts(method, capsys, rows):
    words = ["estimate", method, "--model", "all-MiniLM-L6-v2", "--data", rows, "--epochs"]
    one, two = (ask(capsys, *words, epochs) for epochs in (1, 2))
    assert set(one) >= PREDICTED
    assert 1.8 < two["predicted_flop"] / one["predicted_flop"] < 2.2  # batches are drawn anew


def test_without_a_profile_it_says_how_to_make_one(capsys, rows, monkeypatch, tmp_path):
    monkeypatch.setenv("FLM_NB_CACHE", str(tmp_path))
    told = refuse(capsys, "estimate", "lora", "--model", "all-MiniLM-L6-v2", "--data", rows)
    assert "make setup" in told or "flm_nb.train.measure" in told


# ------------------------------------------------------------------ tune, predict
def test_tune_measures_a_machine_that_has_no_profile(capsys, rows, monkeypatch, own_cache,
                                                     tmp_path):
    monkeypatch.setenv("FLM_NB_CACHE", str(tmp_path))
    monkeypatch.setattr("flm_nb.train.measure.measure_machine",
                        lambda: shutil.copy(own_cache / "here.json", tmp_path))
    words = ["tune", "--data", rows, "--model", "all-MiniLM-L6-v2", "--out", tmp_path / "tuned"]
    assert main([*map(str, words), "--valid-share", "0", "--max-length", "16", "--json"]) == 0
    told = capsys.readouterr()
    answer = json.loads(told.out.splitlines()[-1])
    assert "measuring this machine" in told.err and answer["predicted_cpu_s"] > 0
    assert answer["accuracy"] is None and answer["macro_f1"] is None


@pytest.mark.parametrize("method", ["full", "lora"])
def test_tune_then_predict(method, capsys, rows, tmp_path):
    out = tmp_path / "tuned"
    answer = ask(capsys, "tune", "--data", rows, "--text", "text", "--label", "label", "--out",
                 out, "--model", "all-MiniLM-L6-v2", "--method", method, "--max-length", 32)
    assert set(answer) == TUNED
    assert answer["method"] == method and answer["resumed_step"] == 0
    assert answer["samples_per_s"] == pytest.approx(54 / answer["train_s"], rel=0.05)
    weights = {"full": "model.safetensors", "lora": "adapter_model.safetensors"}[method]
    assert (out / weights).exists()
    again = ask(capsys, "predict", "--model", out, "--data", rows, "--out", tmp_path / "p.csv")
    assert again["rows"] == 60
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert set(table[0]) == {"text", "label", "prediction", "score"}
    assert {row["prediction"] for row in table} <= {"good", "bad"}
    assert all(0.5 <= float(row["score"]) <= 1 for row in table)


@pytest.mark.parametrize("words, told", [
    (["--epochs", "0"], "epochs"), (["--batch-size", "0"], "batch"), (["--lr", "-1"], "lr"),
    (["--valid-share", "1.5"], "valid_share"), (["--label", "mood"], "mood"),
    (["--method", "both"], "both"), (["--model", "nowhere/at-all"], "nowhere/at-all"),
    (["--max-length", "0"], "max_length"), (["--data", "missing.csv"], "missing.csv")])
def test_tune_refuses_and_writes_nothing(words, told, capsys, rows, tmp_path):
    given = {"--data": rows, "--model": "all-MiniLM-L6-v2", "--out": tmp_path / "tuned"}
    given |= {words[0]: words[1]}
    assert told in refuse(capsys, "tune", *[word for pair in given.items() for word in pair])
    assert not (tmp_path / "tuned" / "model.safetensors").exists()


def test_predict_refuses_a_folder_without_a_model(capsys, rows, tmp_path):
    told = refuse(capsys, "predict", "--model", tmp_path, "--data", rows, "--out",
                  tmp_path / "p.csv")
    assert str(tmp_path) in told and not (tmp_path / "p.csv").exists()


# ------------------------------------------------------------------ invest
def test_invest_answers_every_key(capsys):
    answer = ask(capsys, "invest", EXAMPLE, "--draws", "500")
    assert set(answer) == {"verdict", "paths", "best", "thresholds"}
    for path in answer["paths"].values():
        assert set(path) == {"npv_usd", "p_loss", "feasible", "why"}
        assert set(path["npv_usd"]) == RANGE and 0 <= path["p_loss"] <= 1
    for found in answer["thresholds"]:
        assert set(found) == {"driver", "unit", "value", "from", "to"}


def test_same_seed_same_digits_and_set_in_any_place(capsys):
    one = ask(capsys, "invest", EXAMPLE, "--draws", "300", "--seed", "7")
    assert one == ask(capsys, "invest", EXAMPLE, "--draws", "300", "--seed", "7")
    assert one != ask(capsys, "invest", EXAMPLE, "--draws", "300", "--seed", "8")
    rate = "project.discount_rate=0.3"
    first = ask(capsys, "invest", "--set", rate, EXAMPLE, "--draws", "300")
    assert first == ask(capsys, "invest", EXAMPLE, "--draws", "300", "--set", rate)


def test_vary_finds_a_threshold_and_both_sides_of_it(capsys):
    key = "workload.requests_per_month"
    answer = ask(capsys, "invest", EXAMPLE, "--draws", "500", "--vary", key, "--between", "1k",
                 "100M")
    found = answer["threshold"]
    assert set(found) == {"driver", "unit", "value", "from", "to", "feasible", "why"}
    assert found["driver"] == key and 1e3 < found["value"] < 1e8
    for factor, side in ((0.98, "from"), (1.02, "to")):
        value = f"{key}={found['value'] * factor}"
        assert ask(capsys, "invest", EXAMPLE, "--draws", "500", "--set", value)["best"] == \
            found[side]


@pytest.mark.parametrize("suffix", ["html", "md"])
def test_the_memo_is_written(suffix, capsys, tmp_path):
    memo = tmp_path / f"memo.{suffix}"
    answer = ask(capsys, "invest", EXAMPLE, "--draws", "300", "--out", memo)
    assert answer["best"] in memo.read_text(encoding="utf-8")


@pytest.mark.parametrize("words, told", [
    (["nowhere.toml"], "nowhere.toml"), ([], "PROJECT.toml"),
    ([EXAMPLE, "--draws", "99"], "99"),
    ([EXAMPLE, "--set", "project.discount_rat=0.1"], "discount_rate"),
    ([EXAMPLE, "--set", "project.discount_rate=nan"], "discount_rate"),
    ([EXAMPLE, "--vary", "workload.requests_per_month"], "--between"),
    ([EXAMPLE, "--vary", "workload.requests_per_monht", "--between", "1", "9"],
     "requests_per_month"), ([EXAMPLE, "--out", "memo.pdf"], "memo.pdf")])
def test_invest_refuses(words, told, capsys):
    assert told in refuse(capsys, "invest", *words)


# ------------------------------------------------------------------ the shell around it
def shell(*words, **options):
    """The command as a shell runs it."""
    flm = Path(sys.executable).with_name("flm")
    return subprocess.run([flm, *words], capture_output=True, text=True, **options)


@pytest.mark.parametrize("words, told", [
    ([], "COMMAND"), (["parms", "gpt2"], "params"), (["params"], "required"),
    (["params", "gpt2", "--jsn"], "--json"), (["estimate"], "pretrain")])
def test_a_slip_of_the_keyboard_is_one_sentence(words, told, capsys):
    assert told in refuse(capsys, *words)


@pytest.mark.parametrize("words", [
    [], ["params"], ["estimate"], ["estimate", "pretrain"], ["estimate", "finetune"],
    ["estimate", "lora"], ["estimate", "serve"], ["tune"], ["predict"], ["invest"],
    ["backtest"]], ids=" ".join)
def test_help_exists(words, capsys):
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    told = capsys.readouterr()
    assert end.value.code == 0 and "--help" in told.out and told.err == ""


def test_without_json_people_read_it(capsys):
    assert main(["params", "gpt2"]) == 0
    told = capsys.readouterr().out
    assert "124,439,808" in told and not told.startswith("{")
    assert main([*PRETRAIN, "--params", "7B"]) == 0
    assert "84 ZFLOP" in capsys.readouterr().out


def test_the_shell_sees_the_same(tmp_path):
    done = shell("--version")
    assert done.returncode == 0 and done.stdout.startswith("flm ")
    done = shell("params", "gpt2", "--json")
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["total"] == 124_439_808 and done.stderr == ""
    done = shell("params", "nowhere", "--json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1


def test_a_closed_pipe_is_no_error():
    flm = Path(sys.executable).with_name("flm")
    done = subprocess.run(["bash", "-c", f"set -o pipefail; '{flm}' params gpt2 | true"],
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_keyboard_stops_it_with_a_sentence(capsys, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("flm_nb.count.params.describe_params", stop)
    assert main(["params", "gpt2"]) == 130
    told = capsys.readouterr()
    assert told.out == "" and "--resume" in told.err


def test_nothing_is_half_written_and_no_number_is_nan(capsys, monkeypatch):
    answer = {"total": math.nan}
    monkeypatch.setattr("flm_nb.count.params.describe_params", lambda model: answer)
    assert main(["params", "gpt2", "--json"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("words, free", [
    (["params", "gpt2"], rules.HEAVY),
    ([*PRETRAIN, "--model", "gpt2"], rules.HEAVY), (SERVE, rules.HEAVY),
    (["backtest"], rules.HEAVY),
    (["estimate", "finetune", "--model", "gpt2", "--examples", "1k", "--seq-len", "64",
      "--accelerator", "T4", "--precision", "fp32"], rules.HEAVY),
    (["estimate", "lora", "--model", "all-MiniLM-L6-v2", "--data", "ROWS"],
     rules.HEAVY - {"tokenizers"}),
    (["invest", EXAMPLE, "--draws", "200"],
     {"torch", "transformers", "peft", "accelerate", "sklearn"})])
def test_counting_and_deciding_stay_light(words, free, rows):
    words = [str(rows) if word == "ROWS" else word for word in words]
    script = ("import sys; from flm_nb.cli import main\n"
              f"code = main({words!r})\nprint(code, *sys.modules)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    code, *modules = done.stdout.splitlines()[-1].split()
    assert code == "0", done.stderr
    assert {name.split(".")[0] for name in modules} & free == set()
