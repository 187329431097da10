"""What this machine does with it, all in one run: products, methods, embedding, a large loss, the published account."""

from hyperalign.bench.loss_memory import loss_sheet
from hyperalign.bench.opened import open_bench
from hyperalign.bench.published import account
from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.bench.throughput import throughput_sheet
from hyperalign.bench.timed import method_sheet, ratio_sheet, time_methods
from hyperalign.embed.data import open_dataset
from hyperalign.machine import measure_matmul

__all__ = ["measure"]

SIZES = (512, 1024, 2048, 4096)


def measure(asked: Asked) -> list[Sheet]:
    """Measure everything; products are taken before and after, since a machine is not the same all the time.

    Returns:
        Products, methods, ratios, embedding, the loss of a large batch, the published account.
    """
    import torch

    opened = open_bench(asked)
    products = _products()
    timed = time_methods(opened, asked)
    data = open_dataset(
        asked.config.data,
        seed=asked.config.seed,
        limit=asked.config.limit,
        memory=asked.cache_dir,
        progress=asked.progress,
    )
    embedding = throughput_sheet(asked, opened.candidates.images, data.splits["train"].pictures)
    asked.say("taking the loss of a large batch")
    loss = loss_sheet(n_threads=torch.get_num_threads())
    products = {size: max(speed, products[size]) for size, speed in _products().items()}
    return [
        _product_sheet(products, torch.get_num_threads()),
        method_sheet(timed, max(products.values())),
        ratio_sheet(timed, opened, asked),
        embedding,
        loss,
        account(),
    ]


def _products() -> dict[int, float]:
    """Best FLOP/s of a float32 product by its size."""
    return {size: measure_matmul(size=size, n_repeats=3) for size in SIZES}


def _product_sheet(products: dict[int, float], n_threads: int) -> Sheet:
    rows = [{"size": size, "threads": n_threads, "flops_per_second": speed} for size, speed in products.items()]
    return Sheet(
        "the best square matrix product of float32", rows, ["before and after all the rest, the better of both"]
    )
