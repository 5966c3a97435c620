"""The source of a network of one's own: a changed file must not pass as the run of the old one.

A recipe names such a network as package.module:Factory, and nothing in it tells two versions of that module apart. So a
hash of the source is kept with the run. It covers the module and, followed through its imports, the modules of the same
package or, for a module that lies in a folder of its own, of the same folder. Comments and layout do not count. Other
packages do not either: the record names their versions where they are known (torch, torchvision).
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
from pathlib import Path

from .errors import UserError
from .recipe import Recipe


def look_in_current_folder() -> None:
    """Let modules be found in the current folder, where the `reslib` script does not look by itself."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())


def source_of(model: str) -> str:
    """Twelve hexadecimal digits over the source behind package.module:Factory; "" for the study's own networks.

    "" as well where the source cannot be read: a record needs no source to stay valid.
    """
    module, colon, _ = model.partition(":")
    if not colon:
        return ""
    look_in_current_folder()
    try:
        parts = [f"{name}\0{text}" for name, text in sorted(_sources(module).items())]
    except (ImportError, OSError, ValueError):
        return ""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12] if parts else ""


def changed(recipe: Recipe, recorded: str | None) -> str:
    """What to tell the user whose network has changed since `recorded` was kept, or ""."""
    now = source_of(recipe.model) if recorded else ""
    if not now or now == recorded:
        return ""
    return (
        f"the code of {recipe.model} has changed since run {recipe.run_name} was begun (source {recorded}, now {now}): "
        "restore it, put the new version into a file of its own (the whole file counts, with what it imports from its "
        "folder), or remove that run's folder to train it anew"
    )


def check(recipe: Recipe, recorded: str | None) -> None:
    """Raise UserError if the network has changed since `recorded` was kept."""
    if text := changed(recipe, recorded):
        raise UserError(text)


def _sources(module: str) -> dict[str, str]:
    """Module name -> its code, of the module and of what it imports from its own package or folder."""
    found, todo, top = {}, [module], module.partition(".")[0]
    root = _path(top)
    folder = root and (root.parent.parent if root.name == "__init__.py" else root.parent)
    while todo:
        name = todo.pop()
        path = _path(name)
        if path is None or name in found or not (name.partition(".")[0] == top or _beside(name, path, folder)):
            continue
        source = path.read_bytes()
        try:
            tree = ast.parse(source)
        except SyntaxError:  # it does not run, but it is not what it was either
            found[name] = repr(source)
            continue
        found[name] = ast.unparse(tree)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package or None)
                todo += [base, *(f"{base}.{alias.name}" for alias in node.names)]  # a name may be a module
    return found


def _beside(name: str, path: Path, folder: Path | None) -> bool:
    """Whether a module belongs to the files in the user's folder: not installed, not of Python, not this package."""
    if folder is None or not path.is_relative_to(folder) or {"site-packages", "dist-packages"} & set(path.parts):
        return False
    return name.partition(".")[0] not in {*sys.stdlib_module_names, "reslib"}


def _path(module: str) -> Path | None:
    """The Python file of a module, None where it has none or does not exist."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(spec.origin).resolve() if spec and spec.origin and spec.origin.endswith(".py") else None
