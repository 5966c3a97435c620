"""Says what is missing before anything is installed: python scripts/preflight.py FOLDER. Runs on any Python 3."""

import importlib.util
import os
import shutil
import sys

NEEDED_GB = 7  # PyPI's torch for Linux brings the CUDA libraries
SUPPORTED = ((3, 11), (3, 13))


def problems(venv, version=tuple(sys.version_info[:2]), free=None):
    """What stands in the way of making the environment `venv`, one line each."""
    found = []
    if not SUPPORTED[0] <= tuple(version) <= SUPPORTED[1]:
        found.append(
            "Python %d.%d is not supported, allowed are 3.11 to 3.13: make PYTHON=python3.12 ..." % tuple(version)
        )
    for module, package in (("venv", "python3-venv"), ("ensurepip", "python3-venv")):
        if importlib.util.find_spec(module) is None:
            found.append("the Python module %s is missing: install it (Debian: apt-get install %s)" % (module, package))
    if not os.path.exists(os.path.join(venv, "bin", "python")):
        folder = os.path.dirname(os.path.abspath(venv))
        free = shutil.disk_usage(folder).free if free is None else free
        if free < NEEDED_GB * 1e9:
            found.append(
                "%s has %.1f GB free, the environment takes up to %d GB: make VENV=/other/disk/venv ..."
                % (folder, free / 1e9, NEEDED_GB)
            )
        if not os.access(folder, os.W_OK):
            found.append("%s is not writable" % folder)
    return found


if __name__ == "__main__":
    lines = problems(sys.argv[1] if len(sys.argv) > 1 else ".venv")
    for line in dict.fromkeys(lines):
        sys.stderr.write("reslib: %s\n" % line)
    sys.exit(1 if lines else 0)
