"""Writes the badges of the README and, once the repository has a public address, the buttons for Colab and Binder.

    python scripts/links.py            # or `make links`; `--check` only says what is old, exit code 1

Everything comes from pyproject.toml: the versions that a badge names, the licence, and the address in
`[tool.reslib] repository`. While that is empty there are no buttons: one that leads nowhere would be a lie. With an
address every notebook gets its two links under the title, and its first cell installs reslib where it is missing.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from html import escape
from pathlib import Path

START, END = "<!-- badges:start -->", "<!-- badges:end -->"
ADDRESS = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+)")  # Colab opens notebooks from there alone
INSTALL = """import importlib.util

if importlib.util.find_spec("reslib") is None:  # Colab: install what this notebook needs
    get_ipython().run_line_magic("pip", "install --quiet 'reslib[notebooks] @ git+{address}@{branch}'")

"""
INSTALL_THERE = re.compile(r"import importlib\.util\n\nif .*\n    get_ipython\(\).*\n\n")
LINKS_THERE = re.compile(r"\[Open in Colab\].*\n\n")
PIXELS = 7  # per character of a badge


def facts(root: Path) -> dict:
    """What pyproject.toml says. Raises SystemExit for an address that is not one of a GitHub repository."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    own = project.get("tool", {}).get("reslib", {})
    address = own.get("repository", "").removesuffix(".git").rstrip("/")
    if address and not ADDRESS.fullmatch(address):
        raise SystemExit(f"repository {address!r} in pyproject.toml is not of the form https://github.com/OWNER/NAME")
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["project"]["requires-python"]).groups()
    torch = next(d for d in project["project"]["dependencies"] if d.startswith("torch>"))
    return {
        "address": address,
        "branch": own.get("branch", "main"),
        "python": f"3.{low} to 3.{int(high) - 1}",
        "torch": torch.removeprefix("torch>=") + " or later",
        "licence": project["project"]["license"],
    }


def badge(left: str, right: str, colour: str) -> str:
    """A badge as an SVG image that needs nothing from elsewhere."""
    a, b = (PIXELS * len(text) + 12 for text in (left, right))
    name = escape(f"{left}: {right}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{a + b}" height="20" role="img" aria-label="{name}">'
        f'<title>{name}</title><rect width="{a}" height="20" fill="#444"/>'
        f'<rect x="{a}" width="{b}" height="20" fill="{colour}"/>'
        f'<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">'
        f'<text x="{a / 2}" y="14">{escape(left)}</text><text x="{a + b / 2}" y="14">{escape(right)}</text></g></svg>\n'
    )


def colab(known: dict, notebook: str) -> str:
    owner, name = ADDRESS.fullmatch(known["address"]).groups()
    return f"https://colab.research.google.com/github/{owner}/{name}/blob/{known['branch']}/notebooks/{notebook}.ipynb"


def binder(known: dict, notebook: str) -> str:
    owner, name = ADDRESS.fullmatch(known["address"]).groups()
    return (
        f"https://mybinder.org/v2/gh/{owner}/{name}/{known['branch']}?urlpath=lab%2Ftree%2Fnotebooks%2F{notebook}.ipynb"
    )


def badges(known: dict) -> dict[str, tuple[str, str, str, str]]:
    """File name: (left, right, colour, where it leads)."""
    found = {
        "python": ("python", known["python"], "#0b5c99", "pyproject.toml"),
        "torch": ("torch", known["torch"], "#b0431e", "pyproject.toml"),
        "licence": ("licence", known["licence"], "#3b6b2f", "LICENSE"),
    }
    if known["address"]:
        found["colab"] = ("open in", "Colab", "#8a5a00", colab(known, "figure1"))
        found["binder"] = ("open in", "Binder", "#a3245a", binder(known, "figure1"))
    return found


def readme(text: str, known: dict) -> str:
    """The README with the badges of `known` between its markers."""
    if START not in text or END not in text:
        raise SystemExit(f"README.md has no {START} ... {END}")
    images = [
        f"[![{left}: {right}](docs/badges/{stem}.svg)]({target})"
        for stem, (left, right, _, target) in badges(known).items()
    ]
    before, rest = text.split(START, 1)
    return f"{before}{START}\n" + "\n".join(images) + f"\n{END}{rest.split(END, 1)[1]}"


def notebook(text: str, stem: str, known: dict) -> str:
    """A source notebook with its links and its first cell's installation, or without them."""
    if not known["address"] and "Open in Colab" not in text:
        return text
    content = json.loads(text)
    title = content["cells"][0]
    first = next(cell for cell in content["cells"] if cell["cell_type"] == "code")
    head, _, rest = LINKS_THERE.sub("", "".join(title["source"])).partition("\n\n")
    code = INSTALL_THERE.sub("", "".join(first["source"]))
    if known["address"]:
        head += f"\n\n[Open in Colab]({colab(known, stem)}) · [Open in Binder]({binder(known, stem)})"
        code = INSTALL.format(**known) + code
    title["source"], first["source"] = f"{head}\n\n{rest}".splitlines(True), code.splitlines(True)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def wanted(root: Path) -> dict[Path, str]:
    """Every file that this script writes, with its text."""
    known = facts(root)
    files = {root / "README.md": readme((root / "README.md").read_text(encoding="utf-8"), known)}
    for stem, (left, right, colour, _) in badges(known).items():
        files[root / "docs" / "badges" / f"{stem}.svg"] = badge(left, right, colour)
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        files[path] = notebook(path.read_text(encoding="utf-8"), path.stem, known)
    return files


def main(arguments: list[str], root: Path) -> int:
    files = wanted(root)
    there = set((root / "docs" / "badges").glob("*.svg"))
    old = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    old += sorted(there - set(files))
    for path in old:
        print(f"{path.relative_to(root)}: {'old' if '--check' in arguments else 'written'}")
        if "--check" in arguments:
            continue
        if path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path], encoding="utf-8")
        else:
            path.unlink()
    return 1 if old and "--check" in arguments else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], Path(__file__).resolve().parent.parent))
