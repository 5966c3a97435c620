"""Training and test views against torchvision, in memory and from disk, shared out among processes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from imagenet_sets import in_memory, make_set, on_disk, tiny
from PIL import Image
from torchvision.transforms import functional as TF

from reslib.data import streaming
from reslib.data.draws import draw
from reslib.data.imagenet import FolderBatches, load_folder_set
from reslib.errors import UserError


def reference_view(image: Image.Image, views: dict, row: int, batches: FolderBatches) -> torch.Tensor:
    """One training view, step by step, in torchvision."""
    crop = batches.recipe.crop_size
    resized = TF.resize(image, int(views["scale"][row]))
    top = int(views["top"][row] * (resized.height - crop + 1))
    left = int(views["left"][row] * (resized.width - crop + 1))
    view = TF.crop(resized, top, left, crop, crop)
    if views["flip"][row]:
        view = TF.hflip(view)
    offset = sum(views["alpha"][row, k] * batches.components[k] for k in range(3))
    return TF.to_tensor(view) + (offset - batches.mean)[:, None, None]


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_training_views_match_torchvision(kind, tmp_path):
    source = in_memory() if kind == "memory" else on_disk(make_set(tmp_path))
    batches = FolderBatches(tiny(), source, "cpu", workers=0)
    for iteration, (x, y) in enumerate(batches.stream(0, 6)):
        assert x.is_contiguous(memory_format=torch.channels_last) and x.dtype == torch.float32
        positions = np.arange(4 * iteration, 4 * iteration + 4)
        views = draw(batches.recipe, positions)
        for row, i in enumerate(batches.order(positions)):
            if kind == "memory":
                image = Image.fromarray(source.train.images[i].numpy())
            else:
                image = Image.open(tmp_path / source.train.name(i))
            difference = (x[row] - reference_view(image, views, row, batches)).abs() * 255
            assert difference.max() < 2.1 and difference.mean() < 0.5  # grey levels; Pillow rounds in both passes
            assert y[row] == source.train.labels[i]


def test_memory_and_disk_give_the_same_views(tmp_path):
    """Lossless square images: the two ways differ by rounding to whole levels only."""
    root = make_set(tmp_path / "set", sizes=[(44, 44)])
    data = load_folder_set(root)
    memory = SimpleNamespace(
        train=SimpleNamespace(images=data.train_images, labels=data.train_labels),
        test=SimpleNamespace(images=data.test_images, labels=data.test_labels),
    )
    first, second = FolderBatches(tiny(), memory, "cpu"), FolderBatches(tiny(), on_disk(root), "cpu", workers=0)
    second.mean, second.components = first.mean, first.components
    pairs = [*zip(first.stream(0, 5), second.stream(0, 5), strict=True)]
    pairs += zip(first.eval_batches("test", 4), second.eval_batches("test", 4), strict=True)
    for (x, y), (other_x, other_y) in pairs:
        assert (x - other_x).abs().max() < 2.1 / 255 and (y == other_y).all()


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_ranks_share_each_batch_and_resuming_changes_nothing(kind, tmp_path):
    source = in_memory() if kind == "memory" else on_disk(make_set(tmp_path))
    batches = FolderBatches(tiny(), source, "cpu", workers=0)
    whole = [x for x, _ in batches.stream(0, 5)]
    shares = [[x for x, _ in FolderBatches(tiny(), source, "cpu", workers=0).stream(3, 5, r, 2)] for r in range(2)]
    for i in range(2):
        torch.testing.assert_close(whole[3 + i], torch.cat([shares[0][i], shares[1][i]]), rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="batch_size 4 cannot be shared by 3"):
        next(batches.stream(0, 1, 0, 3))


def test_worker_processes_change_nothing(tmp_path):
    source = on_disk(make_set(tmp_path))
    alone, helped = (FolderBatches(tiny(), source, "cpu", workers=w) for w in (0, 2))
    assert (alone.reader.ahead, helped.reader.ahead) == (0, 8)
    for (x, y), (other_x, other_y) in zip(alone.stream(0, 7), helped.stream(0, 7), strict=True):
        assert (x == other_x).all() and (y == other_y).all()


def test_workers_are_shared_out_on_each_machine(monkeypatch):
    monkeypatch.setattr(streaming, "cores", lambda: 32)
    assert streaming.worker_count(None, 1) == 16 and streaming.worker_count(3, 8) == 3
    assert streaming.worker_count(None, 8) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # two machines of four
    assert streaming.worker_count(None, 8) == 8


@pytest.mark.parametrize("kind", ["memory", "disk"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_takes_each_image_once_in_the_centre(kind, world, tmp_path):
    source = in_memory() if kind == "memory" else on_disk(make_set(tmp_path))
    batches = FolderBatches(tiny(), source, "cpu", workers=0)
    seen = [(x, y) for rank in range(world) for x, y in batches.eval_batches("test", 2, rank, world)]
    x, y = torch.cat([x for x, _ in seen]), torch.cat([y for _, y in seen])
    order = np.concatenate([np.arange(len(source.test.labels))[rank::world] for rank in range(world)])
    assert len(y) == len(source.test.labels) and (y.numpy() == np.asarray(source.test.labels)[order]).all()
    for row, i in enumerate(order):
        if kind == "memory":
            image = Image.fromarray(source.test.images[i].numpy())
        else:
            image = Image.open(tmp_path / source.test.name(i))
        expected = TF.to_tensor(TF.center_crop(TF.resize(image, 27), 24)) - batches.mean[:, None, None]
        assert (x[row] - expected).abs().max() < 1.6 / 255


def test_colour_statistics_match_numpy_and_the_components_are_principal():
    source = in_memory()
    batches = FolderBatches(tiny(preprocessing="channel-std", val_size=4), source, "cpu")
    pixels = source.train.images[batches.sets["train"]].reshape(-1, 3).numpy() / 255
    np.testing.assert_allclose(batches.mean, pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(batches.std, pixels.std(0), atol=1e-6)
    covariance = np.cov(pixels.T, bias=True)
    for row in batches.components.double().numpy():
        value = np.linalg.norm(row)  # row = eigenvalue * unit eigenvector
        np.testing.assert_allclose(covariance @ row, value * row, atol=1e-6)
    x = torch.cat([x for x, _ in batches.eval_batches("train")])
    assert batches.has("val") and len(batches) == 10 and x.std() > 0.5
    mixed = torch.cat([x for x, _ in batches.sample(10, 4)])  # of a set sorted by class: all once, in another order
    assert not torch.equal(mixed, x) and torch.equal(mixed.sum((1, 2, 3)).sort()[0], x.sum((1, 2, 3)).sort()[0])
    assert [len(y) for _, y in batches.sample(7, 4)] == [4, 3]
