"""`python -m benchmarks`: the measurements, whole or in parts, and the page that shows them; `make bench` runs it.

Results are kept as JSON (`--results`) after every single run, so that nothing is lost when it is stopped; `--append` adds to
them. `--write` writes docs/benchmarks.md from all that is there then, `--measured` without measuring anything before.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import claims, footprint, idle, page, scaling, starts, steady, targets
from benchmarks.bench import KINDS, Bench
from benchmarks.processes import ROOT
from benchmarks.results import Results
from benchmarks.server import postgres
from benchmarks.subjects import CASES, PEER_FOLDER, PEER_PYTHON, Peers

PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / ".cache" / "bench" / "results.json"
SECTIONS: dict[str, Callable[[Bench], None]] = {
    "scaling": scaling.run,
    "starts": starts.run,
    "footprint": footprint.run,
    "idle": idle.run,
    "claims": claims.run,
    "steady": steady.run,
}
USUAL = ("targets", "starts", "idle", "footprint", "claims", "scaling")
ROUNDS = {"scaling": 2, "starts": 3}
"""At most, of sections that no ratio is judged by."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    known = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    known.add_argument("--only", help=f"sections, with commas: targets,{','.join(SECTIONS)} (default: all but steady)")
    known.add_argument("--cases", help=f"of the section targets, with commas: {','.join(CASES)}")
    known.add_argument("--kinds", default=",".join(KINDS), help="databases: pg,sqlite")
    known.add_argument("--rounds", type=int, default=5, help="of each case, alternating (default 5)")
    known.add_argument("--scale", type=float, default=1.0, help="size of everything; 1 is the full size")
    known.add_argument("--minutes", type=float, default=10.0, help="of the steady run (default 10)")
    known.add_argument("--huge", action="store_true", help="also beside 10,000,000 finished rows")
    known.add_argument("--pg", help="URL of a PostgreSQL server, without a database (default: one of its own)")
    known.add_argument("--dir", type=Path, help="a folder on the disk to be measured (default: a temporary one)")
    known.add_argument("--peers", type=Path, default=PEER_FOLDER, help="folder of the peers' scripts")
    known.add_argument("--peers-python", type=Path, default=PEER_PYTHON, help="a Python with their packages")
    known.add_argument("--make-peers", action="store_true", help="make that Python, once, with pip")
    known.add_argument("--no-peers", action="store_true", help="measure Onward and the bare loops only")
    known.add_argument("--results", type=Path, default=RESULTS, help="where figures are kept")
    known.add_argument("--append", action="store_true", help="keep the figures that are there")
    known.add_argument("--write", action="store_true", help="write the page")
    known.add_argument(
        "--measured", action="store_true", help="measure nothing; with --write the page from what is there"
    )
    known.add_argument("--page", type=Path, default=PAGE, help="where to")
    return known


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, measure, write."""
    known = parser()
    given = known.parse_args(argv)
    names = [] if given.measured else (given.only.split(",") if given.only else list(USUAL))
    cases = tuple(re.split(r",(?!\d)", given.cases)) if given.cases else CASES  # "fanout-10,000" is one
    for name in names:
        if name != "targets" and name not in SECTIONS:
            known.error(f"there is no section {name!r}")
    for case in cases:
        if case not in CASES:
            known.error(f"there is no case {case!r}")
    results = Results(given.results, keeps=given.append or given.measured)
    if names:
        _measure(given, names, cases, results)
        print("\n" + "\n".join(targets.lines(results)))
    if given.write:
        page.write(results, given.page)
        print(f"written: {given.page}")


def _measure(given: argparse.Namespace, names: list[str], cases: tuple[str, ...], results: Results) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers and workers are ended, too
    peers = Peers(
        given.peers.absolute(), Path(os.path.abspath(given.peers_python))
    )  # not resolved: it is a link of its venv
    if given.make_peers:
        peers.make()
    with contextlib.ExitStack() as stack:
        base = None if given.dir is None else given.dir.absolute()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=base, prefix="onward-bench-")))
        folder.chmod(0o755)  # the server runs as another user
        server = stack.enter_context(postgres(given.pg, folder))
        bench = Bench(
            results,
            server,
            folder,
            peers,
            scale=given.scale,
            rounds=given.rounds,
            minutes=given.minutes,
            is_huge=given.huge,
            kinds=tuple(given.kinds.split(",")),
            tell=lambda line: print(time.strftime("%H:%M:%S"), line, flush=True),
        )
        found = page.describe(server, bench)
        results.setup = {**found, "peers": found["peers"] or results.setup.get("peers", {})}
        results.save()
        for name in names:
            if name == "targets":
                targets.run(bench, cases=cases, with_peers=not given.no_peers)
            else:
                bench.rounds = min(given.rounds, ROUNDS.get(name, given.rounds))
                SECTIONS[name](bench)


if __name__ == "__main__":
    main()
