"""Live progress: a bar and a learning curve that update in place in a notebook, a line per evaluation elsewhere."""

from __future__ import annotations

import html
import os

WIDTH, HEIGHT = 420, 90


def in_notebook() -> bool:
    """Whether output goes to a Jupyter kernel (JupyterLab, VS Code, papermill, nbval)."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def is_quiet() -> bool:
    """Whether nothing is to be shown: RESLIB_PROGRESS=off, or nbval runs the notebook and compares what it prints."""
    testing = os.environ.get("PYTEST_CURRENT_TEST", "")  # a kernel that nbval starts inherits the name of its test
    return os.environ.get("RESLIB_PROGRESS") == "off" or ".ipynb::" in testing


class Progress:
    """Progress over the runs of a study; `say` takes lines of text, `on_row` the metrics of an evaluation."""

    def __init__(self, total: int):
        self.total, self.number, self.run = total, 0, ""
        self.lines: list[str] = []
        self.curves: dict[str, list[tuple[float, float]]] = {}
        self.quiet = is_quiet()
        self.handle = None
        if total and not self.quiet and in_notebook():
            from IPython.display import HTML, display

            self.handle = display(HTML(self._html()), display_id=True)

    def begin(self, recipe) -> None:
        """The next run starts: its curve becomes the bold one."""
        self.number += 1
        self.run, self.iterations = f"{recipe.model} seed {recipe.seed}", recipe.iterations
        self.curves[recipe.run_name] = self.current = []
        self._show()

    def say(self, text: str) -> None:
        """A line of text: below the curve in a notebook, printed elsewhere."""
        self.lines.append(text)
        if self.handle is None and not self.quiet:
            print(text, flush=True)

    def on_row(self, row: dict) -> None:
        """A point of the running curve: iteration and test error (a fraction)."""
        self.current.append((row["iteration"], row["test_error"]))
        self._show()

    def done(self) -> None:
        """All runs have ended."""
        self.run = ""
        self._show()

    def _show(self) -> None:
        if self.handle is not None:
            from IPython.display import HTML

            self.handle.update(HTML(self._html()))

    def _html(self) -> str:
        share = (self.number - bool(self.run)) / max(1, self.total)
        if self.run and self.current:
            share += self.current[-1][0] / self.iterations / self.total
        state = (
            f"run {self.number} of {self.total}: {self.run}"
            if self.run
            else f"{self.number} of {self.total} runs trained"
        )
        last = self.lines[-1] if self.run and self.lines else ""
        return (
            f'<div class="reslib-progress" style="font:13px system-ui,sans-serif;max-width:60em">{html.escape(state)}'
            f'<div role="progressbar" aria-valuenow="{100 * share:.0f}" aria-valuemin="0" aria-valuemax="100" '
            f'style="background:#8883;border-radius:4px;width:{WIDTH}px;height:8px;margin:4px 0">'
            f'<div style="background:#0072b2;border-radius:4px;width:{100 * share:.1f}%;height:8px"></div></div>'
            f"{self._svg()}<div><code>{html.escape(last)}</code></div></div>"
        )

    def _svg(self) -> str:
        """Test error (0 to 100 %, top is 100) against iterations, the run in training bold, the others pale."""
        curves = [c for c in self.curves.values() if c]
        if not curves:
            return ""
        furthest = max(self.iterations, *(c[-1][0] for c in curves))
        lines = []
        for curve in curves:
            points = " ".join(f"{WIDTH * i / furthest:.1f},{HEIGHT * (1 - e):.1f}" for i, e in curve)
            width, opacity = (2, 1) if curve is self.current else (1, 0.35)
            lines.append(
                f'<polyline points="{points}" fill="none" stroke="#0072b2" stroke-width="{width}" opacity="{opacity}"/>'
            )
        return (
            f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="test error against iterations" '
            f'style="border-left:1px solid #888;border-bottom:1px solid #888">{"".join(lines)}'
            f'<text x="{WIDTH - 4}" y="12" text-anchor="end" font-size="11" fill="#888">test error, 0 to 100 %</text>'
            "</svg>"
        )
