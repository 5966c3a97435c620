"""A benchmark's record as JSON and as a Markdown page."""

from __future__ import annotations

import re
from pathlib import Path

from ..files import write_json, write_text

TF32 = (
    "*usual* has its convolutions in TF32, PyTorch's default on such a GPU; the matrix rate in fp32 and reslib's *fp32*"
    " are without."
)
EMULATED = 0.25  # of the fp32 rate: a product in bf16 that is slower has no unit of its own, and is no measure
PARTS = ("data", "forward", "backward", "optimiser", "metrics")


class Report:
    """A record kept as <device>-<date>.json and .md below `folder`; a later one of the same day gets a number.

    path: of the JSON file; None until something was written.
    """

    def __init__(self, folder: Path):
        self.folder, self.path, self._shown = folder, None, set()

    def write(self, record: dict, say=print, show: bool = True) -> None:
        """Write what is measured so far over what was written before; say(text) is told what is new in it.

        show: not of a part that is not complete yet.
        """
        if self.path is None:
            device = re.sub(r"[^a-z0-9]+", "-", record["environment"]["device_name"].lower()).strip("-")
            stem = free_name(self.folder, f"{device}-{record['date'][:10]}")
            self.path = self.folder / f"{stem}.json"
        text = markdown(record)
        write_json(self.path, record)
        write_text(self.path.with_suffix(".md"), text)
        if show:
            paragraphs = dict.fromkeys(text.strip().split("\n\n"))  # what was measured later may stand further up
            say("\n" + "\n\n".join(p for p in paragraphs if p not in self._shown) + "\n", flush=True)
            self._shown |= paragraphs.keys()


def free_name(folder: Path, stem: str) -> str:
    """The stem, or stem-2, stem-3 ... whichever is free."""
    number = 1
    while (folder / f"{name_of(stem, number)}.json").exists():
        number += 1
    return name_of(stem, number)


def name_of(stem: str, number: int) -> str:
    """File name without suffix of the number-th record of one machine."""
    return stem if number == 1 else f"{stem}-{number}"


def markdown(record: dict) -> str:
    """A record as a Markdown page."""
    env = record["environment"]
    lines = [
        f"# Speed on {env['device_name']}",
        "",
        f"{record['date']}, torch {env['torch']}, {env['threads']} threads, commit {env['commit'][:10]}"
        + (" with local changes" if env["dirty"] else "")
        + f", data: {record['dataset']}. Load average at the start: {record['load']}."
        + (f" Settings for this processor: {record['tuned']}." if record.get("tuned") else ""),
    ]
    tf32 = env.get("cuda") and record.get("tf32", {}).get("convolutions")
    for part in record["comparisons"]:
        lines += ["", *_comparison(part), *(["", TF32] if tf32 else [])]
    for part in record.get("seeds", []):
        lines += ["", *_seeds(part)]
    if record["scaling"]:
        lines += ["", *_scaling(record["scaling"])]
    if start := record.get("start"):
        lines += ["", _start(start)]
    for part in record["loading"]:
        rates = part["images_per_second"]
        lines += [
            "",
            f"## Loading: {part['model']} on {part['dataset']}, {part['crop_size']} pixels, batch {part['batch_size']}",
            "",
            "| loader alone | network alone | both |",
            "| ---: | ---: | ---: |",
            "| " + " | ".join(f"{rates[k]:.0f}" for k in ("loader_alone", "model_alone", "both")) + " |",
        ]
    lines += [line for name, why in record.get("failed", {}).items() for line in ("", f"{name} failed: {why}")]
    if left := record.get("left_out"):
        lines += ["", f"Left out at the time limit: {'; '.join(left)}."]
    return "\n".join(lines) + "\n"


def _start(start: dict) -> str:
    if "failed" in start:
        return f"Start to first step: failed, {start['failed']}"
    return (
        f"A new process has taken its first, eager step of ResNet-20 after {start['first_step_seconds']:.1f} s; torch "
        f"is imported in {start['torch_import_seconds']:.1f} s, reslib in {start['import_seconds']:.1f} s more."
    )


