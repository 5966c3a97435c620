"""Which runs the figures need: shared runs once, the paper's numbers in the paper preset."""

import pytest

from reslib.errors import UserError
from reslib.presets import PRESETS, cifar_recipe, imagenet_recipe, preset_of
from reslib.recipe import Recipe
from reslib.studies import PAPER_SIX, STUDIES, cifar10_table, fidelity, figure1, figure6, figure7, future_work, plan

BOTH = {"cifar": "cifar10", "imagenet": "imagenet"}


def test_paper_preset_has_the_papers_numbers():
    recipe = cifar_recipe("resnet20", PRESETS["paper"])
    assert recipe == Recipe() and recipe.iterations == 64_000 and recipe.batch_size == 128
    assert (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.nesterov) == (0.1, 0.9, 1e-4, False)


def test_medium_is_a_tenth_with_milestones_at_the_same_fractions():
    medium, paper = (cifar_recipe("plain56", PRESETS[p]) for p in ("medium", "paper"))
    assert medium.iterations * 10 == paper.iterations and medium.lr_drops == paper.lr_drops


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_changes_scale_only(name):
    scale = {"iterations", "batch_size", "eval_every", "train_size", "test_size", "warmup_window"}
    recipe, paper = cifar_recipe("resnet20", PRESETS[name]), cifar_recipe("resnet20", PRESETS["paper"])
    assert {k for k, v in recipe.to_dict().items() if v != paper.to_dict()[k]} <= scale


def test_only_110_layers_and_more_warm_up():
    warmed = {d: cifar_recipe(f"resnet{d}", PRESETS["paper"]).warmup_lr for d in (20, 32, 44, 56, 110, 1202)}
    assert warmed == {20: 0, 32: 0, 44: 0, 56: 0, 110: 0.01, 1202: 0.01}


def test_shared_runs_are_planned_once():
    preset = PRESETS["medium"]
    whole = plan(preset, BOTH)
    assert len({r.digest for r in whole}) == len(whole)
    assert {r.digest for r in figure1(preset, "cifar10")} <= {r.digest for r in figure6(preset, "cifar10")}


def test_table_row_of_every_network():
    models = {r.model for r in STUDIES["cifar10_table"][0](PRESETS["paper"], "cifar10", 0)}
    assert models == {
        "maxout", "nin", "dsn", "fitnet19", "highway19", "highway32",
        "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202",
    }  # fmt: skip


def test_the_tables_of_imagenet_are_planned():
    """All of the paper's rows at paper, what is cheap at medium, and at quick the nets of Figure 4 alone."""
    counts = {}
    for name in PRESETS:
        recipes = plan(PRESETS[name], BOTH, names=["figure4", "imagenet_tables"])
        counts[name] = len(recipes)
        assert {r.digest for r in recipes} <= {r.digest for r in plan(PRESETS[name], BOTH)}
    assert counts == {"smoke": 4, "quick": 4, "medium": 7, "paper": 10}
    six = [r for r in plan(PRESETS["paper"], BOTH, names=["imagenet_tables"]) if r.shortcut != "A"]
    assert [(r.model, r.shortcut, r.seed) for r in six] == list(PAPER_SIX)
    assert imagenet_recipe("resnet50", PRESETS["paper"]) == six[2]  # bottlenecks project where dimensions grow


def test_small_imagenet_is_the_papers_protocol_over_one_number():
    paper = imagenet_recipe("resnet34", PRESETS["paper"])
    assert (paper.crop_size, paper.scale_range, paper.batch_size) == (224, (256, 480), 256)
    for name, factor in (("smoke", 16), ("quick", 8), ("medium", 4)):
        small = imagenet_recipe("resnet34", PRESETS[name])
        sizes = (small.crop_size, *small.scale_range, small.batch_size)
        assert {big / small for big, small in zip((224, 256, 480, 256), sizes, strict=True)} == {factor}
        assert paper.lr / small.lr == pytest.approx(factor) == small.factor
        assert small.augmentation == paper.augmentation and small.preprocessing == paper.preprocessing


