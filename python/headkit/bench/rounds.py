"""Rounds: all peers one after the other, between two readings of a probe."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator

import torch

from headkit.bench.clock import CLOCKS, WALL
from headkit.bench.peer import Peer
from headkit.bench.probes import Reading

MAX_DISTURBANCE = 0.05
SHORTEST_SECONDS = 5e-3

Key = tuple[str, float]


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[int]:
    """Run on so many threads, 0 = all cores; one thread is pinned to a core.

    Example:
        >>> with on_threads(1) as threads:
        ...     threads, torch.get_num_threads()
        (1, 1)
    """
    before, allowed = torch.get_num_threads(), os.sched_getaffinity(0)
    threads = count or len(allowed)
    torch.set_num_threads(threads)
    if threads == 1:
        os.sched_setaffinity(0, {max(allowed)})
    try:
        yield threads
    finally:
        os.sched_setaffinity(0, allowed)
        torch.set_num_threads(before)


@dataclasses.dataclass
class Rounds:
    """Seconds of all peers and the readings of each round.

    Attributes:
        seconds: of each peer by (name, share), one for each round.
        probes: the slower reading of each round, FLOP/s.
        shares: the smaller processor share of each round.
        repeated: rounds that do not count.
        void: too few rounds count; where none does, all are kept.
    """

    seconds: dict[Key, list[float]]
    probes: list[float] = dataclasses.field(default_factory=list)
    shares: list[float] = dataclasses.field(default_factory=list)
    repeated: int = 0
    void: bool = False

    def undisturbed(self) -> list[int]:
        """Rounds in which nothing else used the processor: these threads had it, and the probe was
        within 5 % of the best."""
        had = [i for i, share in enumerate(self.shares) if share >= 1 - MAX_DISTURBANCE]
        best = max((self.probes[i] for i in had), default=0.0)
        return [i for i in had if self.probes[i] >= (1 - MAX_DISTURBANCE) * best]

    def keep(self, rounds: list[int]) -> None:
        """Forget the others."""
        self.repeated = len(self.probes) - len(rounds)
        self.probes = [self.probes[i] for i in rounds]
        self.shares = [self.shares[i] for i in rounds]
        self.seconds = {key: [times[i] for i in rounds] for key, times in self.seconds.items()}


def _seconds(call: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def measure(
    peers: list[Peer],
    rounds: int,
    probe: Callable[[], Reading],
    progress: Callable[[int], None],
    clock: str = WALL,
) -> Rounds:
    """Time all peers in every round, each in turn the first.

    Calls shorter than 5 milliseconds are repeated until they last so long.

    Args:
        peers: with different (name, share).
        rounds: undisturbed rounds to collect; at most three times as many are tried, and as many if
            all of those are disturbed.
        probe: reads what the processor can do now.
        progress: called with the number of rounds that count.
        clock: ``wall`` or ``processor``.

    Example:
        >>> from headkit.bench.peer import Peer, Work
        >>> peer = Peer("sum", 1.0, lambda: sum(range(99)), Work(99, 8), 0.0)
        >>> probe = lambda: Reading(flops=1.0, share=1.0)
        >>> len(measure([peer], 2, probe, lambda done: None).seconds["sum", 1.0])
        2
    """
    repeats = {}
    for peer in peers:
        peer.call()
        once = _seconds(peer.call, 1, CLOCKS[clock])
        repeats[peer.name, peer.share] = max(1, math.ceil(SHORTEST_SECONDS / once))
    result = Rounds({key: [] for key in repeats})
    for attempt in range(3 * rounds):
        before = probe()
        turn = attempt % len(peers)
        for peer in peers[turn:] + peers[:turn]:
            key = (peer.name, peer.share)
            result.seconds[key].append(_seconds(peer.call, repeats[key], CLOCKS[clock]))
        # The worse of the two: a disturbance during the round shows in one of them.
        after = probe()
        result.probes.append(min(before.flops, after.flops))
        result.shares.append(min(before.share, after.share))
        counting = result.undisturbed()
        progress(len(counting))
        if len(counting) >= rounds or (attempt + 1 >= rounds and not counting):
            break
    result.void = len(counting) < rounds
    if counting:
        result.keep(counting)
    return result
