"""The quoted numbers against each other and against the networks they describe."""

import pytest

from reslib import paper
from reslib.models import build_model


def test_table6_rows_and_sources():
    errors = {m: r.error for m, r in paper.TABLE6.items()}
    assert errors == {
        "maxout": 9.38, "nin": 8.81, "dsn": 8.22, "fitnet19": 8.39, "highway19": 7.54, "highway32": 8.80,
        "resnet20": 8.75, "resnet32": 7.51, "resnet44": 7.17, "resnet56": 6.97, "resnet110": 6.43, "resnet1202": 7.93,
    }  # fmt: skip
    assert all(r.source.startswith("Table 6, ") for r in paper.TABLE6.values())
    best = paper.TABLE6["resnet110"]
    assert (best.mean, best.std, best.seeds) == (6.61, 0.16, 5)
    assert best.error < best.mean - best.std  # the printed 6.43 is the best of the five, not their mean


def test_printed_parameters_are_the_exact_ones_rounded():
    for depth, exact in paper.EXACT_PARAMETERS.items():
        assert paper.TABLE6[f"resnet{depth}"].parameters == pytest.approx(exact, rel=0.025)


@pytest.mark.parametrize("depth", [20, 56])
@pytest.mark.parametrize("kind", ["plain", "resnet"])
def test_exact_parameters_are_those_of_the_networks(kind, depth):
    model = build_model(f"{kind}{depth}")
    assert sum(p.numel() for p in model.parameters()) == paper.EXACT_PARAMETERS[depth]


def test_imagenet_tables_agree_where_they_overlap():
    two = {row.label: row.top1 for row in paper.TABLE2}
    three = {row.label: row.top1 for row in paper.TABLE3}
    assert two["plain-34"] == three["plain-34"] and two["ResNet-34"] == three["ResNet-34 A"]
    four = {row.label: row for row in paper.TABLE4}
    assert all(four[n].top1 < three[n] for n in ("ResNet-34 B", "ResNet-50", "ResNet-101", "ResNet-152"))
    assert paper.TABLE5[-1].top5 == 3.57


def test_peers_are_kept_apart():
    assert paper.PEERS == {"resnet20": 8.27, "resnet32": 7.37, "resnet44": 6.90, "resnet56": 6.61}
    assert not {paper.TABLE6[m].error for m in paper.PEERS} & set(paper.PEERS.values())


def test_labels():
    names = ["resnet20", "plain56", "highway19", "my.module:Net", "plainly"]
    assert [paper.label(n) for n in names] == ["ResNet-20", "plain-56", "Highway-19", "my.module:Net", "plainly"]
