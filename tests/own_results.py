"""A source notebook whose `results` parameter names a folder of one's own, as a reader would edit the cell."""

import json
import re
from pathlib import Path


def with_results(notebook: Path, results: Path) -> str:
    """The notebook's text with that one parameter changed."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    cell = next(c for c in content["cells"] if "parameters" in c["metadata"].get("tags", []))
    source, count = re.subn(r'^results: str = ""', f'results: str = "{results}"', "".join(cell["source"]), flags=re.M)
    assert count == 1, notebook.name
    cell["source"] = source.splitlines(True)
    return json.dumps(content)
