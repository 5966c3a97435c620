"""Every figure and table that the records alone can give again: notebooks, `reslib verify` and the report draw here.

Each function takes the folder of a preset (results/<preset>) and writes below `out` (default: the same folder); it
returns the files written, none when there are no records for it. Only runs of the study's own plan are drawn, of every
seed on disk. dataset: which data; default is the real one if finished runs of it exist.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from . import ablation, claims, equivalence_records, exact_rows, figures, gradient_summary, studies, tables
from .bench import growth
from .bench import records as bench
from .errors import choose
from .frames import find_measurement, frames, has_measurement
from .presets import preset_of
from .studies import CIFAR_STUDIES, STUDIES, plan

DATASETS = {  # kind: real ones first
    "cifar": ("cifar10", "synthetic"),
    "imagenet": ("imagenet", "imagenette", "synthetic-imagenet"),
}


def figure1(folder: Path, out: Path | None = None, dataset: str | None = None) -> list[Path]:
    """figures/figure1."""
    runs, curves, _ = study_frames("figure1", folder, dataset)
    return [] if runs.empty else _figure(figures.figure1(runs, curves), out or folder, "figure1")


def depth(folder: Path, out: Path | None = None, dataset: str | None = None) -> list[Path]:
    """figures/depth: the plain and residual nets of every depth of Figure 6 that has records."""
    runs, _, _ = study_frames("figure6", folder, dataset, curves=False)
    return [] if runs.empty else _figure(figures.depth_view(runs), out or folder, "depth")


def figure4(folder: Path, out: Path | None = None, dataset: str | None = None) -> list[Path]:
    """figures/figure4."""
    runs, curves, _ = study_frames("figure4", folder, dataset)
    return [] if runs.empty else _figure(figures.figure4(runs, curves), out or folder, "figure4")


def figure6(folder: Path, out: Path | None = None, dataset: str | None = None) -> list[Path]:
    """figures/figure6."""
    runs, curves, _ = study_frames("figure6", folder, dataset)
    return [] if runs.empty else _figure(figures.figure6(runs, curves), out or folder, "figure6")


def by_depth(folder: Path, out: Path | None = None, dataset: str | None = None) -> list[Path]:
    """tables/figure6 and tables/figure4: the final errors of their plain and residual nets."""
    written = []
    for study in ("figure6", "figure4"):
        if dataset and dataset not in DATASETS[STUDIES[study][1]]:
            continue
        runs, _, _ = study_frames(study, folder, dataset, curves=False)
        if len(runs):
            written += _table(tables.depth_table(runs), out or folder, study, tables.depth_caption(runs))
    return written


def figure7(folder: Path, out: Path | None = None, dataset: str | None = None) -> list[Path]:
    """figures/figure7, from measurements/figure7.csv and the records of the networks measured."""
    responses = find_measurement(folder, "figure7")
    if responses is None:
        return []
    runs, _, _ = study_frames("figure7", folder, dataset)
    return _figure(figures.figure7(responses, runs), out or folder, "figure7")


def gradients(folder: Path, out: Path | None = None, dataset: str | None = None) -> list[Path]:
    """figures/gradients_start, figures/gradients_training and two tables, from measurements/gradients.csv alone."""
    norms = find_measurement(folder, "gradients")
    if norms is None or norms.empty:
        return []
    out = out or folder
    written = _figure(figures.gradients_figure(norms[norms["iteration"] == 0]), out, "gradients_start")
    written += _figure(figures.gradients_figure(norms), out, "gradients_training")
    for stem, (table, caption) in gradient_summary.captioned(norms).items():
        written += _table(table, out, stem, caption)
    return written


def fidelity(folder: Path, out: Path | None = None, dataset: str | None = None) -> list[Path]:
    """tables/fidelity and figures/fidelity."""
    runs, _, dataset = study_frames("fidelity", folder, dataset)
    if runs.empty:
        return []
    pool = study_frames("figure6", folder, dataset, curves=False)[0]
    measured = find_measurement(folder, "fidelity")
    if measured is None:
        measured = pd.DataFrame(columns=exact_rows.MEASURED)
    rows = ablation.table(studies.fidelity(preset_of(Path(folder).name), dataset, 0), runs, measured, pool)
    used = exact_rows.used(runs, measured, pool)
    return _table(ablation.printed(rows), out or folder, "fidelity", ablation.fidelity_caption(used)) + _figure(
        figures.forest(rows, used), out or folder, "fidelity"
    )


def future_work(folder: Path, out: Path | None = None, dataset: str | None = None) -> list[Path]:
    """figures/future_work and tables/future_work, where both units have been trained."""
    runs, curves, dataset = study_frames("future_work", folder, dataset)
    if not _both_units(runs):
        return []
    preset = preset_of(Path(folder).name)
    recipes = studies.future_work(preset, dataset, 0)
    original, changed = ([r for r in recipes if bool(r.options) == new] for new in (False, True))
    figure = figures.learning_curves({"original": original, "pre-activation": changed}, runs, curves)
    rows = ablation.table({"paper": original, "pre-activation": changed}, runs)
    caption = ablation.future_work_caption(preset.future_depth, runs)
    return _figure(figure, out or folder, "future_work") + _table(
        ablation.printed(rows), out or folder, "future_work", caption
    )


def cifar10(folder: Path, out: Path | None = None, dataset: str | None = None) -> list[Path]:
    """tables/cifar10."""
    runs, _, _ = study_frames("cifar10_table", folder, dataset, curves=False)
    if runs.empty:
        return []
    return _table(tables.cifar10_table(runs), out or folder, "cifar10", tables.caption(runs))


def scoreboard(folder: Path, out: Path | None = None, dataset: str | None = None) -> list[Path]:
    """tables/claims: the claims about CIFAR-10."""
    return _scoreboard("cifar10_table", cifar_records, claims_table, "claims", folder, out, dataset)


def imagenet_scoreboard(folder: Path, out: Path | None = None, dataset: str | None = None) -> list[Path]:
    """tables/figure4_claims: the claims about ImageNet."""
    return _scoreboard("figure4", imagenet_records, imagenet_claims_table, "figure4_claims", folder, out, dataset)


def _scoreboard(
    study: str, records, judged, stem: str, folder: Path, out: Path | None, dataset: str | None
) -> list[Path]:
    """Where the study has runs; records, judged: (folder, data set) -> the runs judged on, the table."""
    runs, _, dataset = study_frames(study, folder, dataset, curves=False)
    if runs.empty:
        return []
    return _table(judged(folder, dataset), out or folder, stem, tables.claims_caption(records(folder, dataset)))


def imagenet_records(folder: Path, dataset: str) -> pd.DataFrame:
    """The ended records of Figure 4 at this preset."""
    return study_frames("figure4", folder, dataset, curves=False)[0]


def cifar_records(folder: Path, dataset: str) -> pd.DataFrame:
    """All ended CIFAR records of this preset's plan, of every seed on disk."""
    recipes = plan(preset_of(Path(folder).name), {"cifar": dataset}, names=CIFAR_STUDIES)
    return frames(Path(folder) / "runs", recipes, curves=False)[0]  # only a claim about ImageNet looks at curves


