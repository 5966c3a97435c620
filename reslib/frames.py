"""The frames that notebooks, artefacts and the report draw from: which records belong to a study."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd

from .errors import UserError
from .files import write_text
from .recipe import Recipe
from .records import load_curves, load_runs
from .runs import ENDED


def frames(
    runs_dir: Path, recipes: list[Recipe], curves: bool = True, table: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(runs, curves) of the ended records of these recipes, of every seed on disk. curves=False reads no curves.

    table: what the CIFAR-10 table shows, see `of_table`.
    """
    runs = load_runs(runs_dir)
    if len(runs):
        runs = (of_table if table else of_recipes)(runs[runs["status"].isin(ENDED)], recipes)
    return runs.reset_index(drop=True), load_curves(runs if curves else runs.iloc[:0])


def of_recipes(runs: pd.DataFrame, recipes: list[Recipe], free: tuple[str, ...] = ()) -> pd.DataFrame:
    """The records of these recipes, whatever their seed and the fields named in `free`."""
    names = [field.name for field in dataclasses.fields(Recipe) if field.name not in ("seed", *free)]
    wanted = {tuple(getattr(recipe, name) for name in names) for recipe in recipes}
    columns = [runs["precision_asked" if name == "precision" else name] for name in names]
    return runs[[values in wanted for values in zip(*columns, strict=True)]]


def of_table(runs: pd.DataFrame, recipes: list[Recipe]) -> pd.DataFrame:
    """The records of these recipes, also with another train/validation split or with a teacher, and every record of
    one's own networks (package.module:Factory) on the same data."""
    same = of_recipes(runs, recipes, free=("train_size", "val_size", "teacher"))
    own = runs["model"].str.contains(":") & runs["dataset"].isin({recipe.dataset for recipe in recipes})
    return runs[runs.index.isin(same.index) | own]


def save_measurement(frame: pd.DataFrame, preset_folder: Path, stem: str) -> Path:
    """Write measurements/<stem>.csv, from which a figure can be drawn again without the networks."""
    path = Path(preset_folder) / "measurements" / f"{stem}.csv"
    write_text(path, frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return path


def load_measurement(preset_folder: Path, stem: str) -> pd.DataFrame:
    """The frame that `save_measurement` wrote. Raises UserError when it is missing or damaged."""
    path = Path(preset_folder) / "measurements" / f"{stem}.csv"
    if not path.exists():
        raise UserError(f"{path} is missing: run the notebook that measures it")
    return read_csv(path)


def has_measurement(preset_folder: Path, stem: str) -> bool:
    """Whether `save_measurement` wrote this frame, damaged or not."""
    return (Path(preset_folder) / "measurements" / f"{stem}.csv").exists()


def find_measurement(preset_folder: Path, stem: str) -> pd.DataFrame | None:
    """The frame that `save_measurement` wrote, None where there is none. Raises UserError when it is damaged."""
    return load_measurement(preset_folder, stem) if has_measurement(preset_folder, stem) else None


def read_csv(path: Path, **options) -> pd.DataFrame:
    """pandas.read_csv; UserError when the file is no table."""
    try:
        return pd.read_csv(path, **options)
    except (OSError, ValueError) as error:  # pandas has errors of its own for no columns and for ragged rows
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
