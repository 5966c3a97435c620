"""The kernels of thin nets compiled for a GPU that need not be here."""

import contextlib
import re
import subprocess
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from reslib.thin import kernels
from reslib.thin.unit import _Unit

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64"}
BATCH = 128


def launches(before: int, after: int, stride: int, pixels: int, added: bool) -> dict:
    """Kernel -> what the compiler makes of it, as a unit of these filters, stride and size launches it."""
    found = {}
    with _recorded(found):
        form = {"memory_format": torch.channels_last}
        x = torch.empty(BATCH, before, pixels, pixels, dtype=torch.bfloat16).to(**form).requires_grad_(before > 3)
        weight = torch.empty(after, before, 3, 3).to(**form).requires_grad_()
        scale, shift = (torch.empty(after).requires_grad_() for _ in range(2))
        size = -(-pixels // stride)
        other = torch.empty(BATCH, after, size, size, dtype=torch.bfloat16).to(**form).requires_grad_()
        averages = torch.empty(after), torch.empty(after), torch.zeros((), dtype=torch.int64)
        settings = stride, 0.1, 1e-5, torch.bfloat16
        out = _Unit.apply(x, weight, scale, shift, other if added else None, averages, settings)
        out.backward(torch.empty_like(out))
    return {name: _compiled(*launch) for name, launch in found.items()}


@contextlib.contextmanager
def _recorded(found):
    """Launches are kept in `found` instead of made."""
    functions = {n: f for n, f in vars(kernels).items() if isinstance(f, JITFunction) and not n.startswith("_")}

    class Launcher:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *values, **named: found.update({self.name: (functions[self.name], values, named)})

    for name in functions:
        setattr(kernels, name, Launcher(name))
    try:
        yield
    finally:
        for name, function in functions.items():
            setattr(kernels, name, function)


def _compiled(function, values, named):
    named = dict(named)
    options = {name: named.pop(name) for name in ("num_warps", "num_stages") if name in named}
    signature, constants, attributes = {}, {}, {}
    for place, name in enumerate(function.arg_names):
        value = values[place] if place < len(values) else named[name]
        if place >= len(values) or (type(value) is int and value == 1):
            signature[name], constants[place,] = "constexpr", value
            continue
        signature[name] = TYPES[value.dtype] if torch.is_tensor(value) else {int: "i32", float: "fp32"}[type(value)]
        if torch.is_tensor(value) or (type(value) is int and value % 16 == 0):
            attributes[place,] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=HOPPER, options=options)


def spilled(kernel, folder: Path) -> int:
    """Bytes per thread for which there was no register, by the tool that comes with Triton."""
    file = folder / "kernel.cubin"
    file.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    done = subprocess.run([str(tool), "-res-usage", str(file)], capture_output=True, text=True, check=True)
    return int(re.search(r"STACK:(\d+)", done.stdout + done.stderr).group(1))