def claims_table(folder: Path, dataset: str) -> pd.DataFrame:
    """The claims about CIFAR-10, judged on all CIFAR records of this preset and what the probes measured."""
    runs = cifar_records(folder, dataset)
    board = claims.scoreboard(runs, None, find_measurement(folder, "figure7"), find_measurement(folder, "gradients"))
    return claims.rows_of(board, *(claim.id for claim in claims.CIFAR_CLAIMS))


def imagenet_claims_table(folder: Path, dataset: str) -> pd.DataFrame:
    """The claims about ImageNet, judged on the records of Figure 4 at this preset."""
    runs, curves, _ = study_frames("figure4", folder, dataset)
    return claims.rows_of(claims.scoreboard(runs, curves), *(claim.id for claim in claims.IMAGENET_CLAIMS))


DEVICE_STEMS = tuple(figures.numbered("speed", n) for n in range(9))  # one for each device compared
SPEED_STEMS = (*DEVICE_STEMS, "speed_scaling", "speed_seeds", "speed_loading", "speed_equivalence")


def speed_figures(results: Path, damaged=lambda text: None) -> dict:
    """The figures of the notebook `speed` by name, of what `reslib bench` and `reslib equivalence` left below results.

    Those without a record are left out. damaged(text) is told of a record that cannot be read.
    """
    found = bench.load_records(Path(results) / "bench", damaged=damaged)
    compared = bench.latest(bench.comparisons(found), "usual", "fast")
    devices = [rows for _, rows in compared.groupby("device")] if len(compared) else []
    drawn = {figures.numbered("speed", n): figures.contenders_figure(rows) for n, rows in enumerate(devices)}
    for stem, draw, rows in (
        ("speed_scaling", figures.scaling_figure, growth.scaling(found)),
        ("speed_seeds", figures.seeds_figure, bench.seeds(found)),
        ("speed_loading", figures.loading_figure, bench.loading(found)),
        ("speed_equivalence", figures.equivalence_figure, equivalence_records.frame(results, damaged)),
    ):
        if len(rows):
            drawn[stem] = draw(rows)
    return drawn


