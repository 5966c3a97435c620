"""Figures: the data drawn is the data given, what is missing or synthetic is said, saves are byte-identical."""

import matplotlib.text
import numpy as np
import pandas as pd
import pytest
from fake_frames import fake_curves, fake_runs, lines, texts

from reslib import evidence, figures, imagenet_scale, paper, tables
from reslib.data import SYNTHETIC_SIZES
from reslib.notebook import open_study
from reslib.presets import imagenet_recipe, preset_of

PLAIN = {"plain20": (3.0, 9.0), "plain56": (9.0, 13.0)}
SYNTHETIC = {"dataset": "synthetic", "synthetic": True, "iterations": 80, "preset": "smoke"}


def test_figure1_draws_the_means_and_the_band_of_the_seeds():
    runs = fake_runs({"plain20": [9.0, 9.6], "plain56": [13.0, 13.4]})
    curves = fake_curves(runs)
    fig = figures.figure1(runs, curves)
    left, right = fig.axes
    for ax, column in ((left, "train_error"), (right, "test_error")):
        for model in ("plain20", "plain56"):
            (line,) = lines(ax, f"{model} {column}")
            mean = curves[curves["model"] == model].groupby("iteration")[column].mean()
            np.testing.assert_allclose(line.get_xdata(), mean.index / 1e4)
            np.testing.assert_allclose(line.get_ydata(), 100 * mean.values)
        assert ax.get_xlabel() == "iter. (1e4)" and ax.get_ylim() == (0, 20)
        assert len(ax.collections) == 2
    low, high = right.collections[0].get_paths()[0].get_extents().intervaly
    of_model = curves.loc[curves["model"] == "plain20", "test_error"] * 100
    assert (low, high) == pytest.approx((of_model.min(), of_model.max()))
    assert "20-layer" in texts(fig) and "smallest to largest" in texts(fig)
    assert [ax.get_title() for ax in fig.axes] == ["plain nets, training error", "plain nets, test error"]


def test_figure1_takes_the_ends_a_preset_has_and_says_so():
    runs = fake_runs({"plain20": (60, 62), "plain32": (61, 63), "plain44": (70, 72)}, **SYNTHETIC)
    fig = figures.figure1(runs, fake_curves(runs))
    assert lines(fig.axes[0], "plain44") and not lines(fig.axes[0], "plain32")
    assert "the paper's figure has 20 and 56 layers" in texts(fig)
    assert "not yet trained" not in texts(fig) and "not part" not in texts(fig)
    alone = figures.figure1(runs[:1], fake_curves(runs[:1]))  # smoke has 20 and 32 layers
    assert "not yet trained: plain-32" in texts(alone) and "plain-56" not in texts(alone)


@pytest.mark.parametrize("preset,missing", [("quick", "not yet trained"), ("smoke", "not part of this preset")])
def test_what_is_to_be_trained_and_what_the_preset_does_not_have(preset, missing):
    runs = fake_runs({"resnet20": (50, 55)}, preset=preset, iterations=80)
    figure = figures.figure6(runs, fake_curves(runs))
    _, residual = figure.axes  # none for 110 and 1202 layers: it would be empty
    footer = " ".join(figure._supxlabel.get_text().split())
    said = dict(part.split(": ") for part in footer.split(" · ") if part.startswith("not "))
    assert "ResNet-56" in said[missing] and not residual.texts[1:]  # in the footer: it would cover curves
    assert said["not part of this preset"].endswith("ResNet-1202") and "ResNet-110" in said["not part of this preset"]


def test_figure6_names_all_that_the_study_has_yet_to_train():
    """Plain-110 too, which the paper does not draw."""
    runs = fake_runs({"plain20": (3, 9), "resnet20": (3, 9)})
    said = " ".join(texts(figures.figure6(runs, fake_curves(runs))).split())
    assert "plain-56, plain-110, ResNet-32" in said
    both = pd.concat([runs, fake_runs({"plain110": (60, 62)})], ignore_index=True)
    assert "plain-110, ResNet" not in " ".join(texts(figures.figure6(both, fake_curves(both))).split())


