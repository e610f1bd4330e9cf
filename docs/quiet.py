"""Drop logs and progress bars from the saved outputs of every notebook: they teach nothing."""
import json

from run_page import ROOT, is_shown


def quiet(text):
    """The notebook without outputs that are noise."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [output for output in cell["outputs"] if is_shown(output)]
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        before = path.read_text(encoding="utf-8")
        if before != quiet(before):
            path.write_text(quiet(before), encoding="utf-8")
