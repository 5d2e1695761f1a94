"""Scoring by nearest neighbours against the bare network, and the share of exact neighbours.

    python benchmarks/search.py --fit train_normal.tar --score valid_normal.tar valid_tumour.tar
        --weights squeezenet1_1.safetensors [--detector knn] [--input 64 96] [--vectors 20000]
        [--probes 1 4 16] [--peers]

The tars hold 96 px tiles, such as PatchCamelyon's. A bank of so many vectors is drawn from random
windows of the tiles of `--fit`. In every round, the network alone, scoring with exact neighbours,
scoring with so many probes, comparing with all vectors by one matrix product, and faiss if it is
installed (`--peers`) see the same tiles, one after the other. The rates are of processor time on
one thread; the ratios are medians over rounds, with the range. Memory is the peak of the process.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from features import processor
from pcam import PCAM_MPP, centre, read_tar
from torch import Tensor

from wsiad.core.config import build
from wsiad.core.geometry import TilePx
from wsiad.detectors import registry
from wsiad.detectors._bank import Bank
from wsiad.detectors._vectors import nearest
from wsiad.learning.detector import Budget, FitContext, HealthyTiles, InputSpec
from wsiad.store.dataset import ArrayTiles


def spent(work: Callable[[], object]) -> float:
    """Return the seconds of the processor that a call took."""
    start = time.process_time()
    work()
    return time.process_time() - start


def peak() -> int:
    """Return the largest resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6


def detectors_of(args: argparse.Namespace, size: int, count: int, folder: Path) -> dict[str, Any]:
    """Return detectors of one bank by the name of their search, exact first."""
    cls = registry.load(args.detector)
    spec = InputSpec(TilePx(size), PCAM_MPP)
    given = {"fit_vectors": count, "fit_tiles": 10**6, **dict(args.set)}
    tiles = read_tar(args.fit, None)
    while len(tiles) * 64 < count:  # other windows of the same tiles, turned
        turned = np.ascontiguousarray(np.rot90(tiles, axes=(1, 2)))
        tiles = np.concatenate([tiles, turned])
    source = HealthyTiles(ArrayTiles(tiles), ArrayTiles(tiles[:1]))
    context = FitContext(
        seed=0,
        device=torch.device("cpu"),
        folder=folder,
        budget=Budget(None, None),
        weights=args.weights,
        quiet=True,
    )
    found: dict[str, Any] = {}
    exact = cls(build(cls.Options, given), spec)
    start = time.process_time()
    exact.fit(source, context)
    bank = exact._fitted["bank"]
    print(
        f"{args.detector}, {size} px, {len(bank)} vectors of {bank.shape[1]}: fitted in "
        f"{time.process_time() - start:.0f} s, peak {peak()} MB"
    )
    found["exact"] = exact
    for probes in args.probes:
        options = build(cls.Options, {**given, "probes": probes})
        one = cls(options, spec)
        one._backbone, one._device, one._about = exact._backbone, exact._device, exact._about
        one._fitted = {**exact._fitted, **one.kept_cells(bank)}
        found[f"probes {probes}"] = one
    return found


def peers(bank: Tensor, probes: list[int]) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the searches of faiss by name."""
    import faiss

    faiss.omp_set_num_threads(1)
    rows = bank.numpy()

    def by(index: Any) -> Callable[[Tensor], Tensor]:
        return lambda vectors: torch.from_numpy(index.search(vectors.numpy(), 1)[1][:, 0])

    flat = faiss.IndexFlatL2(rows.shape[1])
    flat.add(rows)
    found = {f"faiss {faiss.__version__} Flat": by(flat)}
    cells = max(1, round(len(rows) ** 0.5))
    for count in probes:
        index = faiss.index_factory(rows.shape[1], f"IVF{cells},Flat")
        index.train(rows)
        index.add(rows)
        index.nprobe = count
        found[f"faiss IVF{cells}, {count} probes"] = by(index)
    return found


def measure(args: argparse.Namespace, size: int, count: int) -> None:
    """Print a row for each search in a bank."""
    detectors = detectors_of(args, size, count, args.folder)
    exact = detectors["exact"]
    bank = exact._fitted["bank"]
    tiles = np.concatenate([centre(read_tar(path, args.tiles), size) for path in args.score])
    tiles = tiles[np.random.default_rng(0).permutation(len(tiles))]
    parts = np.array_split(tiles, -(-len(tiles) // exact.at_once))
    images = [torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255 for part in parts]
    vectors = torch.cat([exact._features(torch.from_numpy(part)) for part in parts])
    start = time.process_time()
    right = Bank(bank).nearest(vectors, 1)[1][:, 0]
    first = time.process_time() - start

    def network() -> None:
        with torch.inference_mode():
            for part in images:
                exact._backbone._computed(exact._backbone.normalised(part))

    def scoring(one: Any) -> Callable[[], None]:
        def work() -> None:
            for part in parts:
                one.score_places(part)

        return work

    places = [vectors[start : start + 8192] for start in range(0, len(vectors), 8192)]
    works: dict[str, Callable[[], object]] = {"network": network}
    works |= {name: scoring(one) for name, one in detectors.items()}
    others: dict[str, Callable[[Tensor], Tensor]] = {}
    if args.product:
        others["one matrix product"] = lambda part: nearest(part, bank, 1)[1][:, 0]
    if args.peers:
        others |= peers(bank, args.probes)
    for name, search in others.items():
        works[name] = lambda search=search: [search(part) for part in places]
    for work in works.values():
        work()
    times = [{name: spent(work) for name, work in works.items()} for _ in range(args.rounds)]
    alone = statistics.median(one["network"] for one in times)
    print(f"network {alone / len(tiles) * 1e3:.2f} ms a tile; first search {first:.2f} s")
    for name in list(works)[1:]:
        spans = [one[name] + (one["network"] if name in others else 0) for one in times]
        shares = sorted(one["network"] / span for one, span in zip(times, spans, strict=True))
        line = f"{name}: scoring at {100 * statistics.median(shares):.0f} % of the network alone "
        line += f"({100 * shares[0]:.0f}–{100 * shares[-1]:.0f} %)"
        if name in others:
            found = torch.cat([others[name](part) for part in places])
        else:
            one = detectors[name]
            found = one.nearest_of_bank(vectors, one._fitted, 1)[1][:, 0]
        away, least = ((vectors - bank[who]).norm(dim=1) for who in (found, right))
        line += f"; exact {100 * (found == right).float().mean():.2f} %"
        line += f", distances {100 * float((away.sum() / least.sum()) - 1):.2f} % larger"
        print(f"{line}; peak {peak()} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fit", type=Path, required=True)
    parser.add_argument("--score", type=Path, nargs="+", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--detector", choices=("knn", "patchcore"), default="knn")
    parser.add_argument("--input", type=int, nargs="+", default=[96], help="window, px")
    parser.add_argument("--vectors", type=int, nargs="+", default=[20_000], help="of the bank")
    parser.add_argument("--probes", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--tiles", type=int, default=128, help="of each tar of --score")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--product", action="store_true", help="compare with one matrix product")
    parser.add_argument("--peers", action="store_true", help="faiss-cpu")
    parser.add_argument("--set", type=pair, action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--folder", type=Path, default=Path())
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}, one thread")
    for size in args.input:
        for count in args.vectors:
            measure(args, size, count)


def pair(text: str) -> tuple[str, Any]:
    import yaml

    name, _, value = text.partition("=")
    return name, yaml.safe_load(value)


if __name__ == "__main__":
    main()
