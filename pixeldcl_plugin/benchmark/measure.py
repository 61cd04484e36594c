"""Time upsamplers against each other: layers and whole U-Nets, every variant in turn in one run.

Absolute times drift with the machine; what counts is the ratio of two medians of one run. So the variants
of a case are measured in rounds, one after the other within a round, with ``torch.utils.benchmark``.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.benchmark import timer as default_timer
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class Result:
    """One variant of one case. Times in milliseconds, memory in MiB, MACs in millions."""

    case: str
    variant: str
    direction: str
    dtype: str
    memory_format: str
    mode: str
    parameters: int
    mmacs: float
    peak_mib: float
    median_ms: float = float("nan")
    iqr_ms: float = float("nan")
    ratio: float = float("nan")
    gflops: float = float("nan")
    times: list[float] = field(default_factory=list, repr=False)

    def row(self) -> dict[str, Any]:
        """Return the result as a row of the CSV."""
        row = asdict(self)
        del row["times"]
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}


@dataclass(frozen=True)
class Setting:
    """How a case is run."""

    backward: bool
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    compiled: bool = False
    device: str = "cpu"


def measure(
    build: Callable[[dict[str, Any], tuple[int, ...]], tuple[nn.Module, Tensor]],
    shape: tuple[int, ...],
    variants: dict[str, dict[str, Any]],
    setting: Setting,
    *,
    threads: int,
    rounds: int,
    min_seconds: float = 0.05,
    processor_time: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Result]:
    """Measure the variants of one case in interleaved rounds.

    Args:
        build: What builds a case, see :data:`~.cases.KINDS`.
        shape: Shape of the case, as that function takes it.
        variants: ``upsample_cfg`` by name; ratios refer to the first.
        setting: Direction, dtype, memory format, eager or compiled, device.
        threads: Threads of torch's intra-op pool.
        rounds: Measurements of each variant.
        min_seconds: A measurement repeats a fast step until it has taken about this long.
        processor_time: Count the time of the processor, not that of the clock: of one thread, on a machine
            with other work.
        progress: Called with the variant's name after each measurement.

    Returns:
        One result a variant, in the order of ``variants``.
    """
    clock = time.process_time if processor_time else default_timer
    steps, results, numbers = [], [], []
    for name, cfg in variants.items():
        torch.manual_seed(0)
        module, x = build(cfg, shape)
        step = _make_step(module, x, setting)
        timer = Timer("step()", globals={"step": step}, num_threads=threads, timer=clock)
        steps.append(timer)
        timer.timeit(1)  # warms up: allocator, kernel choice, compilation
        numbers.append(max(1, int(min_seconds / max(timer.timeit(1).mean, 1e-6))))
        results.append(
            Result(
                case="x".join(map(str, shape)),
                variant=name,
                direction="forward+backward" if setting.backward else "forward",
                dtype=str(setting.dtype).removeprefix("torch."),
                memory_format="channels_last" if setting.channels_last else "contiguous",
                mode="compiled" if setting.compiled else "eager",
                parameters=sum(p.numel() for p in module.parameters()),
                mmacs=_mmacs(module, x),
                peak_mib=_peak_memory(step, setting.device),
            )
        )
        progress(name)
    for _ in range(rounds):
        for timer, result, number in zip(steps, results, numbers, strict=True):
            result.times.append(1e3 * timer.timeit(number).mean)
            progress(result.variant)
    for result in results:
        low, result.median_ms, high = np.percentile(result.times, (25, 50, 75)).tolist()
        result.iqr_ms = high - low
        passes = 3 if setting.backward else 1  # a backward pass is two more products of the same size
        result.gflops = 2 * passes * result.mmacs / result.median_ms
        result.ratio = result.median_ms / results[0].median_ms
    return results


def _make_step(module: nn.Module, x: Tensor, setting: Setting) -> Callable[[], None]:
    channels_last = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
    layout = channels_last if setting.channels_last else torch.contiguous_format
    module = module.to(setting.device).to(memory_format=layout).train(setting.backward)
    x = x.to(setting.device).to(memory_format=layout)
    run: Callable[[Tensor], Tensor] = torch.compile(module) if setting.compiled else module
    amp = setting.dtype != torch.float32

    def context() -> Any:
        return torch.autocast(x.device.type, dtype=setting.dtype) if amp else nullcontext()

    if not setting.backward:

        def forward() -> None:
            with torch.no_grad(), context():
                run(x)

        return forward

    parameters = [x.requires_grad_(), *(p for p in module.parameters() if p.requires_grad)]
    with torch.no_grad(), context():
        grad = torch.randn_like(module(x))

    def forward_backward() -> None:
        with context():
            out = run(x)
        torch.autograd.grad(out, parameters, grad, allow_unused=True)  # of the image, if that is frozen

    return forward_backward


def _mmacs(module: nn.Module, x: Tensor) -> float:
    training = module.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(x.detach())
    module.train(training)
    return counter.get_total_flops() / 2e6


def _peak_memory(step: Callable[[], None], device: str) -> float:
    """Return by how much one step raises the memory in use at its peak, in MiB; NaN where unknown."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if sys.platform != "linux":
        return float("nan")
    ctypes.CDLL(None).malloc_trim(0)  # hand back what earlier variants left in the heap
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak of the resident set
    before = _status_kib("VmRSS")
    step()
    return (_status_kib("VmHWM") - before) / 2**10


def _status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def sgemm_gflops(threads: int, size: int = 2048, device: str = "cpu") -> float:
    """Measure the rate of a square float32 matrix product, in GFLOP/s."""
    a = torch.randn(size, size, device=device)
    timer = Timer("a @ a", globals={"a": a}, num_threads=threads)
    return 2 * size**3 / timer.blocked_autorange(min_run_time=1.0).median / 1e9


def hardware(device: str = "cpu") -> str:
    """Name the processor, for file names and tables."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def settings(
    directions: Iterable[bool],
    dtypes: Iterable[torch.dtype],
    layouts: Iterable[bool],
    modes: Iterable[bool],
    device: str,
) -> Iterator[Setting]:
    """Return every combination of the axes."""
    for backward, dtype, layout, mode in itertools.product(directions, dtypes, layouts, modes):
        yield Setting(backward, dtype, layout, mode, device)
