"""The page of `reslib report`: HTML, style and script in one file that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from html import escape
from pathlib import Path

import pandas as pd

STATIC_ROWS = 100  # of the list of runs, readable without the script, which pages through all of them
COLUMNS = (  # name, whether it sorts by number
    ("run", False), ("preset", False), ("model", False), ("data set", False), ("seed", True), ("status", False),
    ("test error, last (%)", True), ("training error (%)", True), ("iterations", True), ("parameters", True),
    ("precision", False), ("device", False), ("torch", False), ("commit", False), ("data", False),
    ("finished", False), ("note", False),
)  # fmt: skip
SHORT = 24  # characters of a table's cell up to which it stays on one line
FILES = {"r": "recipe.json", "m": "metrics.csv", "s": "summary.json"}
FIGURES = {  # stem: what it shows
    "figure1": "Figure 1: training and test error of plain nets of two depths",
    "depth": "Final error against the number of layers",
    "figure4": "Figure 4: plain and residual nets of 18 and 34 layers on ImageNet",
    "figure4_crops": "Training crops of Figure 4",
    "figure6": "Figure 6: plain and residual nets on CIFAR-10",
    "figure7": "Figure 7: standard deviations of layer responses",
    "gradients_start": "Norms of activations and gradients by layer, before training",
    "gradients_training": "Norms of activations and gradients by layer, during training",
    "fidelity": "What common deviations from the paper's protocol cost",
    "future_work": "The step that followed: pre-activation",
    "basic_block": "Figure 2: the residual block",
    "explore_confused": "Test images that the best net is surest about and wrong",
    "speed": "Speed of reslib beside the usual loop",
    "speed_scaling": "Speed against depth, batch size and width",
    "speed_loading": "Speed of the ImageNet loader alone, the network alone, and both",
    "speed_seeds": "Speed of several seeds at once",
    "speed_equivalence": "Final errors of the fast path beside eager fp32",
}
MARKS = {"holds": "✓", "does not hold": "✗", "not enough evidence": "–"}  # never by colour alone

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--ink:#1a1a1a;--soft:#5c5c5c;--line:#d5d5d5;--card:#f6f7f9;--link:#005a9c;
--good:#0b6b3a;--bad:#a32015;--warn:#8a1c12;--focus:#d55e00}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--ink:#e8e8e8;--soft:#a9adb2;--line:#3a4046;--card:#1e2327;
--link:#7cc0f4;--good:#6fd39b;--bad:#ff9a8d;--warn:#ff9a8d;--focus:#ffb000}}
*{box-sizing:border-box}[hidden]{display:none!important}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
header,main,footer{max-width:75rem;margin:auto;padding:0 1rem}
h1{font-size:1.6rem;line-height:1.2;margin:1.2rem 0 .3rem}h2{margin:2.4rem 0 .4rem;border-bottom:1px solid var(--line)}
h3{margin:1.6rem 0 .4rem}p{max-width:48rem}a{color:var(--link)}.soft,caption{color:var(--soft)}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem;background:var(--bg);padding:.5rem 1rem;z-index:2}
:focus-visible{outline:3px solid var(--focus);outline-offset:2px}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;list-style:none;padding:0}
nav a{display:inline-block;padding:.3rem 0}
.loud{color:var(--warn);font-weight:700}
.scroll{overflow-x:auto;margin:.6rem 0;border:1px solid var(--line);border-radius:6px}
table{border-collapse:collapse;width:100%;font-size:.87rem}caption{text-align:left;padding:.5rem .6rem;min-width:16rem}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;border-top:1px solid var(--line)}
thead th{background:var(--card);white-space:nowrap}td.number{text-align:right;font-variant-numeric:tabular-nums}
.board td:nth-child(4),.board td:nth-child(5){min-width:16rem}.board .verdict{white-space:nowrap;font-weight:600}
tbody th{font-weight:600}tbody td:first-child,td.short{white-space:nowrap}
.holds{color:var(--good)}.fails{color:var(--bad)}
.runs td,.runs tbody th{white-space:nowrap;font-weight:400}.runs td.note{white-space:normal;min-width:14rem}
figure{margin:1rem 0}figure img{max-width:100%;height:auto;background:#fff;border:1px solid var(--line);
border-radius:6px;padding:.4rem}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr));gap:1rem;align-items:start}
.tools{display:flex;flex-wrap:wrap;gap:.6rem 1rem;align-items:end;margin:.8rem 0}
.tools label{display:grid;font-size:.87rem;color:var(--soft)}
input,select,button{font:inherit;color:inherit;background:var(--card);border:1px solid var(--line);border-radius:6px;
padding:.35rem .6rem;min-height:2.4rem}
button:disabled{opacity:.45}
th button{border:0;background:none;padding:0;min-height:1.8rem;font-weight:600;cursor:pointer}
th[aria-sort=ascending] button::after{content:" ▲"}th[aria-sort=descending] button::after{content:" ▼"}
footer{padding:2rem 1rem 3rem;color:var(--soft);font-size:.87rem}
@media (max-width:44rem){.board,.board tbody,.board tr,.board th,.board td,.board caption{display:block}
.board thead{position:absolute;left:-99rem}.board th,.board td{border:0;padding:.1rem .6rem}
.board tr{border-top:1px solid var(--line);padding:.5rem 0}.board td::before{content:attr(data-name) ": ";
color:var(--soft);font-weight:400}}
@media print{.tools,.skip,nav{display:none}.scroll{overflow:visible}}
"""

