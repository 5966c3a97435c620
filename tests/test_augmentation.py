"""Batches: every image against torchvision's transforms, the draws by chi-square, the order by counting."""

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as TF

from reslib.data.memory import MemoryBatches, draw_epoch, normalisation, split
from reslib.data.sets import DataSource, ImageSet
from reslib.errors import UserError
from reslib.recipe import Recipe

CPU = torch.device("cpu")


def source(train=300, test=50, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def images(count):
        pixels = torch.randint(256, (count, size, size, 3), generator=generator).to(torch.uint8)
        pixels[..., 0] //= 2  # channels that differ in mean and spread
        labels = torch.arange(count)  # a label per image, to follow it
        return ImageSet(pixels, labels)

    return DataSource("made up", images(train), images(test), ["x"] * train, "0" * 16, "test", synthetic=True)


def batches(data=None, **fields):
    return MemoryBatches(Recipe(**{"batch_size": 64, **fields}), data or source(), CPU)


def chi_square(counts):
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("crops", ["sample", "batch"])
@pytest.mark.parametrize("padding", ["mean", "black"])
@pytest.mark.parametrize("preprocessing", ["pixel-mean", "channel-mean", "channel-std"])
def test_every_image_against_torchvision(preprocessing, padding, crops):
    data = source()
    found = batches(data, preprocessing=preprocessing, padding=padding, crops=crops)
    train = data.train.images.numpy().astype(np.float64)  # (N, H, W, 3)
    mean, scale = train.mean(0), np.full(3, 1 / 255)
    if preprocessing != "pixel-mean":
        mean = np.broadcast_to(train.mean((0, 1, 2)), (32, 32, 3))
    if preprocessing == "channel-std":
        scale = 1 / train.std((0, 1, 2))
    raw = torch.from_numpy(train).permute(0, 3, 1, 2)
    grey = torch.from_numpy(mean.copy()).permute(2, 0, 1)
    if padding == "mean":  # subtract, then pad with zeros: the mean
        padded = TF.pad(raw - grey, 4)
    else:  # pad with black, then subtract: per-channel means from the pad
        padded = TF.pad(raw, 4) - torch.where(
            TF.pad(torch.ones(1, 32, 32), 4) > 0, TF.pad(grey, 4), grey.mean((1, 2))[:, None, None]
        )
    for iteration in (0, 3, 4):  # 4 straddles two epochs of 300
        x, y = found.batch(iteration)
        assert x.shape == (64, 3, 32, 32) and x.is_contiguous(memory_format=torch.channels_last)
        epochs = [draw_epoch(0, epoch, 300, 9) for epoch in range(2)]
        draws = {k: torch.cat([e[k] for e in epochs])[iteration * 64 : iteration * 64 + 64] for k in epochs[0]}
        assert torch.equal(y, draws["order"])
        for i in range(64):
            at = 0 if crops == "batch" else i
            image = TF.crop(padded[draws["order"][i]], int(draws["top"][at]), int(draws["left"][at]), 32, 32)
            image = TF.hflip(image) if draws["flip"][at] else image
            expected = image * torch.from_numpy(scale)[:, None, None]
            assert torch.allclose(x[i].double(), expected, atol=2e-5, rtol=1e-5), (iteration, i)


def test_offsets_are_uniform_and_half_are_flipped():
    draws = draw_epoch(7, 0, 50_000, 9)
    assert draws["top"].min() == 0 and draws["top"].max() == 8
    positions = torch.bincount(draws["top"] * 9 + draws["left"], minlength=81).double()
    assert len(positions) == 81 and chi_square(positions) < 124.8  # 99.9% quantile for 80 degrees of freedom
    both = torch.bincount(draws["flip"] * 81 + draws["top"] * 9 + draws["left"], minlength=162).double()
    assert chi_square(both) < 221  # 161 degrees of freedom
    assert abs(draws["flip"].double().mean() - 0.5) < 3.3 * 0.5 / 50_000**0.5
    # ... and nothing depends on where an image stands or which it is
    for name in ("top", "left", "flip"):
        assert abs(np.corrcoef(draws[name].double(), draws["order"].double())[0, 1]) < 0.015


def test_pad_is_the_mean_or_black():
    data = source()
    draws = {"order": torch.arange(8), "top": torch.zeros(8, dtype=torch.long), "left": torch.full((8,), 8)}
    draws["flip"] = torch.zeros(8, dtype=torch.bool)
    x = batches(data).crop(draws)
    assert (x[:, :, :4] == 0).all() and (x[:, :, :, 28:] == 0).all() and (x[:, :, 4:, :28] != 0).float().mean() > 0.9
    x = batches(data, padding="black").crop(draws)
    assert (x[:, :, :4] < -0.1).all() and (x[:, :, :, 28:] < -0.1).all()


def test_samples_of_a_batch_differ_unless_asked_otherwise():
    data = source()
    data.train.images[:] = data.train.images[0].clone()  # one image: what differs is the crop
    assert len({x.numpy().tobytes() for x in batches(data, padding="black").batch(0)[0]}) > 30
    for iteration in (0, 4):
        whole = batches(data, padding="black", crops="batch").batch(iteration)[0]
        assert len({x.numpy().tobytes() for x in whole}) == 1
        shares = [batches(data, padding="black", crops="batch").batch(iteration, r, 4)[0] for r in range(4)]
        assert torch.equal(torch.cat(shares), whole)
    assert len({batches(data, padding="black", crops="batch").batch(i)[0][0].numpy().tobytes() for i in range(9)}) > 3


@pytest.mark.parametrize("batch_size", [1, 7, 64, 300, 700])
def test_every_image_once_per_epoch_and_no_partial_batch(batch_size):
    found = batches(batch_size=batch_size)
    steps = -(-3 * 300 // batch_size)
    labels = [y for _, y in found.stream(0, steps)]
    assert all(len(y) == batch_size for y in labels)
    order = torch.cat(labels)
    epochs = [order[300 * e : 300 * (e + 1)] for e in range(3)]
    assert all(sorted(e.tolist()) == list(range(300)) for e in epochs)
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


def test_a_resumed_stream_is_the_uninterrupted_one():
    whole = list(batches().stream(0, 12))
    for start in (1, 4, 5, 11):
        for (x, y), (a, b) in zip(batches().stream(start, 12), whole[start:], strict=True):
            assert torch.equal(x, a) and torch.equal(y, b)


@pytest.mark.parametrize("world", [2, 4, 8])
def test_shares_of_all_processes_make_the_batch(world):
    found = batches()
    for iteration in (0, 4, 9):
        shares = [batches().batch(iteration, rank, world) for rank in range(world)]
        x, y = found.batch(iteration)
        assert torch.equal(torch.cat([s[0] for s in shares]), x) and torch.equal(torch.cat([s[1] for s in shares]), y)


def test_seed_and_epoch_decide_the_draws():
    first = draw_epoch(0, 0, 100, 9)
    assert all(torch.equal(a, b) for a, b in zip(first.values(), draw_epoch(0, 0, 100, 9).values(), strict=True))
    for other in (draw_epoch(1, 0, 100, 9), draw_epoch(0, 1, 100, 9)):
        assert all(not torch.equal(first[k], other[k]) for k in first)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draw_epoch(3, 3, 100, 9)
    assert torch.equal(before, torch.get_rng_state())  # the global generator is left alone
    # Pinned: the crops of published runs
    assert draw_epoch(0, 0, 50_000, 9)["order"][:4].tolist() == [12209, 15626, 22040, 22118]


def test_validation_split():
    data = source()
    train, validation, test = split(data, Recipe(val_size=60))
    assert (len(train), len(validation), len(test)) == (240, 60, 50)
    assert sorted(train.labels.tolist() + validation.labels.tolist()) == list(range(300))
    for seed in (1, 2):
        again = split(data, Recipe(val_size=60, seed=seed))
        assert torch.equal(again[1].labels, validation.labels) and torch.equal(again[0].labels, train.labels)
    fewer, same, few = split(data, Recipe(val_size=60, train_size=100, test_size=10))
    assert torch.equal(same.labels, validation.labels) and set(fewer.labels.tolist()) < set(train.labels.tolist())
    assert len(fewer) == 100 and len(set(few.labels.tolist())) == 10
    assert max(few.labels.tolist()) > 25  # the labels rise, as those of a sorted set: not only the first classes
    mixed = dataclasses.replace(data, test=data.test.take(torch.arange(49, -1, -1)))
    assert split(mixed, Recipe(test_size=10))[2].labels.tolist() == list(range(49, 39, -1))
    assert all(torch.equal(part.images, data.train.images[part.labels]) for part in (train, validation, fewer))
    whole, none, _ = split(data, Recipe())
    assert len(whole) == 300 and none is None


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"val_size": 300}, "val_size 300"),
        ({"val_size": 100, "train_size": 201}, "train_size 201"),
        ({"train_size": 301}, "train_size 301"),
        ({"test_size": 51}, "test_size 51"),
        ({"crop_size": 24}, "crop_size 24"),
    ],
)
def test_sizes_that_cannot_be(fields, part):
    with pytest.raises(UserError, match=part):
        batches(**fields)


