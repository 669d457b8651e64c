"""Notebooks as files, and the programs that run them, in the environment where notebooks are run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def lab_program(name: str) -> str:
    """Return a program of JupyterLab's and papermill's environment."""
    return str(Path(os.environ["ELASTIC_KERNELS_LAB"]).with_name(name))


def write(path: Path, *cells: str, kernel: str | None = "small", parameters: str | None = None, language: str = "python") -> Path:
    """Write a notebook of these cells; ``parameters`` is the text of its tagged cell."""
    tagged = [_cell(parameters, "parameters")] if parameters is not None else []
    spec = {"kernelspec": {"name": kernel, "display_name": kernel, "language": language}} if kernel else {}
    content = {"cells": tagged + [_cell(source) for source in cells], "metadata": spec, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(content))
    return path


def executed(notebook: Path) -> Path:
    """Return where ``elastic-kernels run`` puts the executed notebook."""
    return notebook.with_name(f"{notebook.stem}.executed.ipynb")


def outputs(notebook: Path) -> list[str]:
    """Return what each code cell of an executed notebook put out: texts, and names and values of errors."""
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(map(_text, cell["outputs"])) for cell in cells if cell["cell_type"] == "code"]


def _cell(source: str, *tags: str) -> dict[str, Any]:
    common: dict[str, Any] = {"cell_type": "code", "id": os.urandom(4).hex(), "outputs": [], "execution_count": None}
    return {**common, "source": source, "metadata": {"tags": list(tags)}}


def _text(output: dict[str, Any]) -> str:
    if output["output_type"] == "error":
        return f"{output['ename']}: {output['evalue']}"
    return "".join(output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"])