@pytest.mark.parametrize("name", PRESETS)
def test_some_rows_of_the_table_can_be_selected_on_validation_images(name):
    preset = PRESETS[name]
    split = [r for r in cifar10_table(preset, "cifar10") if r.val_size]
    assert {r.model for r in split} == set(preset.split) >= {"resnet20"}
    images = preset.scale.get("train_size") or 50_000
    assert all((r.train_size or 45_000) + r.val_size == images for r in split)
    assert all(r.val_size == images // 10 for r in split)  # 45k/5k, or as much of fewer images
    if not preset.ablation:  # the same runs as the deviation "a tenth held out (45k/5k)"
        assert {r.digest for r in fidelity(preset, "cifar10")["a tenth held out (45k/5k)"]} <= {r.digest for r in split}


def test_seeds_argument_overrides_the_preset():
    recipes = figure1(PRESETS["quick"], "synthetic", 3)
    assert sorted(r.seed for r in recipes if r.model == "plain20") == [0, 1, 2]


@pytest.mark.parametrize("name", PRESETS)
def test_each_deviation_differs_from_the_paper_in_one_respect(name):
    """Also the net that warms up, from its own reference; it is in the presets that have it."""
    preset = PRESETS[name]
    groups = fidelity(preset, "cifar10", 1)
    assert {bool(group) for name, group in groups.items() if "110" in name} == {110 in preset.deep}
    for deviation, recipes in groups.items():
        if deviation.startswith("paper") or not recipes:
            continue
        (recipe,), (reference,) = recipes, groups["paper (ResNet-110)" if "110" in deviation else "paper"]
        changed = {k for k, v in recipe.to_dict().items() if v != getattr(reference, k)}
        allowed = {"val_size", "train_size"} if "held out" in deviation else changed
        assert changed <= allowed and (len(changed) == 1 or changed == {"val_size", "train_size"}), deviation
    if 110 in preset.deep:
        (bare,), (warmed,) = groups["no warm-up (ResNet-110)"], groups["paper (ResNet-110)"]
        assert (bare.model, bare.warmup_lr, warmed.warmup_lr) == ("resnet110", 0.0, 0.01)


@pytest.mark.parametrize("study", [figure1, figure6, figure7, cifar10_table, future_work])
def test_every_study_of_cifar10_takes_the_seeds_asked_for(study):
    recipes = study(PRESETS["quick"], "cifar10", 2)
    assert {model: sorted({r.seed for r in recipes if r.model == model}) for model in {r.model for r in recipes}} == {
        r.model: [0, 1] for r in recipes
    }


@pytest.mark.parametrize("name", PRESETS)
def test_own_networks_get_every_view_that_the_papers_rows_get(name):
    preset = PRESETS[name]
    recipes = cifar10_table(preset, "cifar10", 2, ["my.nets:Wide"])
    for model in ("resnet20", "my.nets:Wide"):
        mine = [r for r in recipes if r.model == model]
        assert sorted(r.seed for r in mine if not r.val_size) == sorted(r.seed for r in mine if r.val_size) == [0, 1]
    changed = [r.replace(model="resnet20") for r in recipes if r.model == "my.nets:Wide"]
    assert changed == [r for r in recipes if r.model == "resnet20"]  # the same protocol


def test_unknown_preset_is_named_with_what_is_allowed():
    with pytest.raises(UserError, match="'qick'.*smoke, quick, medium, paper.*did you mean 'quick'"):
        preset_of("qick")


def test_a_preset_with_changed_fields_has_one_spelling_and_changes_every_run():
    changed = preset_of("quick+lr_drops=0.25,0.5,iterations=500,nesterov=True, shortcut=B")
    assert changed.name == "quick+iterations=500,lr_drops=0.25,0.5,nesterov=true,shortcut=B"
    assert preset_of(changed.name) == changed and changed.base == "quick"
    for recipe in plan(changed, BOTH):
        assert (recipe.iterations, recipe.lr_drops, recipe.nesterov) == (500, (0.25, 0.5), True)
    assert len(plan(changed, BOTH, names=["figure1"])) == len(plan(preset_of("quick"), BOTH, names=["figure1"]))
    assert preset_of("medium+crop_size=64").name == "medium+crop_size=64"  # suits ImageNet alone
    with pytest.raises(UserError, match=r"preset 'quick\+warmup_lr=0.01', maxout: warmup_lr 0.01 is above lr 0.002"):
        plan(preset_of("quick+warmup_lr=0.01"), BOTH)


@pytest.mark.parametrize(
    "name, says",
    [
        ("quik+lr=0.1", "did you mean 'quick'"),
        ("quick+", "field=value"),
        ("quick+lr", "field=value"),
        ("quick+lr=", "field=value"),
        ("quick+learning_rate=0.1", "recipe field 'learning_rate'"),
        ("quick+lr=banana", "lr 'banana' is not a number"),
        ("quick+lr=-1", "lr -1.0"),
        ("quick+lr=0.1,lr=0.2", "given twice"),
        ("quick+model=resnet56", "recipe field 'model'"),
        ("quick+padding=/../../x", "padding '/../../x'"),
    ],
)
def test_a_wrong_change_is_named(name, says):
    with pytest.raises(UserError) as caught:
        preset_of(name)
    assert says in str(caught.value) and "\n" not in str(caught.value)
