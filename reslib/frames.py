"""The frames that notebooks, artefacts and the report draw from: which records belong to a study."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from .errors import UserError
from .files import write_text
from .recipe import Recipe
from .runs import load_curves, load_runs


def frames(runs_dir: Path, recipes: list[Recipe]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(runs, curves) of the ended records of these recipes, of every seed on disk."""
    runs = load_runs(runs_dir)
    if len(runs):
        wanted = {recipe.replace(seed=0).digest for recipe in recipes}
        runs = runs[[ended and digest in wanted for ended, digest in zip(_ended(runs), _seedless(runs), strict=True)]]
    return runs.reset_index(drop=True), load_curves(runs)


def _ended(runs):
    return runs["status"].isin(("finished", "diverged"))


def _seedless(runs: pd.DataFrame) -> list[str]:
    """Each record's digest as it would be with seed 0."""
    import dataclasses

    names = [f.name for f in dataclasses.fields(Recipe)]
    digests = []
    for row in runs.to_dict("records"):
        values = {n: row["precision_asked" if n == "precision" else n] for n in names}
        digests.append(Recipe.from_dict(values).replace(seed=0).digest)
    return digests


def save_measurement(frame: pd.DataFrame, preset_folder: Path, stem: str) -> Path:
    """Write measurements/<stem>.csv, from which a figure can be drawn again without the networks."""
    path = Path(preset_folder) / "measurements" / f"{stem}.csv"
    write_text(path, frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return path


def load_measurement(preset_folder: Path, stem: str) -> pd.DataFrame:
    """The frame that `save_measurement` wrote. Raises UserError when it is missing."""
    path = Path(preset_folder) / "measurements" / f"{stem}.csv"
    if not path.exists():
        raise UserError(f"{path} is missing: run the notebook that measures it")
    return pd.read_csv(path)
