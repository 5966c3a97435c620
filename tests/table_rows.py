"""A small data set for Tables 2 to 5, and what their tests read of them."""

import torch
import torch.nn.functional as F

from reslib import given_weights
from reslib.data import DataSource, ImageSet
from reslib.imagenet_tables import CENTRE, INTERVAL, TOP1, TOP5

OWN = [TOP1, TOP5, INTERVAL, CENTRE, "images", "data set", "preset"]
WNIDS = sorted(given_weights.IMAGENETTE)
TESTED = 6


def make_source(labels=None, name="imagenette", classes=WNIDS):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(30 + TESTED, 3, 6, 6, generator=generator)
    images = (F.interpolate(coarse, 44, mode="bilinear") * 255).byte().permute(0, 2, 3, 1).contiguous()
    labels = torch.arange(TESTED) % 10 if labels is None else labels
    train, test = ImageSet(images[:30], torch.arange(30) % 10), ImageSet(images[30:], labels)
    return DataSource(name, train, test, list(classes), "00112233aabbccdd", "made here", name.startswith("synthetic"))


def error(scores, labels, k):
    wrong = [int(y) not in s.argsort(descending=True)[:k].tolist() for s, y in zip(scores, labels, strict=True)]
    return 100 * sum(wrong) / len(wrong)


def row(table, model, source=None):
    rows = [r | {"model": r["model"].removesuffix(" [options=width=8]")} for r in table.to_dict("records")]
    (found,) = [r for r in rows if r["model"] == model and source in (None, r["source"])]
    return found
