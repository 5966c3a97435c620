"""What is drawn for a training view: order, crop, scale, flip; and resampling against Pillow."""

import numpy as np
import pytest
import torch
from imagenet_sets import in_memory, picture, tiny
from PIL import Image
from torchvision.transforms import functional as TF

from reslib.data.decode import resample, resampling_matrix, resized_crop, scaled_size
from reslib.data.draws import _keys, centre_scale, draw, first_images, permutation, split_indices
from reslib.data.imagenet import FolderBatches
from reslib.errors import UserError


def test_order_is_concatenated_permutations_wrapping_around():
    source = in_memory()
    batches = FolderBatches(tiny(), source, "cpu")
    expected = np.concatenate([permutation(5, epoch, 14) for epoch in range(4)])
    assert all(sorted(expected[14 * e : 14 * e + 14]) == list(range(14)) for e in range(4))
    assert not (expected[:14] == expected[14:28]).all()
    assert (batches.order(np.arange(50)) == expected[:50]).all()
    labels = torch.cat([y for _, y in batches.stream(2, 9)])
    assert (labels == source.train.labels[expected[8:36]]).all()


def test_draw_is_a_pure_function_of_seed_and_position():
    recipe = tiny()
    whole = draw(recipe, np.arange(1000))
    part = draw(recipe, np.array([7, 500, 3]))
    assert all((part[name] == whole[name][[7, 500, 3]]).all() for name in whole)
    counters = np.arange(100)
    assert (_keys(0, 2, counters) != _keys(1, 1, counters)).all()  # streams of different seeds do not coincide
    other = draw(recipe.replace(seed=6), np.arange(1000))
    assert all((other[name] != whole[name]).any() for name in whole)


def test_draw_has_the_stated_distributions():
    views = draw(tiny(), np.arange(20_000))
    counts = torch.bincount(views["scale"])
    assert views["scale"].min() == 26 and views["scale"].max() == 60
    assert counts[26:].min() > 400 and counts[26:].max() < 800  # 571 expected
    for name in ("top", "left"):
        assert abs(views[name].mean() - 0.5) < 0.01 and 0 <= views[name].min() and views[name].max() < 1
    assert abs(views["flip"].float().mean() - 0.5) < 0.015
    assert views["alpha"].mean(0).abs().max() < 0.003 and (views["alpha"].std(0) - 0.1).abs().max() < 0.003
    columns = torch.stack(
        [views[n].double() for n in ("scale", "top", "left", "flip")] + list(views["alpha"].T.double())
    )
    assert (torch.corrcoef(columns) - torch.eye(7)).abs().max() < 0.03


def test_other_augmentations_and_batch_crops():
    fixed = draw(tiny(augmentation="crop-flip"), np.arange(64))
    assert (fixed["scale"] == 26).all() and (fixed["alpha"] == 0).all() and fixed["flip"].any()
    none = draw(tiny(augmentation="none"), np.arange(64))
    assert (none["scale"] == centre_scale(24)).all() and not none["flip"].any()
    assert (none["top"] == 0.5).all() and (none["left"] == 0.5).all()
    shared = draw(tiny(crops="batch"), np.arange(8))
    assert (shared["top"][:4] == shared["top"][0]).all() and shared["top"][4] != shared["top"][0]


def test_splits_are_disjoint_and_mixed():
    train, val = split_indices(100, 20, 30)
    assert len(train) == 30 and len(val) == 20 and not set(train) & set(val)
    assert val.max() > 50 and val.min() < 50
    assert len(split_indices(100, 20, 0)[0]) == 80
    assert first_images(100, 0).tolist() == list(range(100)) and len(set(first_images(100, 10))) == 10
    assert first_images(100, 10).max() > 50  # of a sorted set not only the first classes
    with pytest.raises(UserError, match="val_size 90"):
        split_indices(100, 90, 20)


@pytest.mark.parametrize("shorter", [26, 33, 40, 77, 150])
def test_resampling_matrices_match_pillow(shorter):
    image = picture(0, (60, 40))
    width, height = scaled_size(60, 40, shorter)
    expected = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).astype(float)
    zero = torch.tensor([0])
    rows = resampling_matrix(40, torch.tensor([height]), zero, height)
    columns = resampling_matrix(60, torch.tensor([width]), zero, width)
    ours = resample(torch.from_numpy(np.array(image))[None], rows, columns)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - expected).max() <= 1.01  # Pillow rounds to whole levels twice


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (200, 150)])
def test_resized_crop_equals_resizing_everything(size):
    image = picture(1, size)
    generator = np.random.default_rng(0)
    for shorter in (24, 31, 40, 90):
        width, height = scaled_size(*size, shorter)
        top, left = int(generator.integers(height - 23)), int(generator.integers(width - 23))
        whole = TF.resize(image, shorter)  # torchvision's rule for the longer side, Pillow's filter
        assert whole.size == (width, height)
        expected = np.asarray(TF.crop(whole, top, left, 24, 24)).astype(int)
        difference = np.abs(resized_crop(image, shorter, top, left, 24).astype(int) - expected)
        assert difference.max() <= 2 and difference.mean() < 0.3  # exact halves round either way