def test_vertical_lines_where_the_learning_rate_falls():
    runs = fake_runs(PLAIN, schedule="steps").assign(lr_drops=[(0.5, 0.75)] * len(PLAIN))
    figure = figures.figure1(runs, fake_curves(runs))
    for ax in figure.axes:
        assert [line.get_xdata()[0] for line in lines(ax, "_drop")] == [3.2, 4.8]
    assert "vertical lines: the learning rate falls" in texts(figure)
    for other in (runs.assign(schedule="cosine"), runs.drop(columns="lr_drops")):
        figure = figures.figure1(other, fake_curves(other))
        assert not lines(figure.axes[0], "_drop") and "vertical lines" not in texts(figure)


def test_changed_unknown_and_medium_presets():
    runs = fake_runs({"resnet20": (50, 55)}, preset="medium+lr=0.05")
    said = texts(figures.figure6(runs, fake_curves(runs)))
    assert "ResNet-56 and ResNet-110 · not part of this preset: ResNet-1202" in said
    for unknown in (runs.assign(preset="large"), runs.assign(preset=np.nan), runs.drop(columns="preset")):
        said = texts(figures.figure6(unknown, fake_curves(unknown)))
        assert "ResNet-56, ResNet-110 and ResNet-1202" in said


def test_a_diverged_net_was_trained():
    runs = fake_runs({"plain20": (3, 9), "plain56": (90, 90)})
    runs.loc[1, "status"] = "diverged"
    said = texts(figures.figure1(runs, fake_curves(runs)))
    assert "diverged: plain-56" in said and "not yet trained" not in said
    begun = runs.assign(status=["finished", "running"])
    said = texts(figures.figure1(begun, fake_curves(begun[:1])))
    assert "begun, without a measurement yet: plain-56" in said and "not yet trained" not in said


def test_footer_names_what_stands_behind_the_figure():
    runs = fake_runs(PLAIN, seeds=(0, 1, 2))
    footer = texts(figures.figure1(runs, fake_curves(runs)))
    for part in ("preset paper", "cifar10 (00ff)", "3 seeds each", "64,000 iterations", "Some GPU", "bf16"):
        assert part in footer
    assert "SYNTHETIC" not in footer


def test_all_hardware_that_took_steps_is_named():
    """A record's own device is that of its last session."""
    session = {"from_iteration": 0, "to_iteration": 600, "device_name": "Some GPU"}
    moved = [session, session | {"from_iteration": 600, "to_iteration": 640, "device_name": "A CPU (1 threads)"}]
    idle = [session, session | {"from_iteration": 600, "to_iteration": 600, "device_name": "Another"}]
    runs = fake_runs({"plain20": (3, 9), "plain32": (3, 9), "plain44": (3, 9), "plain56": (9, 13)})
    runs["sessions"] = pd.Series([moved, idle, [{"device_name": "Old"}], np.nan], index=runs.index)
    runs["device_name"] = ["A CPU (1 threads)", "Another", "Old", None]
    names = evidence.with_hardware(runs)["device_name"].tolist()
    assert names[:3] == ["Some GPU, A CPU (1 thread)", "Some GPU", "Old"] and pd.isna(names[3])
    assert evidence.devices(runs) == ["A CPU (1 thread)", "Old", "Some GPU"]
    assert "64,000 iterations · A CPU (1 thread), Old, Some GPU · bf16" in evidence.evidence_line(runs)
    assert evidence.devices(runs.drop(columns="device_name")) == []


