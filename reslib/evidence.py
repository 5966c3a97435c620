"""Which runs of a frame belong together, and what they can be taken as evidence for.

Figures, tables and claims all go through here, so that runs of one network under two recipes are never averaged, runs
that did not finish are never counted as results, and a number is never set beside the paper's on another data set.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from . import paper
from .baseline_recipes import BASELINE_RECIPES
from .errors import UserError
from .names import IMAGENET_DEPTHS
from .presets import WARMED_UP, WARMUP, cifar_recipe, preset_of
from .recipe import Recipe

PROTOCOL = (
    "options", "shortcut", "preprocessing", "padding", "crops", "momentum", "nesterov", "weight_decay", "val_size",
    "teacher", "lr", "lr_drops", "lr_gamma", "schedule", "augmentation", "warmup_lr", "warmup_error",
)  # fmt: skip
STEPS = ("batch_size", "accumulation")  # what a step is: of the paper's size at the paper's scale alone
SAID_ELSEWHERE = {"model", "dataset", "seed", "iterations", "eval_every", "precision"}  # columns, captions, footers
PAPER_SCALE = f"{paper.PAPER_ITERATIONS:,} iterations of {paper.PAPER_BATCH} images on CIFAR-10"
PAPER_SPLITS = (0, 45_000, 50_000)  # training images used; 0 is all, 45k and 50k are the paper's two readings


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with a result."""
    return runs[runs["status"] == "finished"] if "status" in runs else runs


def drawable(runs: pd.DataFrame) -> pd.DataFrame:
    """Per model the finished runs or, where there are none, the unfinished ones; never those that diverged."""
    if "status" not in runs or runs.empty:
        return runs
    done = runs["status"] == "finished"
    models_done = set(runs.loc[done, "model"])
    return runs[done | (~runs["model"].isin(models_done) & (runs["status"] != "diverged"))]


def is_synthetic(runs: pd.DataFrame) -> pd.Series:
    """Whether each run's images are synthetic."""
    named = runs["dataset"].astype(str).str.startswith("synthetic")
    return named | (runs["synthetic"] == True) if "synthetic" in runs else named  # noqa: E712 (NaN when unfinished)


def is_imagenet(runs: pd.DataFrame) -> pd.Series:
    """Whether each run is of the ImageNet part of the study."""
    return runs["dataset"].isin(["imagenet", "imagenette", "synthetic-imagenet"])


