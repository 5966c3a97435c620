"""What a notebook or command says before it has computed anything."""

import pytest

from reslib import imagenet_tables
from reslib.errors import UserError
from reslib.files import write_text
from reslib.notebook import open_folder, open_study
from reslib.numerics import resolve_device
from reslib.presets import PRESETS, imagenet_recipe, preset_of


def test_a_notebook_says_in_full_what_it_trains(tmp_path):
    study = open_study("figure1", "medium+iterations=100", "", str(tmp_path), 2, "cpu")
    page = study.describe()._repr_html_()
    assert all(model in page for model in ("plain20", "plain56", "resnet20", "resnet56"))
    assert "..." not in page and ">0, 1<" in page and "100 of 128 images" in page
    assert repr(study.describe()).count("\n") == page.count("<tr>") - 1 and " at 0x" not in page
    words = "lr 0.1, schedule steps, lr_drops (0.5, 0.75), momentum 0.9, weight_decay 0.0001, augmentation crop-flip"
    assert words in page


def test_of_networks_with_recipes_of_their_own_only_the_common_part_is_named(tmp_path):
    facts = open_study("cifar10_table", "smoke", "", str(tmp_path), 1, "cpu").facts()
    assert "lr 0.1" not in facts["recipe of all"] and "momentum 0.9" in facts["recipe of all"]


@pytest.mark.parametrize("open_it", [open_folder, lambda *a: open_study("figure1", *a)])
def test_results_that_cannot_be_written_are_named_at_once(tmp_path, open_it):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write to .*{tmp_path / 'file'} is in the way, not a folder"):
        open_it("smoke", *(["", str(tmp_path / "file")] if open_it is not open_folder else [str(tmp_path / "file")]))
    assert open_folder("smoke", str(tmp_path / "new")).folder == tmp_path / "new" / "smoke"
    assert not (tmp_path / "new").exists()  # who only looks leaves nothing


def test_hints_at_what_was_meant():
    with pytest.raises(UserError, match="device 'gpu' is unknown: .*cuda:N; did you mean 'cuda'?"):
        resolve_device("gpu")
    for field in ("model", "seed", "dataset"):
        with pytest.raises(
            UserError, match=f"recipe field '{field}' cannot be changed for all runs; allowed are iterations,"
        ):
            preset_of(f"smoke+{field}=3")


def test_members_of_an_ensemble_are_known_before_anything_is_trained(tmp_path):
    tmp_path = tmp_path / "runs"
    tmp_path.mkdir()
    recipes = [imagenet_recipe("resnet18", PRESETS["smoke"], "synthetic-imagenet")]
    (tmp_path / "resnet34-imagenette-s0-00000000").mkdir()
    names = [recipes[0].run_name, "resnet34-imagenette-s0-00000000"]
    imagenet_tables.check_ensemble(names, recipes, tmp_path)
    write_text(tmp_path.parent / "measurements" / "imagenet_scores.csv", "name\nresnet50-given.pth\n")
    imagenet_tables.check_ensemble(["resnet50-given.pth"], recipes, tmp_path)  # measured before
    imagenet_tables.check_ensemble([], recipes, tmp_path, weights="/nowhere")  # looked for only where needed
    with pytest.raises(UserError, match="member of the ensemble 'resnet18' is unknown: allowed are resnet18-synth"):
        imagenet_tables.check_ensemble(["resnet18"], recipes, tmp_path)
