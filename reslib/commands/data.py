"""`reslib data [show|download|verify]`: which data is found where and in which form; fetch CIFAR-10; check it.

Exit codes: show and verify give 1 when a set that is there cannot be read, verify also when no real set is there.
"""

from __future__ import annotations

import os
from pathlib import Path

from .. import data
from ..cli import checking_arguments, name_given
from ..data import cifar
from ..data.parquet import parquet_files
from ..data.places import BrokenSet, NotThere, OtherSet, find_root
from ..errors import UserError, choose
from ..files import folder_of

ACTIONS = ("show", "download", "verify")
CIFAR10 = "85d212b49fbcdd74"  # the fingerprint of the original files, in their order


def add_arguments(parser) -> None:
    parser.add_argument("action", nargs="?", default="show", help=", ".join(ACTIONS) + " (default: show)")
    parser.add_argument(
        "--data-root", type=name_given, default=None, help="folder with the data sets (default: $RESLIB_DATA)"
    )


def main(arguments) -> int:
    with checking_arguments():
        choose("action", arguments.action, ACTIONS)
    if arguments.action == "download":
        return download(arguments.data_root)
    with checking_arguments():
        root = data.data_root(arguments.data_root)
    print(f"data root {root}")
    return examine(root, strict=arguments.action == "verify")


def examine(root: Path, strict: bool) -> int:
    """Print a line per real data set; the exit code. strict: finding none is a failure, and details are printed."""
    found, failed = 0, 0
    for name in ("cifar10", "imagenet", "imagenette"):
        try:
            place = locate(name, root)
        except UserError as error:
            if isinstance(error, OtherSet) and not isinstance(error, BrokenSet):
                print(f"{name}: not found: {error}")
                continue
            print(f"{name}: DAMAGED: {error}")
            failed += 1
            continue
        if place is None:
            print(f"{name}: not found")
            continue
        form, path = place
        if name == "imagenet" and not strict:  # 1.3 million names are listed for its fingerprint
            print(f"{name}: {form} in {path} (`reslib data verify` reads it)")
            found += 1
            continue
        try:
            source = data.load(name, root)
        except UserError as error:
            print(f"{name}: DAMAGED: {error}")
            failed += 1
            continue
        found += 1
        sizes = f"{len(source.train):,} training and {len(source.test):,} test images, {len(source.classes)} classes"
        print(f"{name}: {form} in {path}; {sizes}; fingerprint {source.fingerprint}")
        if strict:
            print(f"  {checked(name, form, source)}")
    if not found and not failed:
        print("no real data: the synthetic stand-ins are used; `reslib data download` fetches CIFAR-10")
    return 1 if failed or (strict and not found) else 0


def locate(name: str, root: Path) -> tuple[str, Path] | None:
    """(form, folder) of a data set below the root, or None. Raises OtherSet where a subset lies in ImageNet's place."""
    if name == "cifar10":
        return cifar.find(root)
    try:
        folder = find_root(root, name)
    except OtherSet:
        raise
    except NotThere:
        return None
    return "parquet" if parquet_files(folder, ("train",)) else "class folders", folder


def checked(name: str, form: str, source) -> str:
    """What was checked, in words."""
    if name != "cifar10":
        return f"every image decoded: {source.origin}" if name == "imagenette" else "all files listed, none opened"
    if source.fingerprint == CIFAR10:
        return "the original CIFAR-10: every pixel and label, in its order"
    if form == "torchvision":
        return "every file has the MD5 published with the data set"
    return f"readable, but not the original in its order (that has fingerprint {CIFAR10})"


def download(given: str | None) -> int:
    """`reslib data download`: fetch CIFAR-10 unless it is there; returns the exit code."""
    with checking_arguments():
        root = folder_of("data root", given or os.environ.get("RESLIB_DATA") or "~/.cache/reslib-data")
    place = cifar.find(root)
    if place:
        try:
            cifar.load(*place)
            print(f"CIFAR-10 is already there: {place[0]} in {place[1]}")
            return 0
        except UserError as error:
            print(f"{error}; fetching it anew")
    print(f"CIFAR-10 is in {cifar.download(root)}")
    return 0
