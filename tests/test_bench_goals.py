"""The goals of the benchmark are judged from its records; figures without records say so."""

import pandas as pd

from reslib import figures
from reslib.bench import records


def goal_rows(kind, model, ratio, hours=1.0, bf16=0.5, share=0.3, fp32=100.0, fast=120.0):
    common = {"device": kind, "kind": kind, "model": model, "batch_size": 128, "comparison": "f#0", "ratio": ratio}
    common |= {"hours_to_64k": hours, "bf16_rate": bf16, "share_of_matrix_rate": share, "setup_seconds": 70.0}
    rates = {"usual": 50.0, "fp32": fp32, "fast": fast}
    return [common | {"contender": name, "images_per_second": rate} for name, rate in rates.items()]


def test_goals_are_judged_by_the_kind_of_processor():
    def verdicts(*rows):
        frame = records.goals(pd.DataFrame(sum(rows, [])))
        return [tuple(r) for r in frame[["network", "measured", "verdict"]].itertuples(index=False)]

    slow = verdicts(goal_rows("cpu", "resnet20", 1.9))
    assert slow[:3] == [
        ("resnet20", "1.90x", "reached"), ("resnet20", "30%", "missed"), ("resnet20", "1.20x", "reached")
    ]  # fmt: skip
    assert [v for *_, v in slow[3:]] == ["not measured"] * 3
    assert verdicts(goal_rows("cpu", "resnet20", 1.9, bf16=1.9))[0][2] == "missed"
    assert verdicts(goal_rows("cpu", "resnet56", 1.6, fast=90.0))[1] == ("resnet56", "0.90x", "missed")
    gpu = verdicts(goal_rows("cuda", "resnet20", 12.0, hours=0.04))
    assert gpu == [
        ("resnet20", "12.00x", "reached"), ("resnet20", "2.4 minutes", "reached"), ("resnet20", "70.0 s", "missed")
    ]  # fmt: skip


def test_figures_of_nothing_say_so():
    empty = records.comparisons([])
    for draw in (figures.contenders_figure, figures.scaling_figure, figures.seeds_figure, figures.loading_figure):
        texts = [text.get_text() for ax in draw(empty).axes for text in ax.texts]
        assert any("not measured" in text or "no record" in text for text in texts)
