"""The parameters that papermill injects: a name or a type that the notebook does not have is an error, not a warning.

papermill only logs a misspelled parameter, and reads `1e-1` as text. It puts a cell that begins with "# Parameters"
behind the notebook's own, in which each parameter stands as `name: type = value  # help`.
"""

from __future__ import annotations

import ast
import sys

from .errors import UserError, choose, shown

MARK = "# Parameters"


def check_injected() -> None:
    """Raise UserError for an injected parameter that the running notebook does not know or of another type than there.

    Does nothing outside a notebook.
    """
    cells, values = executed()
    at = max((i for i, text in enumerate(cells) if text.startswith(MARK)), default=None)
    if at is None:
        return
    known: dict[str, str] = {}
    for text in cells[:at]:
        known |= annotated(text)
    for name in assigned(cells[at]):
        choose("notebook parameter", name, known)
        kind = type(values.get(name)).__name__
        if kind != known[name]:
            raise UserError(f"{name} {shown(values.get(name))} is of type {kind}: allowed is {known[name]}")


def executed() -> tuple[list[str], dict]:
    """The cells that this kernel has executed, the running one included, and the notebook's variables."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return (list(shell.user_ns.get("In", ())), shell.user_ns) if shell else ([], {})


def annotated(text: str) -> dict[str, str]:
    """Name and type of each `name: type = value` at the top level of a cell."""
    return {
        node.target.id: ast.unparse(node.annotation)
        for node in _statements(text)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def assigned(text: str) -> list[str]:
    """The names that a cell assigns at its top level."""
    targets = [t for node in _statements(text) if isinstance(node, ast.Assign) for t in node.targets]
    return [t.id for t in targets if isinstance(t, ast.Name)]


def _statements(text: str) -> list[ast.stmt]:
    try:
        return ast.parse(text).body
    except (SyntaxError, ValueError):  # magics of IPython
        return []