def speed(folder: Path, out: Path | None = None, dataset: str | None = None) -> list[Path]:
    """figures/speed and the others of the notebook `speed`: the same for every preset and data set."""
    drawn = speed_figures(Path(folder).parent)
    return [path for stem, figure in drawn.items() for path in _figure(figure, out or folder, stem)]


ARTEFACTS = {  # name: the function that writes it
    "figure1": figure1,
    "depth": depth,
    "figure4": figure4,
    "figure6": figure6,
    "by_depth": by_depth,
    "figure7": figure7,
    "gradients": gradients,
    "fidelity": fidelity,
    "future_work": future_work,
    "cifar10": cifar10,
    "claims": scoreboard,
    "figure4_claims": imagenet_scoreboard,
    "speed": speed,
}
NOTEBOOKS = {  # stem of a file in figures/ or tables/: the notebook that makes it, where the names differ
    "depth": "figure6",
    "cifar10": "cifar10_table",
    "claims": "cifar10_table",
    "basic_block": "architecture",
}


def write(name: str, folder: Path, out: Path | None = None, dataset: str | None = None) -> list[Path]:
    """Draw one artefact again from the records of results/<preset>; the files written."""
    choose("artefact", name, ARTEFACTS)
    return ARTEFACTS[name](Path(folder), out and Path(out), dataset)


def write_all(folder: Path, out: Path | None = None) -> list[Path]:
    """Draw every artefact again; the files written."""
    return [path for name in ARTEFACTS for path in write(name, folder, out)]


def study_frames(
    name: str, folder: Path, dataset: str | None = None, curves: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """(runs, curves, data set) of the ended records of a study at results/<preset>, of every seed on disk.

    Without `dataset`: the first of its kind with finished runs, real ones first, else the first with ended runs.
    """
    study, kind = STUDIES[name]
    preset, runs_dir = preset_of(Path(folder).name), Path(folder) / "runs"
    found = []
    for candidate in (dataset,) if dataset else DATASETS[kind]:
        if not dataset and not any(runs_dir.glob(f"*-{candidate}-s*/summary.json")):
            continue
        runs, points = frames(runs_dir, study(preset, candidate, 0), curves, table=name == "cifar10_table")
        found.append((runs, points, candidate))
        if len(runs) and (runs["status"] == "finished").any():
            return found[-1]
    ended = [f for f in found if len(f[0])]
    return (ended or found or [(pd.DataFrame(), pd.DataFrame(), DATASETS[kind][0])])[0]


def drawable(name: str, folder: Path) -> bool:
    """Whether results/<preset> has what a notebook draws: records of its study, what was measured of them or by it."""
    if name == "gradients":  # which trains no runs
        return has_measurement(folder, name)
    runs = study_frames(name, folder, curves=False)[0]
    if name == "future_work":  # the original unit is in other studies too
        return _both_units(runs)
    return len(runs) > 0 and (name != "figure7" or has_measurement(folder, name))


def _both_units(runs: pd.DataFrame) -> bool:
    """Whether there are runs of the original unit and of the one with pre-activation."""
    return len(runs) > 0 and runs["options"].nunique() > 1


def recorded_dataset(name: str, folder: Path) -> str | None:
    """The data set of a study's records at results/<preset>, as `study_frames` chooses it; None without any."""
    runs, _, dataset = study_frames(name, folder, curves=False)
    return dataset if len(runs) else None


def _figure(figure, out: Path, stem: str) -> list[Path]:
    return figures.save_figure(figure, Path(out) / "figures" / stem)


def _table(table: pd.DataFrame, out: Path, stem: str, caption: str) -> list[Path]:
    return tables.save_table(table, Path(out) / "tables" / stem, caption)
