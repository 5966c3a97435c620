"""How well ImageNet networks do by ten crops, at five scales and together: measured once, kept in a table on disk.

The networks are those of finished runs and those of given weights (given_weights.py). A measurement is kept in
measurements/imagenet_scores.csv under the hash of the weights and of the data: a clone without weights reads it there.

The processes of a torchrun job share the images out and come to the same errors; the first one keeps them. What could
differ between them, such as a file that one machine lacks, is settled together: no process waits for one that gave up.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from . import data, evidence, given_weights, imagenet_scale
from .data.draws import first_images
from .data.imagenet import MEAN, STD, FolderBatches
from .distributed import ALONE
from .errors import UserError
from .evaluate import Views, ensemble, evaluate_views, merge_views, top_k_errors
from .files import alone, sha256, write_text
from .models import family_and_depth
from .networks import load_network
from .provenance import environment, now
from .recipe import Recipe


@dataclass(frozen=True)
class Network:
    """A network to test. load: () -> (model, batches), or None where `why_not` says what is missing."""

    source: str  # "trained here" or "evaluated"
    model: str
    shortcut: str  # "" for plain nets
    name: str  # of the run or the weights file
    weights: str  # sha256
    dataset: str
    fingerprint: str
    test_size: int  # images asked for, 0: all
    load: Callable | None
    why_not: str = ""
    label: str = ""  # where its recipe differs from the paper's
    seed: int = 0
    preset: str = ""
    centre: float | None = None  # top-1 error in its record
    papers: bool = True  # whether it was trained at the paper's scale; of given weights that is believed

    @property
    def compares(self) -> bool:
        """Whether its errors may stand beside the paper's: on all test images of ImageNet."""
        return self.papers and self.dataset == "imagenet" and not self.test_size

    @property
    def key(self) -> tuple[str, str]:
        """Model and shortcut option: what a row of the tables is about."""
        return self.model, self.shortcut

    @property
    def depth(self) -> int:
        """The number of layers in the network's name."""
        return family_and_depth(self.model)[1]

    @property
    def row(self) -> tuple:
        """Networks of one row: the seeds of a recipe on one data set, or one weights file."""
        own = self.name if self.source != "trained here" else ""
        return self.source, *self.key, self.label, self.fingerprint, own


KEY = ("weights_sha256", "data_fingerprint", "how", "test_size")
FIELDS = (
    *KEY, "source", "name", "model", "shortcut", "dataset", "classes", "images", "skipped", "top1", "top5",
    "device_name", "torch", "commit", "measured",
)  # fmt: skip


