"""Which implementation of the segment sum is fastest, forward and backward, at typical sizes.

    python benchmarks/segment.py

Compares `index_add` (what `nn/segment.py` uses), `scatter_reduce`, `segment_reduce` on sorted input, a
product with a one-hot matrix, and `torch_scatter` where it is installed. Times are medians in
milliseconds; below them stands the machine's own matrix-product rate, measured in the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

Operation = Callable[[Tensor, Tensor, int], Tensor]


def by_index_add(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """One atomic (on GPUs) or sequential (on CPUs) addition per atom."""
    return values.new_zeros(num_segments, values.shape[1]).index_add(0, index, values)


def by_scatter_reduce(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """The general scatter with reduction `sum`."""
    zeros = values.new_zeros(num_segments, values.shape[1])
    return zeros.scatter_reduce(0, index.unsqueeze(-1).expand_as(values), values, reduce="sum")


def by_segment_reduce(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Reduction over contiguous runs: the index has to be sorted."""
    lengths = torch.bincount(index, minlength=num_segments)
    return torch.segment_reduce(values, "sum", lengths=lengths, axis=0)


def by_one_hot_product(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """A dense product: wasteful in arithmetic, but in the fastest kernel there is."""
    return torch.nn.functional.one_hot(index, num_segments).to(values.dtype).T @ values


def by_torch_scatter(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """The optional accelerator."""
    import torch_scatter

    return torch_scatter.scatter_add(values, index, dim=0, dim_size=num_segments)


def median_milliseconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median wall time of a call after three calls to warm up."""
    times = []
    for repeat in range(repeats + 3):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if repeat >= 3:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def measure(
    operation: Operation, values: Tensor, index: Tensor, num_segments: int, repeats: int
) -> tuple[float, float]:
    """Milliseconds of a forward pass alone, and of forward and backward together."""

    def forward_and_backward() -> None:
        values.grad = None
        operation(values, index, num_segments).square().sum().backward()

    with torch.no_grad():
        forward = median_milliseconds(lambda: operation(values, index, num_segments), values.device, repeats)
    return forward, median_milliseconds(forward_and_backward, values.device, repeats)


def matrix_product_rate(device: torch.device, repeats: int) -> float:
    """GFLOP/s of a 2560 x 512 x 2048 product in fp32."""
    left, right = torch.randn(2560, 512, device=device), torch.randn(512, 2048, device=device)
    milliseconds = median_milliseconds(lambda: left @ right, device, repeats)
    return 2 * 2560 * 512 * 2048 / milliseconds / 1e6


def main() -> None:
    """Print one line per size and operation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    operations: dict[str, Operation] = {
        "index_add": by_index_add,
        "scatter_reduce": by_scatter_reduce,
        "segment_reduce": by_segment_reduce,
        "one-hot product": by_one_hot_product,
    }
    if importlib.util.find_spec("torch_scatter") is not None:
        operations["torch_scatter"] = by_torch_scatter
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}; milliseconds")
    print(f"{'atoms x channels -> crystals':32}{'operation':18}{'forward':>10}{'with backward':>16}")
    for num_atoms, channels, num_crystals in [(3000, 512, 256), (24000, 512, 2048), (60000, 64, 256)]:
        index = torch.randint(num_crystals, (num_atoms,), device=device).sort().values
        values = torch.randn(num_atoms, channels, device=device, requires_grad=True)
        size = f"{num_atoms} x {channels} -> {num_crystals}"
        for name, operation in operations.items():
            one_way, two_ways = measure(operation, values, index, num_crystals, arguments.repeats)
            print(f"{size:32}{name:18}{one_way:10.3f}{two_ways:16.3f}")
    rate = matrix_product_rate(device, arguments.repeats)
    print(f"matrix product 2560 x 512 x 2048, fp32: {rate:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
