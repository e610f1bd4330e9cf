"""What stands around the notebooks: the Makefile's sentences, the page runner, the summary."""
import json
import os
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
import run_page
from summary import summary

ROOT = Path(__file__).parents[1]
FAKE_PYTHON = """#!/bin/sh
case "$*" in *venv\\ .venv*) mkdir -p .venv/bin
printf '#!/bin/sh\\necho ERROR: no such version; exit 1\\n' > .venv/bin/pip
chmod +x .venv/bin/pip;; esac
"""
RUN = {"accuracy": 0.78, "accuracy_low": 0.76, "accuracy_high": 0.8, "predicted_s": 40.0,
       "measured_s": 44.0, "predicted_cpu_s": 80.0, "measured_cpu_s": 84.0,
       "predicted_flop": 2e13, "counted_flop": 2e13, "predicted_peak_bytes": 9e8,
       "measured_peak_bytes": 8.1e8}
STORY = {
    "model": "all-MiniLM-L6-v2", "dataset": "reviews", "n_train": 2000, "n_test": 2000,
    "baselines": {"majority": 0.5, "frozen_probe": 0.72}, "full": RUN,
    "lora": RUN | {"trainable_params": 99}, "serve": {"latency_ms": 9.0, "usd_per_1000": 1e-4},
    "probe": {"before_flop_per_s": 1e11, "after_flop_per_s": 1e11},
    "threshold": {"driver": "workload.requests_per_month", "unit": "requests/month",
                  "value": 2.5e6, "from": "api", "to": "lora"}}


def make(folder, python):
    """`make setup` in a folder that holds nothing but the names of its inputs."""
    for name in ("requirements.lock", "settings.ini", "setup.py", "pyproject.toml"):
        (folder / name).touch()
    command = ["make", "--no-print-directory", "-f", ROOT / "Makefile", "setup",
               f"PYTHON={python}"]
    environment = {key: value for key, value in os.environ.items() if key != "MAKEFLAGS"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode != 0 and not (folder / ".venv" / "stamp").exists()
    return done.stdout.strip().splitlines()


def test_a_wrong_python_is_one_sentence(tmp_path):
    assert make(tmp_path, "false") == [
        "flm_nb needs Python 3.11 or newer with venv; try: make PYTHON=python3.11"]


def test_a_failing_install_says_so_and_leaves_no_stamp(tmp_path):
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)
    said = make(tmp_path, tmp_path / "python")
    assert said[-2:] == ["ERROR: no such version",
                         "Setup stopped in pip, see above; mend it and run make again"]


def test_the_readme_gives_the_lines_of_the_makefile_to_those_without_make():
    readme, makefile = ((ROOT / name).read_text() for name in ("README.md", "Makefile"))
    for line in ("pip install --no-deps -r requirements.lock",
                 "pip install --no-build-isolation -e . torch",
                 "python -m flm_nb.train.measure"):
        assert f".venv/bin/{line}" in readme
        assert f"$(BIN)/{line.replace('install', 'install -qq')}" in makefile


def test_a_page_keeps_what_it_shows_and_drops_its_noise(tmp_path):
    outputs = [{"output_type": "stream", "name": "stderr", "text": ["42%|##  |\n"]},
               {"output_type": "display_data", "data": {run_page.WIDGET: {}}},
               {"output_type": "stream", "name": "stdout", "text": ["21\n"]}]
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": [], "outputs": []}
    source = {"cells": [cell], "metadata": {"kernelspec": {"name": "python3"}}}
    page = tmp_path / "page.ipynb"
    page.write_text(json.dumps(source))
    ran = {"cells": [cell | {"outputs": outputs, "metadata": {"papermill": {}}}],
           "metadata": {"kernelspec": {"name": "python3"}, "widgets": {}}}
    assert run_page.tidy(ran) == ["42%|##  |\n"]
    run_page.save_outputs(page, ran)
    assert json.loads(page.read_text()) == \
        source | {"cells": [cell | {"outputs": outputs[-1:]}]}


def test_the_page_asks_no_server_for_anything(tmp_path):
    cells = [nbformat.v4.new_markdown_cell("# A page with $x^2$"),
             nbformat.v4.new_code_cell("21 * 2")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "page.ipynb")
    run_page.write_html(tmp_path / "page.ipynb")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "A page with" in page
    assert not re.search(r"""(src|href|import\()\s*=?\s*["']https?:|cdnjs""", page)


def test_the_summary_shows_ratios_scores_and_the_threshold():
    told = "\n".join(summary(STORY))
    for words in ("84 s", "1.05", "20 TFLOP", "0.90", "72.0%", "76.0% to 80.0%",
                  "2,500,000 requests/month", "from api to lora"):
        assert words in told


@pytest.mark.parametrize("missing", ["full", "threshold"])
def test_the_summary_invents_nothing(missing):
    with pytest.raises(KeyError):
        list(summary({name: part for name, part in STORY.items() if name != missing}))
