"""Images per second of the latent loader against what a training step takes.

    python -m benchmarks.loader --data data/emoji --batch_size 32 --consumed 60

`--consumed` is the images/s of the step (benchmarks.step_time); the loader should give ten times as many.
"""

import argparse
import time

from benchmarks import results
from lcm_jax.data.loader import make_loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--consumed", type=float, required=True)
    args = parser.parse_args()
    rates = {
        "memory": rate(args, memory_limit=4 * 2**30),
        "disk": rate(args, memory_limit=0),
    }
    results.save(
        "loader",
        {
            "data": args.data,
            "batch_size": args.batch_size,
            "images_per_second": rates,
            "consumed": args.consumed,
            "ratio": {name: value / args.consumed for name, value in rates.items()},
        },
    )


def rate(args: argparse.Namespace, memory_limit: int) -> float:
    """Images per second over the asked time, after a warm-up."""
    loader = make_loader(args.data, "train", args.batch_size, memory_limit=memory_limit)
    for _ in range(20):
        next(loader)
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < args.seconds:
        count += len(next(loader)["index"])
    spent = time.perf_counter() - begun
    loader.close()
    return count / spent


if __name__ == "__main__":
    main()