def test_the_footer_says_which_networks_have_more_seeds():
    runs = pd.concat([fake_runs({"plain20": [9, 9.1, 9.2]}), fake_runs({"plain32": (3, 9), "plain56": (9, 13)})])
    assert "3 seeds of plain-20, 1 of every other network" in evidence.evidence_line(runs)
    runs = pd.concat([runs, fake_runs({"resnet20": [9, 9.1], "resnet32": [9, 9.1], "resnet56": [9, 9.1]})])
    words = "3 seeds of plain-20, 1 seed of plain-32 and plain-56, 2 of every other network"
    assert words in evidence.evidence_line(runs)
    twice = pd.concat([runs, fake_runs({"plain20": (5, 9)}, lr=0.05)])  # two recipes of one network
    assert "1 to 3 seeds each" in evidence.evidence_line(twice)


@pytest.mark.parametrize("draw", [figures.figure1, figures.figure6, lambda runs, _: figures.depth_view(runs)])
def test_synthetic_data_is_said_in_red(draw):
    runs = fake_runs(PLAIN, **SYNTHETIC)
    found = [t for t in draw(runs, fake_curves(runs)).findobj(matplotlib.text.Text) if "SYNTHETIC DATA" in t.get_text()]
    assert len(found) == 1 and found[0].get_color() == "#CC0000"


def test_short_runs_keep_plain_iterations_and_their_own_limits():
    runs = fake_runs({"plain20": (60.0, 62.0), "plain56": (70.0, 72.0)}, **SYNTHETIC)
    ax = figures.figure1(runs, fake_curves(runs)).axes[0]
    assert ax.get_xlabel() == "iteration" and ax.get_xlim() == (0, 80) and ax.get_ylim()[1] > 72


def test_figure6_says_what_was_not_trained_and_draws_the_papers_numbers():
    runs = fake_runs(PLAIN | {"resnet20": (3.0, 8.7), "resnet110": (0.1, 6.6)})
    fig = figures.figure6(runs, fake_curves(runs))
    plain, residual = fig.axes
    assert "not yet trained: plain-32, plain-44, plain-110, ResNet-32, ResNet-44, ResNet-56 and" in texts(fig)
    assert [line.get_ydata()[0] for line in lines(residual, "_paper")] == [8.75, 6.61]  # 6.61: the mean, not 6.43
    assert not lines(plain, "_paper")
    train, test = lines(residual, "resnet20 train")[0], lines(residual, "resnet20 test")[0]
    assert train.get_linestyle() == "--" and test.get_linestyle() == "-"
    assert test.get_linewidth() > train.get_linewidth() and train.get_color() == test.get_color()


def test_figure6_enlarges_test_curves_that_end_close_to_each_other():
    errors = {"resnet20": (0.7, 8.1), "resnet56": (0.1, 6.9), "plain20": (1, 9.7), "plain56": (4, 15.7)}
    runs = fake_runs(errors)
    curves = fake_curves(runs, points=30)
    late = curves["iteration"] > 32_000
    curves["test_error"] -= 0.5 * (1 - curves["iteration"] / 64_000) * late  # flat from the first drop on
    plain, residual = figures.figure6(runs, curves).axes[:2]
    assert not plain.child_axes  # 6 points apart: told apart without
    (closer,) = residual.child_axes
    assert [line.get_ydata()[-1] for line in closer.lines] == pytest.approx([8.1, 6.9, 8.75, 6.97])
    assert closer.get_xlim() == pytest.approx((64 / 15, 6.4)) and closer.get_ylim() == pytest.approx(
        (6.7, 8.85),
        abs=0.01,  # the lowest, a line of the paper's, is not on the frame
    )
    shorter = runs.assign(iterations=6400)  # no lines of the paper's there, and no plateau either
    assert not figures.figure6(shorter, curves).axes[1].child_axes
    early = curves.assign(test_error=curves["test_error"] + 0.06 * (curves["iteration"] < 50_000))
    assert not figures.figure6(runs, early).axes[1].child_axes  # the curves need the room themselves


def test_figure6_has_no_paper_lines_on_synthetic_data():
    runs = fake_runs({"resnet20": (50.0, 55.0)}, **SYNTHETIC)
    fig = figures.figure6(runs, fake_curves(runs))
    assert not any(lines(ax, "_paper") for ax in fig.axes) and "Table 6" not in texts(fig)
    assert "not yet trained: plain-20 and plain-32" in texts(fig.axes[0])