def _comparison(part: dict) -> list[str]:
    machine = part["machine"]
    lines = [
        f"## {part['model']}, batch {part['batch_size']}",
        "",
        f"Median of {part['rounds']} alternating turns; range in brackets."
        if part["rounds"] > 1
        else "One turn of each: there is no range.",
        "",
        "| loop | images/s | ratio | data | forward | backward | optimiser | metrics | set-up | 64k run | memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in part["contenders"]:
        turns = row["images_per_second_turns"]
        parts = [f"{1000 * row['parts'].get(name, 0):.1f} ms" for name in PARTS]
        memory = row.get("peak_memory_mib") or {}
        cells = [
            row["contender"],
            f"{row['images_per_second']:.0f}" + f" ({min(turns):.0f} to {max(turns):.0f})" * (len(turns) > 1),
            f"{row['ratio']:.2f}" + f" ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})" * (len(turns) > 1),
            *parts,
            f"{row['setup_seconds']:.1f} s",
            _duration(row["seconds_to_the_end_of_64k"]),
            ", ".join(f"{v:.0f} MiB {k.replace('_', ' ')}" for k, v in memory.items()) or "not measured",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        *(f"- {row['contender']}: {row['what']}" for row in part["contenders"]),
        *(f"- {name}: failed, {why}" for name, why in part.get("failed", {}).items()),
        *_of_eager_steps(part),
        "",
        f"Roofline: a {machine['matrix_size']}² matrix product reaches "
        f"{_giga(machine['fp32_multiply_adds_per_second'])} (fp32) and "
        f"{_giga(machine['bf16_multiply_adds_per_second'])} (bf16) G multiply-adds/s, a copy moves "
        f"{_giga(machine['copy_bytes_per_second'])} GB/s. Multiply-adds are those of direct "
        "sums, whatever computes the convolutions.",
        "",
        "| loop | G multiply-adds/s | of the matrix rate | arithmetic alone | traffic alone (nothing fused) | step |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    slow = machine["bf16_multiply_adds_per_second"] < EMULATED * machine["fp32_multiply_adds_per_second"]
    for row in part["contenders"]:
        measure = not (slow and row["precision"] == "bf16")
        cells = [
            f"{row['contender']} ({row['precision']})",
            _giga(row["multiply_adds_per_second"]),
            f"{100 * row['share_of_matrix_rate']:.0f}%" if measure else "no measure: bf16 is emulated",
            f"{1000 * row['arithmetic_floor_seconds']:.1f} ms" if measure else "",
            *(f"{1000 * row[k]:.1f} ms" for k in ("traffic_floor_seconds", "seconds_per_step")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _of_eager_steps(part: dict) -> list[str]:
    """What the parts of a step are where the step itself has no seams."""
    names = [row["contender"] for row in part["contenders"] if row.get("parts_are_of_the_eager_step")]
    if not names:
        return []
    return [
        "",
        f"Data to metrics of {', '.join(names)}: of eager steps, with a wait after each; the step has no seams.",
    ]


def _seeds(part: dict) -> list[str]:
    lines = [
        f"## {part['seeds']} seeds of {part['model']} at once, batch {part['batch_size']}, {part['precision']}",
        "",
        f"Medians of {len(part['images_per_second_turns']['one in turn'])} turns; range in brackets.",
        "",
        "| way | images/s in all | cost in single runs |",
        "| --- | ---: | ---: |",
    ]
    for name, rate in part["images_per_second"].items():
        through = ", through NVIDIA's Multi-Process Service" if part.get("multi_process_service") else ""
        shown = f"{name} ({part['processes_at_once']} at a time{through})" if name == "processes" else name
        turns = part["images_per_second_turns"][name]
        cost = f"{part['cost_in_runs'][name]:.2f}"
        if name in (costs := part.get("cost_in_runs_turns", {})):
            cost += f" ({min(costs[name]):.2f} to {max(costs[name]):.2f})"
        lines.append(f"| {shown} | {rate:.0f} ({min(turns):.0f} to {max(turns):.0f}) | {cost} |")
    return lines + [f"\n{name} failed: {reason}" for name, reason in part["failed"].items()]


def _scaling(records: list[dict]) -> list[str]:
    lines = [
        "## How cost grows",
        "",
        "| axis | value | model | images/s | memory |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for r in records:
        memory = max((r.get("peak_memory_mib") or {}).values(), default=None)
        rate = r.get("failed") or f"{r['images_per_second']:.0f}"
        shown = "" if memory is None else f"{memory:.0f} MiB"
        lines.append(f"| {r['axis']} | {r['value']} | {r['model']} | {rate} | {shown} |")
    ways = sorted({r["contender"] for r in records if "contender" in r})
    return [*lines, "", f"Contender: {', '.join(ways)}."] if ways else lines


def _giga(value: float) -> str:
    return f"{value / 1e9:.1f}"


def _duration(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