SCRIPT = """
(() => {
  const {rows, columns, files, page} = JSON.parse(document.getElementById("run-data").textContent);
  const body = document.querySelector("#runs-table tbody"), heads = [...document.querySelectorAll("#runs-table th")];
  const find = id => document.getElementById(id), size = columns.length;
  let shown = rows, start = 0, order = null;
  const shownText = (row, i) => row[i] === null ? "" : !columns[i][1] ? row[i] :
    i === 6 || i === 7 ? row[i].toFixed(2) : i === 4 ? String(row[i]) : row[i].toLocaleString("en");
  const haystack = rows.map(row => row.slice(0, size).join(" ").toLowerCase());
  const link = (text, href) => Object.assign(document.createElement("a"), {textContent: text, href});
  function draw() {
    body.replaceChildren(...shown.slice(start, start + page).map(row => {
      const line = document.createElement("tr");
      for (let i = 0; i < size; i++) {
        const cell = document.createElement(i ? "td" : "th");
        if (i) cell.textContent = shownText(row, i);
        else { cell.scope = "row"; cell.append(link(row[0], row[size] + "/")); }
        cell.className = columns[i][1] ? "number" : columns[i][0] === "note" ? "note" : "";
        line.append(cell);
      }
      const cell = document.createElement("td");
      for (const key of row[size + 1]) cell.append(link(files[key], row[size] + "/" + files[key]), " ");
      line.append(cell);
      return line;
    }));
    const last = Math.min(start + page, shown.length);
    find("runs-count").textContent = shown.length ? `Runs ${start + 1} to ${last} of ${shown.length}` +
      (shown.length < rows.length ? `, filtered from ${rows.length}` : "") : "No run matches.";
    find("runs-back").disabled = !start;
    find("runs-next").disabled = last >= shown.length;
  }
  function update() {
    const words = find("runs-filter").value.toLowerCase().split(/\\s+/).filter(Boolean);
    const status = find("runs-status").value;
    shown = rows.filter((row, n) => (!status || row[5] === status) && words.every(w => haystack[n].includes(w)));
    if (order) {
      const [i, sign] = order;
      shown.sort((a, b) => {
        const x = a[i], y = b[i], gone = v => v === null || v === "";
        if (gone(x) || gone(y)) return gone(x) - gone(y);  // what is unknown comes last either way
        return sign * (columns[i][1] ? x - y : String(x).localeCompare(String(y), "en", {numeric: true}));
      });
    }
    start = 0;
    draw();
  }
  heads.slice(0, size).forEach((head, i) => head.querySelector("button").addEventListener("click", () => {
    order = [i, order && order[0] === i && order[1] === 1 ? -1 : 1];
    heads.forEach(h => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order[1] === 1 ? "ascending" : "descending");
    update();
  }));
  find("runs-filter").addEventListener("input", update);
  find("runs-status").addEventListener("change", update);
  find("runs-back").addEventListener("click", () => { start -= page; draw(); });
  find("runs-next").addEventListener("click", () => { start += page; draw(); });
  find("runs-tools").hidden = find("runs-pages").hidden = false;
  draw();
})();
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(sections: list, rows: list[list], problems: list[str], csv: str, link: Callable[[Path], str]) -> str:
    """The whole document. sections: reslib.report.Section; rows: from `report.run_rows`; link: a file's address."""
    menu = [f'<li><a href="#preset-{anchor(s.name)}">Preset {escape(s.name)}</a></li>' for s in sections]
    menu.append('<li><a href="#runs">All runs</a></li>')
    loud = [f'<p class="loud" role="alert">{escape(text)}</p>' for text in problems]
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>reslib: deep residual learning, reproduced'
        '</title><meta name="viewport" content="width=device-width,initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">',
        f'<style>{STYLE}</style></head><body><a class="skip" href="#main">Skip to the results</a>',
        "<header><h1>Deep Residual Learning, reproduced</h1>",
        f"<p>He, Zhang, Ren and Sun (2015), from {len(rows):,} run{'s' * (len(rows) != 1)}. Every number below leads "
        f'to its record; <a href="{escape(csv)}">{escape(csv)}</a> has a row per run for other tools.</p>',
        f'<nav aria-label="Contents"><ul>{"".join(menu)}</ul></nav></header>',
        f'<main id="main" tabindex="-1">{"".join(loud)}',
        *(_section(s, link) for s in sections),
        _runs(rows, csv),
        "</main><footer>Written by reslib from the records beside this page. Errors are percentages. A commit with * "
        "had uncommitted changes.</footer>",
        f"<script>{SCRIPT}</script></body></html>\n",
    ]
    return "\n".join(parts)