def test_figure6_compares_a_shorter_schedule_with_nothing():
    runs = fake_runs({"resnet20": (12.0, 13.8), "plain110": (65.0, 66.0)}, iterations=6400)
    fig = figures.figure6(runs, fake_curves(runs))
    assert not any(lines(ax, name) for ax in fig.axes for name in ("_paper", "_paper_train"))
    assert "Table 6" not in texts(fig) and "the paper gives" not in texts(fig)


def test_figure6_draws_the_bounds_that_the_paper_gives_of_training_errors():
    runs = fake_runs({"plain110": (65.0, 66.0), "resnet110": (0.1, 6.6), "resnet1202": (0.05, 7.9)})
    fig = figures.figure6(runs, fake_curves(runs))
    plain, _, deep = fig.axes
    (above,), (below,) = lines(plain, "_paper_train"), lines(deep, "_paper_train")
    assert above.get_ydata()[0] == paper.PLAIN110_TRAINING_ERROR_ABOVE
    assert below.get_ydata()[0] == paper.RESNET1202_TRAINING_ERROR_BELOW
    assert "training errors that the paper gives: plain-110 above 60%, ResNet-1202 below 0.1%" in texts(fig)
    assert "bound of the training error, paper" in texts(fig)
    without = fake_runs({"plain20": (3.0, 9.0)})
    assert not any(lines(ax, "_paper_train") for ax in figures.figure6(without, fake_curves(without)).axes)
    synthetic = figures.figure6(runs.assign(**SYNTHETIC), fake_curves(runs))
    assert not any(lines(ax, "_paper") for ax in synthetic.axes) and "the paper gives" not in texts(synthetic)


def test_plain110_above_the_axis_is_named_with_its_error():
    runs = fake_runs(PLAIN | {"plain110": (65.0, 66.0)})
    assert "110-layer ↑ 66%" in texts(figures.figure6(runs, fake_curves(runs)).axes[0])


def test_unfinished_diverged_and_other_recipes():
    runs = fake_runs({"plain20": [9.0, 9.2], "plain56": [13.0, 14.0]})
    runs.loc[1, "status"], runs.loc[2, "status"], runs.loc[3, "status"] = "interrupted", "diverged", "running"
    other = fake_runs({"plain20": (3.0, 5.0)}, padding="black").assign(run="other")
    runs = pd.concat([runs.assign(padding="mean"), other], ignore_index=True)
    fig = figures.figure1(runs, fake_curves(runs))
    (line,) = lines(fig.axes[1], "plain20 test_error")
    assert line.get_ydata()[-1] == pytest.approx(9.0)  # neither the interrupted seed nor the other padding
    said = texts(fig)
    assert "56-layer (unfinished)" in said and "diverged, not drawn: plain-56" in said
    assert "1 run of these nets under other settings not drawn" in said


def test_figure4_panels():
    errors = {"plain18": (32.0, 28.0), "plain34": (34.0, 29.0), "resnet18": (31.0, 27.8), "resnet34": (26.0, 25.0)}
    runs = fake_runs(errors, dataset="imagenet", iterations=600_000)
    fig = figures.figure4(runs, fake_curves(runs))
    assert [ax.get_title() for ax in fig.axes] == ["plain nets", "residual nets"]
    thin, bold = lines(fig.axes[1], "resnet34 train")[0], lines(fig.axes[1], "resnet34 test")[0]
    assert thin.get_linewidth() < 1 < bold.get_linewidth()
    assert bold.get_ydata()[-1] == pytest.approx(25.0)
    assert fig.axes[0].get_ylim() == fig.axes[1].get_ylim()