def test_images_that_do_not_fit_together():
    data, other = source(), source(size=24)
    with pytest.raises(UserError, match=r"\(24, 24\) pixels, expected \(32, 32\)"):
        batches(dataclasses.replace(data, test=other.test))
    data.train.images[..., 1] = 9
    with pytest.raises(UserError, match="channel-std.*does not vary"):
        batches(data, preprocessing="channel-std")


@pytest.mark.parametrize("preprocessing", ["pixel-mean", "channel-mean", "channel-std"])
def test_normalisation_against_numpy(preprocessing):
    images = source(train=2100, size=8).train.images  # more than one chunk
    mean, scale = normalisation(images, preprocessing)
    pixels = images.numpy().astype(np.float64)
    expected = pixels.mean(0) if preprocessing == "pixel-mean" else np.broadcast_to(pixels.mean((0, 1, 2)), (8, 8, 3))
    assert np.allclose(mean, expected, atol=1e-4) and mean.dtype == torch.float32
    std = pixels.std((0, 1, 2)) if preprocessing == "channel-std" else np.full(3, 255)
    assert np.allclose(scale, 1 / std, rtol=1e-5)
    normal = (pixels - mean.numpy()) * scale.numpy()
    assert abs(normal.mean()) < 1e-5 and (preprocessing != "channel-std" or abs(normal.std() - 1) < 1e-4)