class Scores:
    """Errors by network and way of testing: read from measurements/imagenet_scores.csv, or measured and added to it."""

    def __init__(self, folder: Path, source, limit: int, device: torch.device, group=ALONE, say=None):
        self.file = folder / "measurements" / "imagenet_scores.csv"
        self.source, self.limit, self.device, self.group, self.say = source, limit, device, group, say
        self.known = self._read()
        self.views: dict[str, Views] = {}  # weights -> own share of scores at five scales, which ensembles average
        self.batches: dict[tuple, FolderBatches] = {}

    def trained(self, runs: pd.DataFrame, runs_dir: Path) -> list[Network]:
        """The finished runs of the ImageNet part."""
        runs = imagenet_runs(evidence.finished(runs))
        if runs.empty:
            return []
        runs = runs[[family_and_depth(m)[0] in ("plain", "resnet") for m in runs["model"]]]
        nets = []
        for (model, _), group in runs.groupby(["model", "shortcut"], sort=False):
            for label, row in zip(evidence.settings(group), group.to_dict("records"), strict=True):
                path, mark = runs_dir / row["run"], _text(row.get("weights_sha256"))
                size = min(filter(None, (int(row.get("test_size") or 0), self.limit)), default=0)
                why = self._why_not(path, mark, row["data_fingerprint"])
                nets.append(
                    Network(
                        "trained here", model, row["shortcut"] if model.startswith("resnet") else "", row["run"], mark,
                        row["dataset"], str(row["data_fingerprint"]), size,
                        None if why else (lambda path=path, size=size: self._load_trained(path, size)), why,
                        ", ".join(p for p in label.split(", ") if not p.startswith("shortcut=")),
                        int(row["seed"]), _text(row.get("preset")), row["test_error"],
                        imagenet_scale.is_papers(row),
                    )
                )  # fmt: skip
        return nets

    def _why_not(self, path: Path, mark: str, fingerprint: str) -> str:
        return self._agreed(self._why_not_here(path, mark, fingerprint))

    def _agreed(self, problem: str) -> str:
        """The problem of the first process that has one, for all of them."""
        return next(filter(None, self.group.gather(problem)), "")

    def _why_not_here(self, path: Path, mark: str, fingerprint: str) -> str:
        if self.source is None:
            return "no data to measure on"
        if self.source.fingerprint != fingerprint:
            return f"trained on other data ({fingerprint}) than is here ({self.source.fingerprint})"
        file = path / "weights.safetensors"
        if not file.exists():
            return "its weights are not here"
        return "" if sha256(file) == mark else "its weights are not those of its record"

    def given(self, weights) -> list[Network]:
        """Weights from elsewhere: those given now, then those measured before on this data."""
        nets, files, problem = {}, [], ""
        if weights and not self.group.rank:
            files, problem = _looked_for(weights)
        count = self.group.broadcast(len(files))  # the others look for them when a download is through
        if weights and self.group.rank:
            files, problem = _looked_for(weights)
        if problem := self._agreed(problem):
            raise UserError(problem)
        marks = [mark for _, mark in files]
        if len(files) != count or len({tuple(theirs) for theirs in self.group.gather(marks)}) > 1:
            raise UserError(f"weights {str(weights)!r}: the processes of this job find different files there")
        for file, mark in files:
            nets[mark] = self._given(file, mark)
        for row in self.known.values():
            here = self.source is None or self.source.fingerprint == row["data_fingerprint"]
            if row["source"] == "evaluated" and here and row["test_size"] == str(self.limit):
                net = Network(
                    "evaluated", row["model"], row["shortcut"], row["name"], row["weights_sha256"], row["dataset"],
                    row["data_fingerprint"], self.limit, None, "its weights are not here",
                )  # fmt: skip
                nets.setdefault(net.weights, net)
        return sorted(nets.values(), key=lambda net: (net.depth, net.name))

    def _given(self, file: Path, mark: str) -> Network:
        model, shortcut, why = given_weights.NAME.match(file.name)[1], "", ""
        try:
            shortcut = given_weights.load_given(file)[2]
            if self.source is None:
                raise UserError("no data to measure on")
            if self.source.synthetic:
                raise UserError("the data here is synthetic: its classes are not ImageNet's")
            given_weights.imagenet_index(self.source.classes)
            if len(self.source.trained_on) == len(self.source.test.labels):
                raise UserError("all validation images here are training images of ImageNet, by their names")
        except UserError as error:
            why = str(error)
        why = self._agreed(why)
        found = (self.source.name, self.source.fingerprint) if self.source else ("", "")
        load = None if why else (lambda: self._load_given(file))
        return Network("evaluated", model, shortcut, file.name, mark, *found, self.limit, load, why)

    def _load_trained(self, path: Path, size: int):
        model, recipe = load_network(path)
        return model, self._batches(recipe.replace(test_size=size))

    def _load_given(self, file: Path):
        model, name, _ = given_weights.load_given(file)
        recipe = Recipe(name, self.source.name, crop_size=224, preprocessing="channel-std", test_size=self.limit)
        batches = self._batches(recipe, "given")
        batches.mean, batches.std = (torch.tensor(v, device=self.device) for v in (MEAN, STD))  # not the set's own
        unseen = np.setdiff1d(np.arange(len(self.source.test.labels)), self.source.trained_on)
        batches.sets["test"] = unseen[first_images(len(unseen), self.limit)]
        return given_weights.restrict(model, given_weights.imagenet_index(self.source.classes)), batches

    def _batches(self, recipe: Recipe, use: str = "trained") -> FolderBatches:
        """The same for all networks that see the same pixels: a set's colour statistics take a while."""
        same = (use, recipe.crop_size, recipe.preprocessing, recipe.train_size, recipe.val_size, recipe.test_size)
        if same not in self.batches:
            self.batches[same] = data.batches_for(recipe, self.source, self.device)
        return self.batches[same]

    def of(self, net: Network, how: str) -> dict:
        """The measurement of one network. Raises UserError with the reason where there is none."""
        key = (net.weights, net.fingerprint, how, str(net.test_size))
        if net.weights and key in self.known:
            return self.known[key]
        views = merge_views(self.group.gather(self._test(net, how)))
        whole = " of 1000" if net.source == "evaluated" and views.scores.shape[1] < given_weights.CLASSES else ""
        return self._keep(key, views, net, net.name, whole)

    def of_ensemble(self, nets: list[Network]) -> dict:
        """The measurement of several networks' averaged scores at five scales."""
        if len({(n.fingerprint, n.test_size) for n in nets}) > 1:
            raise UserError("its members are not tested on the same images")
        marks = "\n".join(sorted(n.weights for n in nets))
        key = (hashlib.sha256(marks.encode()).hexdigest(), nets[0].fingerprint, "ensemble", str(nets[0].test_size))
        if key in self.known:
            return self.known[key]
        parts = [self._test(net, "multi-scale") for net in nets]
        same = all(torch.equal(p.index, parts[0].index) for p in parts)
        if not all(self.group.gather(same)):  # one could not read an image now readable
            raise UserError("its members were not tested on the same images")
        share = replace(parts[0], how="ensemble", scores=ensemble([p.scores for p in parts]))
        views = merge_views(self.group.gather(share))
        whole = self.of(nets[0], "multi-scale")["classes"].partition(" of ")
        return self._keep(key, views, nets[0], " + ".join(n.name for n in nets), "".join(whole[1:]), "ensemble")

    def _test(self, net: Network, how: str) -> Views:
        """This process's share of the scores."""
        if how == "multi-scale" and net.weights in self.views:
            return self.views[net.weights]
        if net.load is None:
            raise UserError(net.why_not)
        share, problem = None, ""
        try:
            model, batches = net.load()
            model = model.to(self.device, memory_format=torch.channels_last)
            share = evaluate_views(model, batches, how, batch_size=16, rank=self.group.rank, world=self.group.world)
        except UserError as error:
            problem = str(error)
        if problem := self._agreed(problem):
            raise UserError(problem)
        if how == "multi-scale":
            self.views[net.weights] = share
        return share

    def _keep(self, key: tuple, views: Views, net: Network, name: str, whole: str, source: str = "") -> dict:
        classes = views.scores.shape[1]
        errors = top_k_errors(views.scores, views.labels, (1, 5) if classes > 5 else (1,))
        here = environment(self.device)
        values = dict(zip(KEY, key, strict=True)) | {
            "source": source or net.source, "name": name, "model": net.model, "shortcut": net.shortcut,
            "dataset": net.dataset, "classes": f"{classes}{whole}", "images": len(views.labels),
            "skipped": len(views.skipped), "top1": f"{errors[1]:.6g}",
            "top5": f"{errors[5]:.6g}" if 5 in errors else "", "device_name": here["device_name"],
            "torch": here["torch"], "commit": here["commit"], "measured": now(),
        }  # fmt: skip
        if not self.group.rank:
            with alone(self.file.with_name("lock")):  # of two commands none loses what the other has written meanwhile
                rows = self._read_here() | {key: {name: str(values[name]) for name in FIELDS}}
                frame = pd.DataFrame(list(rows.values()), columns=FIELDS).sort_values(list(KEY))
                write_text(self.file, frame.to_csv(index=False, lineterminator="\n"))
        self.known = self._read()
        if self.say:
            self.say(f"{name}, {key[2]}: top-1 error {100 * errors[1]:.2f} % of {len(views.labels):,} images")
        return self.known[key]

    def _read(self) -> dict[tuple, dict]:
        """What was measured before, as the first process finds it."""
        return self.group.broadcast(None if self.group.rank else self._read_here())

    def _read_here(self) -> dict[tuple, dict]:
        if not self.file.exists():
            return {}
        try:  # as text: a fingerprint may look like a number
            frame = pd.read_csv(io.StringIO(self.file.read_text("utf-8")), dtype=str, keep_default_na=False)
            rows = frame[list(FIELDS)].to_dict("records")
            if not all(0 <= float(row["top1"]) <= 1 and int(row["images"]) > 0 for row in rows):
                raise ValueError("an error is not a fraction")
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{self.file} is damaged ({error}): delete it to measure again") from error
        return {tuple(row[name] for name in KEY): row for row in rows}


def imagenet_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the ImageNet part of the study."""
    return runs if runs.empty else runs[evidence.is_imagenet(runs)]


def _text(value) -> str:
    return value if isinstance(value, str) else ""


def _looked_for(weights) -> tuple[list, str]:
    """(files with their SHA-256, ""), or ([], what is wrong): no process of a job may fail alone."""
    try:
        return [(file, sha256(file)) for file in given_weights.find_weights(weights)], ""
    except (UserError, OSError) as error:
        return [], str(error)