def test_figure4_says_at_which_scale_it_is_and_on_how_many_classes(tmp_path):
    errors = {"plain18": (62.0, 58.0), "resnet34": (56.0, 55.0)}
    medium = imagenet_recipe("resnet34", preset_of("medium"), "imagenette").to_dict()
    fields = {name: [medium[name]] * 2 for name in imagenet_scale.FIELDS}
    runs = fake_runs(errors, dataset="imagenette", classes=10, train_images=9469).assign(**fields)
    sentence = (
        "protocol scaled by 1/4 (crop 56 of 224, shorter side 64 to 120 of 256 to 480, batch 64 of 256, lr 0.025 of "
        "0.1), 1,109 iterations on 9,469 images (per image 1/4 of the paper's 600,000 on 1,281,167; 7.5 "
        "epochs of 120), lr divided by 10 at 1/2 and 3/4 of them instead of on a plateau"
    )
    said = texts(figures.figure4(runs, fake_curves(runs)))
    assert "imagenette (10 classes, 00ff)" in said
    captions = (said.replace("\n", " "), tables.depth_caption(runs), tables.claims_caption(runs))
    assert all(text.count(sentence) == 1 for text in captions)
    assert sentence.partition(", 1,109")[0] in open_study("figure4", "medium", str(tmp_path)).facts()["scale"]
    runs["train_images"] = [9469, np.nan]  # one is not finished
    assert imagenet_scale.in_words(runs.astype({"train_images": object}).replace({np.nan: None})) == sentence
    assert imagenet_scale.in_words(runs) == sentence


def test_the_scale_of_imagenet_runs_in_words():
    def said(preset, **changes):
        recipe = imagenet_recipe("plain18", preset_of(preset), **changes)
        return imagenet_scale.in_words(pd.DataFrame([recipe.to_dict()]))

    assert said("paper") == (
        "the paper's protocol (crop 224, shorter side 256 to 480, batch 256, lr 0.1), 600,000 iterations, lr divided "
        "by 10 on a plateau"
    )
    other = said("paper", augmentation="none", nesterov=True)
    assert other.startswith("the paper's sizes (crop 224,")
    assert other.endswith(", not the paper's: augmentation none, nesterov True")
    assert "at 1/4, 1/2 and 3/4 of them instead of on a plateau" in said("paper", schedule="steps")
    assert said("quick", lr_drops=()).endswith("lr divided by 10 at none of them instead of on a plateau")
    assert said("quick").startswith("protocol scaled by 1/8 (crop 28 of 224, shorter side 32 to 60 of")
    assert said("quick", lr=0.1).startswith("protocol of other sizes (crop 28 of 224,")
    assert "117 iterations on 2,000 images (per image 1/8 of the paper's" in said("quick")
    assert "500 iterations on 2,000 images (per image 1/1.87 of the paper's" in said("quick", iterations=500)
    assert said("smoke").startswith("protocol scaled by 1/16 (crop 14 of 224, shorter side 16 to 30 of")
    assert "4 iterations on 128 images (per image 1/16 of the paper's 600,000 on" in said("smoke")
    assert "1,281,167; 0.5 epochs of 120)" in said("smoke")
    assert "(per image 1/1.5 of" in said("paper", iterations=400_000)
    assert "1 iterations on 1,281,167 images (per image 1/600,000 of" in said("paper", iterations=1)


def test_the_synthetic_images_are_as_many_as_said():
    assert imagenet_scale.IMAGES_OF["synthetic-imagenet"] == SYNTHETIC_SIZES["synthetic-imagenet"][1]


