"""What a network's name says, without building it (and without PyTorch, whose import takes seconds)."""

from __future__ import annotations

import re

CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)  # Table 6
IMAGENET_DEPTHS = (18, 34, 50, 101, 152)  # Table 1


def family_and_depth(name: str) -> tuple[str, int]:
    """("resnet", 20) for "resnet20", ("plain", 56) for "plain56"; other networks give (name, 0)."""
    match = re.fullmatch(r"(plain|resnet)([1-9]\d*)", name)
    return (match[1], int(match[2])) if match else (name, 0)


def is_imagenet(name: str) -> bool:
    """Whether a name is one of an ImageNet network: 18, 34, 50, 101 or 152 layers."""
    return family_and_depth(name)[1] in IMAGENET_DEPTHS
