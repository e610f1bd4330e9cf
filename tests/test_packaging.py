"""What pip installs works outside the clone, and its light half without torch."""
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import house_rules as rules
import pytest

ROOT = Path(__file__).parents[1]
STAYS = shutil.ignore_patterns(".*", "build", "dist", "_docs", "*.egg-info", "__pycache__")
BLOCK = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Wall())
"""


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A source archive of the clone, and the wheel that is built from that archive."""
    top = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, top / "clone", ignore=STAYS)
    where = ["--outdir", top / "dist", top / "clone"]
    run(sys.executable, "-m", "build", "--no-isolation", *where)
    return top / "dist"


@pytest.fixture(scope="module")
def outside(built, tmp_path_factory):
    """A fresh environment with the wheel, this one's packages, and no torch nor its kin."""
    top = tmp_path_factory.mktemp("outside")
    run(sys.executable, "-m", "venv", "--without-pip", top / "venv")
    python = top / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    wheel = next(built.glob("*.whl"))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index",
        wheel)
    blocked = rules.HEAVY - {"pandas", "scipy", "matplotlib", "seaborn", "tokenizers", "tqdm"}
    (top / "wall").mkdir()
    (top / "wall" / "sitecustomize.py").write_text(BLOCK.format(blocked=blocked))
    path = os.pathsep.join([str(top / "wall"), sysconfig.get_path("purelib")])
    environment = os.environ | {"PYTHONPATH": path, "FLM_NB_CACHE": str(top / "cache")}
    return python, {"cwd": top, "env": environment}


def test_wheel_and_archive_carry_the_same_facts(built):
    wheel = {name for name in zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
             if name.startswith("flm_nb/")}
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "flm_nb").rglob("*.*")
            if "__pycache__" not in path.parts}
    assert wheel == ours and ours <= names
    assert {"settings.ini", "LICENSE", "README.md"} <= names


def test_the_package_is_not_the_clone(outside):
    python, place = outside
    code = "import flm_nb; print(flm_nb.__file__)"
    assert str(place["cwd"]) in run(python, "-c", code, **place)


@pytest.mark.parametrize("command", ["params gpt2", "invest EXAMPLE --draws 200",
                                     "estimate pretrain --model gpt2 --tokens 1B "
                                     "--accelerator H100-SXM-80GB --count 8"])
def test_counting_and_deciding_work_without_torch(command, outside):
    python, place = outside
    code = "from importlib.resources import files; print(files('flm_nb') / 'catalogue')"
    example = run(python, "-c", code, **place).strip() + "/example.toml"
    words = command.replace("EXAMPLE", example).split()
    flm = python.with_name("flm")
    answer = json.loads(run(flm, *words, "--json", **place).splitlines()[-1])
    assert answer


def test_the_memo_is_written_without_torch(outside):
    python, place = outside
    code = ("import sys; from importlib.resources import files; from flm_nb.cli import main; "
            "sys.exit(main(['invest', str(files('flm_nb') / 'catalogue' / 'example.toml'), "
            "'--draws', '200', '--out', 'memo.html']))")
    run(python, "-c", code, **place)
    assert "<html" in (place["cwd"] / "memo.html").read_text(encoding="utf-8")


def test_what_needs_torch_names_the_extra(outside):
    python, place = outside
    (place["cwd"] / "rows.csv").write_text("text,label\ngood,1\nbad,0\n" * 20)
    words = "tune --data rows.csv --text text --label label --model . --out out".split()
    done = subprocess.run([python.with_name("flm"), *words], capture_output=True, text=True,
                          **place)
    assert done.returncode == 2 and "flm_nb[train]" in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_lock_names_one_version_of_everything_installed():
    lock = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split())
    freeze = run(sys.executable, "-m", "pip", "freeze", "--all", "--exclude-editable")
    here = dict(re.findall(r"^([\w.-]+)==([\w.]+)", freeze, re.MULTILINE))
    assert {name: here.get(name) for name in lock} == lock


def test_only_the_known_complaint_about_the_environment():
    command = [sys.executable, "-m", "pip", "check"]
    done = subprocess.run(command, capture_output=True, text=True)
    complaints = [line for line in done.stdout.splitlines() if " requires " in line]
    assert [line for line in complaints if "requires sentence-transformers" not in line] == []