def test_one_factor_divides_the_imagenet_protocol():
    """Crop, scales, batch, rate and iterations per training image; that is 1/factor**2 of the paper's 120 epochs."""
    paper = imagenet_recipe("plain18", preset_of("paper"), "imagenet")
    scales = {"smoke": (16, 128), "quick": (8, 2000), "medium": (4, 9469), "paper": (1, 1_281_167)}
    for preset, (factor, images) in scales.items():
        recipe = imagenet_recipe("plain18", preset_of(preset), "imagenette")
        assert recipe.factor == factor
        assert recipe.crop_size * factor == paper.crop_size == 224
        assert tuple(side * factor for side in recipe.scale_range) == paper.scale_range == (256, 480)
        assert recipe.batch_size * factor == paper.batch_size == 256
        assert recipe.lr * factor == pytest.approx(paper.lr) == pytest.approx(0.1)
        assert recipe.iterations == round(paper.iterations * images / 1_281_167 / factor)
        epochs = recipe.iterations * recipe.batch_size / images
        assert epochs == pytest.approx(119.9 / factor**2, rel=0.07)  # rounded to whole iterations: 4 of 3.7 at smoke
    assert imagenet_scale.in_words(fake_runs({"plain20": (9, 9)})) == imagenet_scale.in_words(pd.DataFrame()) == ""


def test_depth_view_means():
    runs = fake_runs({"plain20": [9.0, 9.4], "plain56": [13.0, 13.2], "resnet20": [8.7, 8.9], "resnet1202": [7.9]})
    ax = figures.depth_view(runs).axes[1]
    (plain,), (resnet,) = lines(ax, "plain"), lines(ax, "ResNet")
    np.testing.assert_allclose(plain.get_ydata(), [9.2, 13.1])
    np.testing.assert_allclose(resnet.get_xdata(), [20, 1202])
    assert plain.get_marker() != resnet.get_marker() and plain.get_linestyle() != resnet.get_linestyle()
    assert ax.get_xscale() == "log" and [t.get_text() for t in ax.get_xticklabels()] == ["20", "56", "1202"]


def test_depth_view_draws_and_explains_dots_where_there_are_several_seeds():
    runs = fake_runs({"plain20": [9.0, 9.4], "plain56": [13.0], "resnet20": [8.7]})
    fig = figures.depth_view(runs)
    (dots,) = lines(fig.axes[1], "_seeds")
    assert list(dots.get_xdata()) == [20, 20] and list(dots.get_ydata()) == pytest.approx([9.0, 9.4])
    (mean,) = lines(fig.axes[1], "_means")  # an open mark on the line, whose own are filled
    assert list(mean.get_xdata()) == [20] and list(mean.get_ydata()) == pytest.approx([9.2])
    assert mean.get_markerfacecolor() == "white" != lines(fig.axes[1], "plain")[0].get_markerfacecolor()
    assert "one seed of several (open mark: their mean)" in texts(fig)
    single = figures.depth_view(runs.drop_duplicates("model"))
    assert not lines(single.axes[1], "_seeds") + lines(single.axes[1], "_means") and "several" not in texts(single)


def test_depth_view_names_what_the_preset_has_yet_to_train():
    runs = fake_runs({"plain20": [9.0], "plain32": [9.5], "resnet20": [8.7]}).assign(preset="paper")
    fig = figures.depth_view(runs)
    later = "plain-44, plain-56, plain-110, ResNet-32, ResNet-44, ResNet-56, ResNet-110 and ResNet-1202"
    assert f"not yet trained: {later} · " in " ".join(texts(fig).split())  # it is wrapped
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["20", "32", "44", "56"]
    assert "not yet" not in texts(figures.depth_view(runs.drop(columns="preset")))


def test_a_notebook_can_show_the_figure():
    formatters = pytest.importorskip("IPython.core.formatters")
    assert formatters.PNGFormatter()(figures.block_diagram("plain")).startswith(b"\x89PNG")


def test_saved_bytes_are_the_same_again(tmp_path):
    runs = fake_runs(PLAIN, seeds=(0, 1))
    curves = fake_curves(runs)
    first = figures.save_figure(figures.figure1(runs, curves), tmp_path / "new" / "figure1.a")
    second = figures.save_figure(figures.figure1(runs, curves), tmp_path / "again" / "figure1.a")
    assert [p.name for p in first] == ["figure1.a.png", "figure1.a.pdf"]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))
    assert b"CreationDate" not in first[1].read_bytes() and b"Software" not in first[0].read_bytes()
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["figure1.a.pdf", "figure1.a.png"]