def with_hardware(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with all hardware that took their steps as `device_name`, joined by commas, in order.

    A record's own is that of its last session. One name per kind: the first records have "(1 threads)".
    """
    if "device_name" not in runs:
        return runs
    sessions = runs["sessions"] if "sessions" in runs else [None] * len(runs)
    names = [_devices(s, last) for s, last in zip(sessions, runs["device_name"], strict=True)]
    return runs.assign(device_name=[", ".join(n).replace("(1 threads)", "(1 thread)") if n else None for n in names])


def _devices(sessions, last) -> list[str]:
    """The names of the devices on which a run's sessions took steps, in order; of a record without, `last`."""
    known = sessions if isinstance(sessions, list) else []
    trained = [s for s in known if s.get("to_iteration", 0) > s.get("from_iteration", 0)]
    names = list(dict.fromkeys(s["device_name"] for s in trained if s.get("device_name")))
    return names or ([last] if isinstance(last, str) else [])


def devices(runs: pd.DataFrame) -> list[str]:
    """All hardware that took steps of these runs, sorted."""
    named = with_hardware(runs)["device_name"].dropna() if "device_name" in runs else ()
    return sorted({name for names in named for name in names.split(", ")})


def at_paper_scale(runs: pd.DataFrame) -> bool:
    """All runs train on the whole of real CIFAR-10 for the paper's 64,000 steps of its size: their errors compare."""
    if runs.empty or is_synthetic(runs).any() or (runs["dataset"] != "cifar10").any():
        return False
    if (runs["iterations"] != paper.PAPER_ITERATIONS).any():
        return False
    for model, group in runs.groupby("model"):
        wanted = expected(model)
        if any(set(_texts(group[name].tolist())) != {wanted[name]} for name in STEPS if name in group):
            return False
    whole_test = "test_size" not in runs or runs["test_size"].isin([0, paper.TEST_IMAGES]).all()
    return bool(whole_test and ("train_size" not in runs or runs["train_size"].isin(PAPER_SPLITS).all()))


def scale(runs: pd.DataFrame) -> str:
    """Data and budget of runs in words: "cifar10, 6,400 iterations of 128 images, 1,000 test images"."""
    parts = [_values(runs, "dataset"), f"{_values(runs, 'iterations')} iterations"]
    if "batch_size" in runs:
        parts[1] += f" of {_values(runs, 'batch_size')} images"
    if "accumulation" in runs and (runs["accumulation"] != 1).any():
        parts[1] += f" in {_values(runs, 'accumulation')} micro-batches"
    for column, kind, whole in (
        ("train_size", "training", PAPER_SPLITS),
        ("test_size", "test", (0, paper.TEST_IMAGES)),
    ):
        if column in runs and not runs[column].isin(whole).all():
            parts.append(f"{_values(runs[~runs[column].isin(whole)], column)} {kind} images")
    return ", ".join(parts)


def expected(model: str) -> dict:
    """Recipe fields, under their column names, that the paper asks for with this model."""
    values = {f.name: f.default for f in dataclasses.fields(Recipe) if f.name not in ("model", "seed")}
    digits = model.removeprefix("resnet").removeprefix("plain")
    if digits.isdigit() and int(digits) >= WARMED_UP and int(digits) not in IMAGENET_DEPTHS:
        values |= WARMUP
    if model in paper.TABLE6 and not model.startswith("resnet"):
        values |= BASELINE_RECIPES.get(model, {})
    values["precision_asked"] = values.pop("precision")
    values["teacher"] = values["teacher"] != ""
    return {name: _text(value) for name, value in values.items()}


def settings(runs: pd.DataFrame) -> pd.Series:
    """Text per run: where its recipe differs from the paper's. Runs of one model and one text are one recipe's seeds.

    Named are the fields that vary between the model's runs and, varying or not, those of `PROTOCOL`, which no preset
    should change, and what is not as the run's own preset has it (on ImageNet `options` alone: the rest is that
    part's own).
    """
    labels = np.full(len(runs), "", dtype=object)
    for model, places in runs.groupby("model", sort=False).indices.items():
        group, wanted = runs.iloc[places], expected(model)
        always = PROTOCOL[:1]
        if not is_imagenet(group).all():
            wanted |= (changed := _changed(group))
            always = (*PROTOCOL, *changed)
        named, spelled = [], []  # what is worth naming, and its spelling in each run
        for name in (c for c in wanted if c in group):
            texts = _texts([bool(v) for v in group[name]] if name == "teacher" else group[name].tolist())
            if name in always or len(set(texts)) > 1:
                named.append(name)
                spelled.append(texts)
        known = {}  # thousands of runs have a handful of recipes
        for place, values in zip(places, zip(*spelled, strict=True) if spelled else [()] * len(places), strict=True):
            if values not in known:
                differing = (f"{c}={v}" for c, v in zip(named, values, strict=True) if v != wanted[c])
                known[values] = ", ".join(differing)
            labels[place] = known[values]
    return pd.Series(labels, index=runs.index, dtype=object)


def _changed(runs: pd.DataFrame) -> dict[str, str]:
    """Fields in which runs of one network are not as their preset has them -> what it has; without those of PROTOCOL.

    Another batch size or fewer images, say: a preset's own are its scale, but a run under `--batch-size 64` is not.
    """
    changed = {}
    for preset, group in runs.groupby("preset") if "preset" in runs else ():
        try:
            usual = cifar_recipe(group["model"].iloc[0], preset_of(str(preset))).to_dict()
        except UserError:  # a preset of another version
            continue
        for name in usual.keys() & set(group) - SAID_ELSEWHERE - set(PROTOCOL):
            if set(_texts(group[name].tolist())) != {_text(usual[name])}:
                changed[name] = _text(usual[name])
    return changed


def departures(runs: pd.DataFrame) -> list[str]:
    """Where the runs' recipes differ from the paper's, but for a validation split: "lr=0.01", ..."""
    parts = {part for label in settings(runs) for part in label.split(", ") if part}
    return sorted(part for part in parts if not part.startswith(("val_size=", "train_size=")))


def main_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Per model the runs of one recipe: the one nearest the paper's, of several the one with the most finished runs."""
    if runs.empty:
        return runs
    labels, done = settings(runs), runs.index.isin(finished(runs).index)
    keep = []
    for _, group in labels.groupby(runs["model"], sort=False):
        counts = {label: int(done[labels.index.get_indexer(g.index)].sum()) for label, g in group.groupby(group)}
        best = min(counts, key=lambda s: (len(s.split(", ")) if s else 0, -counts[s], s))
        keep.extend(group.index[group == best])
    return runs.loc[runs.index.isin(keep)]


def loud(runs: pd.DataFrame) -> str:
    """What the caption of a table must begin with: that its data are synthetic, or not the same for all runs."""
    if runs.empty:
        return ""
    return ("SYNTHETIC DATA. " if is_synthetic(runs).any() else "") + mixed(runs)


def mixed(runs: pd.DataFrame) -> str:
    """A sentence that names the fingerprints when the finished runs saw different data, or ""."""
    done = finished(runs)
    prints = sorted(set(done["data_fingerprint"].dropna().astype(str))) if "data_fingerprint" in done else []
    return f"MIXED DATA, rows do not compare: {', '.join(prints)}. " if len(prints) > 1 else ""


def evidence_line(runs: pd.DataFrame) -> str:
    """What stands behind a figure or table: preset, data, seeds, hardware, precision, incomplete runs."""
    if runs.empty:
        return "no runs"
    parts = [_values(runs, "preset", "preset {}")]
    data = []
    for name, group in runs.groupby("dataset", sort=True):
        marks = sorted(set(group["data_fingerprint"].dropna().astype(str))) if "data_fingerprint" in group else []
        if is_imagenet(group).all() and "classes" in group:  # a subset is named as one, and smaller images
            marks = [f"{int(n)} classes" for n in sorted(group["classes"].dropna().unique())] + _stored(group) + marks
        loudly = "MIXED DATA: " * bool(mixed(group))
        data.append(f"{name} ({loudly}{', '.join(marks)})" if marks else str(name))
    parts.append("data " + ", ".join(data))
    labels = settings(runs)
    parts.append(_settings_in_words(labels))
    parts.append(_seeds_in_words(runs.groupby(["model", labels])["seed"].nunique()))
    parts += [_values(runs, "iterations", "{} iterations"), ", ".join(devices(runs)), _values(runs, "precision")]
    if "status" in runs:
        for status, count in runs["status"].value_counts().sort_index().items():
            if status != "finished":
                parts.append(f"{count} {status}")
    return " · ".join(filter(None, parts))


def _stored(runs: pd.DataFrame) -> list[str]:
    """At which size a small set's images are kept, where their records tell."""
    origins = runs["data_origin"].dropna().astype(str) if "data_origin" in runs else pd.Series(dtype=str)
    return [f"stored at {n} pixels" for n in sorted(set(origins.str.extract(r"(\d+) pixels")[0].dropna()))]


def _seeds_in_words(counts: pd.Series) -> str:
    """How many seeds each recipe has: "3 seeds of plain-20, 1 of every other network". counts: by (model, ...)."""
    networks: dict[int, list[str]] = {}
    for (model, *_), count in counts.items():
        networks.setdefault(int(count), []).append(paper.label(model))
    low, high = min(networks), max(networks)
    if low == high:
        return f"{low} seed{'s' * (low > 1)} each"
    usual = max(networks, key=lambda count: (len(networks[count]), -count))
    named = {count: names for count, names in sorted(networks.items(), reverse=True) if count != usual}
    once = len(set(sum(networks.values(), []))) == len(counts)
    if not once or sum(map(len, named.values())) > 4:
        return f"{low} to {high} seeds each"
    words = [f"{n} seed{'s' * (n > 1)} of {' and '.join(names)}" for n, names in named.items()]
    rest = networks[usual]
    return ", ".join([*words, f"{usual} of {rest[0] if len(rest) == 1 else 'every other network'}"])


def _settings_in_words(labels: pd.Series) -> str:
    """The different recipes of `settings` in words: a field that all of them name is said once, with its usual value.

    "all with train_size=256 unless named; some with nesterov=true; train_size=231, val_size=25".
    """
    recipes = [dict(part.split("=", 1) for part in label.split(", ") if part) for label in sorted(set(labels))]
    common = {}
    for field in recipes[0]:
        if len(recipes) > 1 and all(field in recipe for recipe in recipes):
            values = pd.Series([recipe[field] for recipe in recipes])
            common[field] = values.mode()[0]
    own = [{f: v for f, v in recipe.items() if common.get(f) != v} for recipe in recipes]
    spelled = [", ".join(f"{f}={v}" for f, v in recipe.items()) for recipe in (common, *own)]
    shared, others = spelled[0], sorted(filter(None, spelled[1:]))
    exceptions = any(f in recipe for recipe in own for f in common)
    texts = [f"all with {shared}" + " unless named" * exceptions] * bool(shared)
    if others:
        some = "some with " if len(recipes) > len(others) else "with "
        texts.append(some + "; ".join(others))
    return "; ".join(texts)


def _values(runs: pd.DataFrame, column: str, form: str = "{}") -> str:
    values = runs[column].dropna().unique() if column in runs else []
    texts = [f"{int(v):,}" if isinstance(v, (int, float, np.number)) else str(v) for v in sorted(values)]
    return form.format(", ".join(texts)) if texts else ""


def _texts(values: list) -> list[str]:
    """`_text` of every value, worked out once per different one."""
    if values and values.count(values[0]) == len(values):
        return [_text(values[0])] * len(values)
    known, texts = {}, []
    for value in values:
        key = (type(value), tuple(value) if isinstance(value, list) else value)
        if key not in known:
            known[key] = _text(value)
        texts.append(known[key])
    return texts


def _text(value) -> str:
    """One spelling per value: records hold 0.1 or [0.5, 0.75] where a recipe holds (0.5, 0.75)."""
    if isinstance(value, (list, tuple)):
        return "/".join(_text(v) for v in value)
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value)).lower()
    if isinstance(value, (int, float, np.number)):
        return f"{float(value):.12g}"
    return str(value)