def test_the_mean_is_of_the_images_trained_on():
    data = source()
    found = batches(data, val_size=100)
    kept = split(data, found.recipe)[0].images.double().mean(0)
    assert torch.allclose(found.mean.double(), kept, atol=1e-4)
    assert not torch.allclose(found.mean.double(), data.train.images.double().mean(0), atol=0.1)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [7, 500])
def test_evaluation_sees_each_image_once_unaugmented(batch_size, world):
    data = source()
    found = batches(data, val_size=60)
    for part, count in (("test", 50), ("val", 60), ("train", 240)):
        seen = [b for r in range(world) for b in found.eval_batches(part, batch_size, r, world)]
        labels = torch.cat([y for _, y in seen])
        assert len(labels) == count == len(set(labels.tolist()))
        images = (data.test if part == "test" else data.train).images[labels]
        expected = ((images.float() - found.mean) / 255).permute(0, 3, 1, 2)
        assert torch.allclose(torch.cat([x for x, _ in seen]), expected, atol=1e-6)
    assert found.has("val") and not batches(data).has("val")


def test_no_augmentation_gives_the_images_themselves():
    data = source()
    found = batches(data, augmentation="none")
    x, y = found.batch(2)
    assert torch.allclose(x, found.whole(data.train.images[y]), atol=1e-6) and len(found) == 300
