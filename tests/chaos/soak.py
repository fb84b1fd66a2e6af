"""`make soak`: very many jobs through one process, over lost connections and brokers; its memory must not grow.

The device is never killed. A line every few seconds; at the end the slope of its resident memory over the jobs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import faults
import psutil
from run import open_log
from world import HEADER, World

MOST_SLOPE = 1.0
"""MiB per 10,000 jobs."""
FAULT_EVERY = 1000
"""Jobs between two faults."""
SETTLED = 0.2
"""The share of the jobs at the beginning that does not count: caches fill."""


def memory(process: psutil.Process) -> float:
    """MiB resident, with what the process has started."""
    return float(sum(one.memory_info().rss for one in (process, *process.children())) / 2**20)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="repeat the run that printed it")
    parser.add_argument("--jobs", type=int, default=100_000)
    arguments = parser.parse_args()
    with open_log("soak", arguments.seed) as (seed, log):
        world = World("soak", seed, log, window=100)
        world.launch()
        assert world.device.life
        process = psutil.Process(world.device.life.pid)
        world.sender.take(True)
        samples: list[tuple[int, float]] = []
        began, told = time.monotonic(), 0.0
        while world.sender.finished < arguments.jobs:
            world.progress(100)
            finished, resident = world.sender.finished, memory(process)
            samples.append((finished, resident))
            if finished // FAULT_EVERY > samples[-2][0] // FAULT_EVERY if len(samples) > 1 else False:
                world.draw.choice((faults.lose, faults.delay, faults.halve, faults.kill_broker))(world)
            if time.monotonic() - told > 10.0:
                told = time.monotonic()
                print(f"  {finished} jobs, {told - began:.0f} s, {resident:.1f} MiB", flush=True)
        seconds = time.monotonic() - began
        outcome = world.conclude()
    counted = [sample for sample in samples if sample[0] >= SETTLED * arguments.jobs]
    slope = statistics.linear_regression(*zip(*counted, strict=True)).slope * 10_000
    print(f"{HEADER}\n{outcome.line()}")
    print(f"{outcome.jobs / seconds:.0f} jobs/s; resident memory {counted[0][1]:.1f} to {counted[-1][1]:.1f} MiB")
    print(f"slope {slope:+.2f} MiB per 10,000 jobs (at most {MOST_SLOPE:g}), of {len(counted)} samples")
    return 0 if outcome.verdict.green and slope <= MOST_SLOPE else 1


if __name__ == "__main__":
    sys.exit(main())