def anchor(text: str) -> str:
    """An id without characters that end an attribute or an address."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in text)


def _section(section, link) -> str:
    name = anchor(section.name)
    parts = [f'<section aria-labelledby="preset-{name}"><h2 id="preset-{name}">Preset {escape(section.name)}</h2>']
    if section.synthetic:
        parts.append('<p class="loud">SYNTHETIC DATA: some runs here are not results about natural images.</p>')
    behind = section.evidence or "No records of the studies at this preset."
    parts.append(f'<p class="soft">{escape(behind)}</p>')
    parts.append("<h3>Claims of the paper</h3>" + _board(section.board, section.name))
    if section.figures:
        parts.append(f'<h3>Figures</h3><div class="figures">{"".join(_figure(p, link) for p in section.figures)}</div>')
    if section.tables:
        parts.append("<h3>Tables</h3>")
        parts += [_table(cells, caption) for _, caption, cells in section.tables]
    return "".join(parts) + "</section>"


def _board(board: pd.DataFrame, preset: str) -> str:
    names = ("claim", "source", "verdict", "evidence", "criterion")
    lines = []
    for row in board[list(names)].to_dict("records"):
        kind = {"holds": "holds", "does not hold": "fails"}.get(row["verdict"], "soft")
        row["verdict"] = f"{MARKS.get(row['verdict'], '')} {row['verdict']}"
        cells = [f'<th scope="row" role="rowheader">{escape(row["claim"])}</th>']
        for name in names[1:]:  # the roles keep it a table where a phone stacks its cells
            look = f' class="verdict {kind}"' if name == "verdict" else ""
            cells.append(f'<td role="cell" data-name="{name}"{look}>{escape(row[name])}</td>')
        lines.append(f'<tr role="row">{"".join(cells)}</tr>')
    heads = "".join(f'<th scope="col" role="columnheader">{name}</th>' for name in names)
    caption = f"Scoreboard of preset {preset}, judged on its records by the criteria of reslib/claims.py"
    return _scroll(
        f'<table class="board" role="table"><caption>{escape(caption)}</caption><thead role="rowgroup">'
        f'<tr role="row">{heads}</tr></thead><tbody role="rowgroup">{"".join(lines)}</tbody></table>',
        caption,
    )


def _figure(path: Path, link) -> str:
    text = escape(FIGURES.get(path.stem, path.stem.replace("_", " ")))
    kind = "svg+xml" if path.suffix == ".svg" else "png"
    source = f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    pdf = path.with_suffix(".pdf")
    more = f' (<a href="{escape(link(pdf))}">PDF</a>)' if pdf.exists() else ""
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}{more}</figcaption></figure>'


def _table(cells: pd.DataFrame, caption: str) -> str:
    heads = "".join(f'<th scope="col">{escape(str(c))}</th>' for c in cells.columns)
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in cells.to_numpy())
    return _scroll(
        f"<table><caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>",
        caption,
    )


def _cell(text: str) -> str:
    return f"<td{' class=short' if len(text) <= SHORT else ''}>{escape(text)}</td>"


def _scroll(table: str, label: str) -> str:
    """Wide tables scroll on their own, by keyboard as well."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{table}</div>'


