"""A table in files, for reading and for a paper."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from .errors import UserError
from .files import write_text

IN_LATEX = "columns in LaTeX"  # key of a table's attrs: those that fit on a page, where it has more


def save_table(table: pd.DataFrame, stem: str | Path, caption: str) -> list[Path]:
    """Write stem.csv, stem.md and stem.tex, each whole or not at all. The caption heads the last two.

    stem.tex has the columns `table.attrs[IN_LATEX]`, where the table names them.
    """
    stem, narrow = Path(stem), table[table.attrs.get(IN_LATEX, list(table))]
    try:
        texts = {
            "csv": table.to_csv(index=False, lineterminator="\n"),
            "md": f"{caption}\n\n{table.to_markdown(index=False, disable_numparse=True)}\n",
            "tex": narrow.to_latex(index=False, escape=True, caption=_tex(caption), label=f"tab:{stem.name}"),
        }
    except ImportError as error:
        needed = error.name or "tabulate and jinja2"
        raise UserError(f"saving tables needs {needed}: pip install 'reslib[notebooks]'") from None
    paths = []
    for kind, text in texts.items():
        paths.append(stem.with_name(f"{stem.name}.{kind}"))
        write_text(paths[-1], text)
    return paths


def _tex(text: str) -> str:
    for character in "\\{}&%$#_":
        text = text.replace(character, r"\textbackslash " if character == "\\" else "\\" + character)
    return text.replace("~", r"\textasciitilde ").replace("^", r"\textasciicircum ")
