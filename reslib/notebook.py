"""What a notebook calls: `study = open_study("figure1", preset)`, then `runs, curves = study.train()`."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pandas as pd

from . import artefacts, figures, imagenet_scale, tables
from .cli import MAX_SEEDS
from .errors import UserError, choose, shown
from .executor import execute, missing
from .files import check_place, folder_of
from .frames import find_measurement, load_measurement, save_measurement
from .frames import frames as load_frames
from .injected import check_injected
from .models import build_model
from .numerics import resolve_device
from .presets import preset_of, settings_of, usual_recipe
from .progress import Progress, is_quiet
from .provenance import environment
from .recipe import Recipe
from .runs import results_root
from .stand_ins import dataset_for
from .studies import STUDIES
from .train import Execution


def open_folder(
    preset: str = "auto",
    results: str = "",
    data_root: str = "",
    device: str = "auto",
    seeds: int = 0,
    train: bool = True,
) -> Folder:
    """The results folder of a preset, for notebooks that train no study. Parameters as in `open_study`."""
    check_injected()
    _check(preset, data_root, results, seeds, device, train=train)
    return Folder(preset, data_root, results, device, train)


def open_study(
    name: str,
    preset: str = "auto",
    data_root: str = "",
    results: str = "",
    seeds: int = 0,
    device: str = "auto",
    models: str = "",
    train: bool = True,
) -> Study:
    """Check a notebook's parameters and find its runs. preset "auto" is $RESLIB_PRESET, else quick.

    seeds: per network, 0 for the preset's number. models: networks of one's own for the CIFAR-10 table, names joined by
    commas. train: False draws what is on record, and needs no images. Raises UserError naming a bad parameter, its
    value and what is allowed.
    """
    check_injected()
    _check(preset, data_root, results, seeds, device, models, train)
    return Study(name, preset, data_root, results, seeds, device, models, train)


class Facts(dict):
    """What `describe` shows, in full: pandas by itself ends a cell after 50 characters."""

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in self.items())

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            return pd.DataFrame({"": self}).to_html(header=False, border=0)


class Folder:
    """Where the results of one preset go."""

    def __init__(self, preset, data_root, results, device, train=True):
        if preset == "auto":
            preset = os.environ.get("RESLIB_PRESET", "quick")
        self.preset, self.data_root, self.device = preset_of(preset), data_root or None, resolve_device(device)
        self.training = train
        self.folder = results_root(results or None) / self.preset.name
        self.runs_dir = self.folder / "runs"
        check_place(self.folder)  # where nothing can be kept, nothing is computed first

    def dataset(self, kind: str) -> str:
        """The data set of kind "cifar" or "imagenet" that this preset computes on."""
        quiet = {"say": lambda text: None} if is_quiet() else {}
        return dataset_for(self.preset, kind, self.data_root, download=True, **quiet)

    def facts(self) -> dict:
        """What `describe` shows."""
        here = environment(self.device)
        return {
            "preset": f"{self.preset.name} ({self.preset.purpose})",
            "results": str(
                self.folder.relative_to(Path.cwd()) if self.folder.is_relative_to(Path.cwd()) else self.folder
            ),
            "device": here["device_name"],
            "torch": here["torch"],
            "commit": here["commit"][:12] + (" with uncommitted changes" if here["dirty"] else ""),
            **({} if self.training else {"train": "False: what is on record is drawn, wherever it was made"}),
        }

    def describe(self) -> Facts:
        """What this notebook computes, on what."""
        return Facts(self.facts())

    def save_figure(self, figure, stem: str) -> list[Path]:
        """Write figures/<stem>.png and .pdf."""
        return figures.save_figure(figure, self.folder / "figures" / stem)

    def save_table(self, table: pd.DataFrame, stem: str, caption: str) -> list[Path]:
        """Write tables/<stem>.csv, .md and .tex."""
        return tables.save_table(table, self.folder / "tables" / stem, caption)

    def save_measurement(self, frame: pd.DataFrame, stem: str) -> pd.DataFrame:
        """Write measurements/<stem>.csv and give back what stands there: rounded, as it will be read to draw again."""
        save_measurement(frame, self.folder, stem)
        return load_measurement(self.folder, stem) if len(frame) else frame

    def load_measurement(self, stem: str) -> pd.DataFrame | None:
        """What `save_measurement` wrote, or None."""
        return find_measurement(self.folder, stem)

    def recorded_measurement(self, stem: str) -> pd.DataFrame:
        """What `save_measurement` wrote, for a notebook that shall draw it. Raises UserError where there is nothing."""
        if (found := self.load_measurement(stem)) is not None:
            return found
        raise UserError(
            f"train=False draws what is on record, and {self.folder / 'measurements'} has no {stem}.csv: allowed is "
            "True, which measures"
        )


SHOWN = ("lr", "schedule", "lr_drops", "momentum", "weight_decay", "augmentation", "preprocessing")


def _shared(recipes: list[Recipe]) -> str:
    """Those fields of the protocol that all recipes have the same value of."""
    same = [name for name in SHOWN if len({getattr(recipe, name) for recipe in recipes}) == 1]
    return ", ".join(f"{name} {getattr(recipes[0], name)}" for name in same)


class Study(Folder):
    """One figure or table at one preset: its recipes and its records. training: whether what is missing is trained."""

    def __init__(self, name, preset, data_root, results, seeds, device, models="", train=True):
        choose("study", name, STUDIES)
        super().__init__(preset, data_root, results, device, train)
        self.name = name
        study, self.kind = STUDIES[name]
        self.dataset_name = self.dataset(self.kind) if train else self._recorded()
        own = ([m.strip() for m in models.split(",") if m.strip()],) if models else ()
        self.recipes = study(self.preset, self.dataset_name, seeds, *own)

    @property
    def synthetic(self) -> bool:
        """Whether the images are synthetic."""
        return self.dataset_name.startswith("synthetic")

    def facts(self) -> dict:
        """What `describe` shows."""
        todo = {r.digest for r in missing(self.recipes, self.runs_dir)}
        still = "are still to be trained" if self.training else "are not on record, and none is trained here"
        scale = imagenet_scale.in_words(pd.DataFrame([r.to_dict() for r in self.recipes]))
        return {
            "study": self.name,
            "data set": self.dataset_name + (" (SYNTHETIC DATA)" if self.synthetic else ""),
            "runs": f"{len(self.recipes)}, of which {len(todo)} {still}",
            "networks": ", ".join(dict.fromkeys(r.model for r in self.recipes)),
            "seeds": ", ".join(map(str, sorted({r.seed for r in self.recipes}))),
            "iterations": ", ".join(sorted({f"{r.iterations:,} of {r.batch_size} images" for r in self.recipes})),
            "recipe of all": _shared(self.recipes),
            **({"scale": scale} if scale else {}),
            **super().facts(),
        }

    @property
    def expected(self) -> list[Recipe]:
        """The recipes that must have ended after `train`: all, or those on record where nothing is trained."""
        absent = [] if self.training else missing(self.recipes, self.runs_dir)
        return [recipe for recipe in self.recipes if recipe not in absent]

    def train(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Train what is missing, with live progress; returns the frames of runs and of learning curves.

        A failed run does not stop the others. Raises UserError naming the failed runs when all are through. Where
        nothing is to be trained, what is missing is said.
        """
        if not self.training:
            self._tell_missing()
            return self.frames()
        progress = Progress(len(missing(self.recipes, self.runs_dir)))
        failures = execute(
            self.recipes,
            self.runs_dir,
            self.data_root,
            self.preset.name,
            Execution(device=str(self.device)),
            say=progress.say,
            on_row=progress.on_row,
            on_begin=progress.begin,
        )
        progress.done()
        if failures:
            raise UserError("; ".join(failures))
        return self.frames()

    def _recorded(self) -> str:
        """The data set of the records. Raises UserError where there are none."""
        if there := artefacts.recorded_dataset(self.name, self.folder):
            return there
        raise UserError(
            f"train=False draws records, and {self.runs_dir} has none of {self.name}: allowed is True, which trains"
        )

    def _tell_missing(self) -> None:
        """Print which runs have no record, or none that can be taken, by network and setting."""
        counts: Counter[str] = Counter()
        for recipe in missing(self.recipes, self.runs_dir):
            settings = settings_of(recipe, usual_recipe(recipe, self.preset))
            counts[recipe.model + f" [{settings}]" * bool(settings)] += 1
        if counts:
            absent = ", ".join(f"{number} of {name}" for name, number in counts.items())
            print(f"drawn from the records there are; runs without a record: {absent}")

    def frames(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The ended records of this study, of every seed on disk; in the CIFAR-10 table networks of one's own too."""
        if self.name == "cifar10_table":
            return artefacts.study_frames(self.name, self.folder, self.dataset_name)[:2]
        return load_frames(self.runs_dir, self.recipes)

    def all_depths(self) -> pd.DataFrame:
        """The ended records of plain and residual nets of every depth of Figure 6, this study's own among them."""
        return artefacts.study_frames("figure6", self.folder, self.dataset_name, curves=False)[0]

    def scoreboard(self) -> pd.DataFrame:
        """The claims about the study's kind of data, judged on this preset's records and what the probes measured."""
        if self.kind == "imagenet":
            return artefacts.imagenet_claims_table(self.folder, self.dataset_name)
        return artefacts.claims_table(self.folder, self.dataset_name)

    def judged_runs(self) -> pd.DataFrame:
        """The records that `scoreboard` judges."""
        records = artefacts.imagenet_records if self.kind == "imagenet" else artefacts.cifar_records
        return records(self.folder, self.dataset_name)


def _check(preset, data_root, results, seeds, device, models="", train=True) -> None:
    """Raise UserError naming the first parameter of a wrong type or out of range."""
    texts = {"preset": preset, "data_root": data_root, "results": results, "device": device, "models": models}
    for name, value in texts.items():
        if type(value) is not str:
            raise UserError(f"{name} {shown(value)} is of type {type(value).__name__}: allowed is str")
    if type(seeds) is not int:
        raise UserError(f"seeds {shown(seeds)} is of type {type(seeds).__name__}: allowed is int")
    if type(train) is not bool:
        raise UserError(f"train {shown(train)} is of type {type(train).__name__}: allowed is bool")
    if not 0 <= seeds <= MAX_SEEDS:
        raise UserError(f"seeds {shown(seeds)} is out of range: allowed is 0 (the preset's) to {MAX_SEEDS}")
    if data_root and not folder_of("data_root", data_root).is_dir():
        raise UserError(f"data_root {shown(data_root)} is not a folder")
    if results:
        folder_of("results", results)
    for model in filter(None, (m.strip() for m in models.split(","))):
        build_model(model)  # a wrong name is said before the others are trained for hours
