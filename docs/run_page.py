"""Run a walkthrough as a reader would: tell where it is, keep what it shows."""
import json
import os
import re
import sys
import time
from argparse import ArgumentParser
from pathlib import Path

from nbconvert import HTMLExporter
from papermill import execute_notebook
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
WIDGET = "application/vnd.jupyter.widget-view+json"


class Narrator(PapermillNotebookClient):
    """A client that prints each heading as it comes by, with the share done and the time."""

    def papermill_execute_cells(self):
        self.start = self.told = time.monotonic()
        self.bar = tqdm(total=len(self.nb.cells), leave=False, disable=None,
                        bar_format="{percentage:3.0f}%|{bar:30}| {elapsed} {desc} {postfix}")
        with self.bar:
            super().papermill_execute_cells()

    def execute_cell(self, cell, index, **options):
        heading = re.match(r"#+ (.+)", cell.source)
        if cell.cell_type == "markdown" and heading:
            self.heading = heading[1]
            self.tell(self.heading, index)
        done = super().execute_cell(cell, index, **options)
        self.bar.set_postfix_str("", refresh=False)
        self.bar.update()
        return done

    def tell(self, words, index):
        """One line that stays, and the same words beside the moving bar."""
        minutes, seconds = divmod(round(time.monotonic() - self.start), 60)
        tqdm.write(f"{index / len(self.nb.cells):4.0%}  {minutes}:{seconds:02}  {words}",
                   file=sys.stderr)
        self.bar.set_description_str(words[:40])
        self.told = time.monotonic()

    def process_message(self, msg, cell, cell_index):
        """Forward the progress bars of a cell: to the moving bar, or now and then as a line."""
        content = msg["content"]
        state = content.get("data", {}).get("state", {}) if "comm" in msg["msg_type"] else {}
        known = self.widget_state.get(content.get("comm_id"), {}) | state
        if known.get("max") and isinstance(known.get("value"), int | float):
            share = f"{known['value'] / known['max']:.0%} of this step"
            self.bar.set_postfix_str(share)
            if self.bar.disable and time.monotonic() - self.told > 20:
                self.tell(f"{self.heading}: {share}", cell_index)
        return super().process_message(msg, cell, cell_index)


class Engine(NBClientEngine):
    """papermill's engine with the client above."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        transport = "tcp" if os.name == "nt" else "ipc"  # over tcp, each kernel warns
        config = Config(KernelManager={"transport": transport})
        client = Narrator(nb_man, kernel_name=kernel_name, timeout=None, config=config)
        return client.execute()


def is_shown(output):
    """Whether a reader gains from an output: no log, no progress bar."""
    return output.get("name") != "stderr" and WIDGET not in output.get("data", {})


def tidy(notebook):
    """Drop what belongs to the run and not to the page; return the lines that were logged."""
    logged = []
    notebook["metadata"] = {"kernelspec": notebook["metadata"]["kernelspec"],
                            "language_info": {"name": "python"}}
    for cell in notebook["cells"]:
        cell["metadata"].pop("papermill", None)
        if cell["cell_type"] == "code":
            logged += ["".join(output["text"]) for output in cell["outputs"]
                       if output.get("name") == "stderr"]
            cell["outputs"] = [output for output in cell["outputs"] if is_shown(output)]
    return logged


def save_outputs(page, notebook):
    """Put the outputs of a run into the page that was run."""
    source = json.loads(page.read_text(encoding="utf-8"))
    for cell, ran in zip(source["cells"], notebook["cells"], strict=True):
        if cell["cell_type"] == "code":
            cell["outputs"] = ran["outputs"]
    page.write_text(json.dumps(source, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_html(path):
    """The executed page as one file that asks no server for anything."""
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="")
    exporter.mermaid_js_url = exporter.mermaid_layout_elk_js_url = ""
    page, _ = exporter.from_filename(str(path))
    path.with_suffix(".html").write_text(page, encoding="utf-8")


def main():
    """Run one page from the top of the repository."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="the notebook to run")
    parser.add_argument("out", type=Path, help="where the executed notebook goes")
    parser.add_argument("--save", action="store_true", help="put the outputs into the page")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    papermill_engines.register("narrated", Engine)
    try:
        execute_notebook(options.page, options.out, engine_name="narrated",
                         progress_bar=False, cwd=ROOT)
    except PapermillExecutionError as problem:
        print(*problem.traceback, sep="\n", file=sys.stderr)
        sys.exit(f"{options.page} stopped at cell {problem.cell_index}: {problem.ename}: "
                 f"{problem.evalue}; {options.out} shows how far it came")
    notebook = json.loads(options.out.read_text(encoding="utf-8"))
    logged = tidy(notebook)
    options.out.write_text(json.dumps(notebook, indent=1, ensure_ascii=False), encoding="utf-8")
    options.out.with_suffix(".log").write_text("".join(logged), encoding="utf-8")
    write_html(options.out)
    if options.save:
        save_outputs(options.page, notebook)


if __name__ == "__main__":
    main()