def _runs(rows: list[list], csv: str) -> str:
    heads = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name, _ in COLUMNS)
    states = "".join(f"<option>{escape(s)}</option>" for s in sorted({row[5] for row in rows}))
    data = {"rows": rows, "columns": COLUMNS, "files": FILES, "page": STATIC_ROWS}
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # nothing in it can end the script element
    more = f"The first {STATIC_ROWS} of {len(rows):,}; all are in " if len(rows) > STATIC_ROWS else "Also in "
    table = (
        '<table class="runs" id="runs-table"><caption>Runs and their evidence. The headings sort.</caption>'
        f'<thead><tr>{heads}<th scope="col">files</th></tr></thead>'
        f"<tbody>{''.join(map(_run, rows[:STATIC_ROWS]))}</tbody></table>"
    )
    return (
        '<section aria-labelledby="runs"><h2 id="runs">All runs</h2><div class="tools" id="runs-tools" hidden>'
        '<label>filter (words)<input id="runs-filter" type="search"></label>'
        f'<label>status<select id="runs-status"><option value="">all</option>{states}</select></label></div>'
        f"{_scroll(table, 'All runs')}"
        '<div class="tools" id="runs-pages" hidden><button type="button" id="runs-back">Previous</button>'
        '<button type="button" id="runs-next">Next</button><span id="runs-count" role="status"></span></div>'
        f'<noscript><p>{more}<a href="{escape(csv)}">{escape(csv)}</a>.</p></noscript>'
        f'<script type="application/json" id="run-data">{text}</script></section>'
    )


def _run(row: list) -> str:
    *cells, folder, there = row
    lines = [f'<th scope="row"><a href="{escape(folder)}/">{escape(cells[0])}</a></th>']
    for (name, number), value in zip(COLUMNS[1:], cells[1:], strict=True):
        kind = "number" if number else "note" if name == "note" else ""
        text = "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
        lines.append(f'<td class="{kind}">{escape(text)}</td>')
    files = " ".join(f'<a href="{escape(folder)}/{FILES[key]}">{FILES[key]}</a>' for key in there)
    return f"<tr>{''.join(lines)}<td>{files}</td></tr>"
