"""Judges the facts of a diagnosis that every database has: workers, leases, work that stands still, the clock, growth.

Pure. `findings_of` gives all findings of a `Diagnosis`, the store's own ones first; each check below is a function of `Work`
alone. What only one database has belongs to its store's `diagnose`.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from enum import Enum

from onward._store.diagnosis import Diagnosis, Finding, Group, Sample, Work
from onward._store.quantities import counted, size, span
from onward._store.records import FINAL, WorkerInfo
from onward._store.verdicts import CRASH_LIMIT
from onward._version import __version__

LATE_S = 60.0
"""A row that has been due for longer stands still; a shorter time may be a start or a takeover."""
CLOCK_TOLERANCE_S = 5.0
LARGE_PAYLOAD = 1_000_000
HOUR_US = 3_600_000_000


class Life(Enum):
    """How a worker is."""

    ALIVE = "alive"
    SILENT = "silent"
    """Its lease has run out, though its process holds its proof of life."""
    GONE = "gone"
    """Dead, and nobody has noticed yet."""
    DEAD = "dead"
    """Found dead; what it held has been released."""


def life(worker: WorkerInfo, work: Work) -> Life:
    """How this worker is."""
    if worker.is_dead:
        return Life.DEAD
    proof = work.proofs.get(worker.id)
    if proof is False:
        return Life.GONE
    if worker.expires_at > work.now:
        return Life.ALIVE
    return Life.SILENT if proof else Life.GONE


def living(work: Work) -> list[WorkerInfo]:
    """The workers that are alive."""
    return [worker for worker in work.workers if life(worker, work) is Life.ALIVE]


def process_count(work: Work) -> int:
    """In how many processes workers are alive, silent ones included."""
    return len({(w.host, w.pid) for w in work.workers if life(w, work) in (Life.ALIVE, Life.SILENT)})


def daily_bytes(work: Work) -> int | None:
    """By how much the database grows in a day, judged by the last 24 hours; None where it is too young to tell."""
    total = sum(group.count for group in work.groups)
    oldest = work.oldest_created_at
    if not total or oldest is None or work.size is None or work.now - oldest < HOUR_US:
        return None
    days = min(1.0, (work.now - oldest) / (24 * HOUR_US))
    return round(work.created_last_day / days * work.size / total)


def findings_of(diagnosis: Diagnosis) -> list[Finding]:
    """All findings: the software, what the store found, and the common checks."""
    found = [software(), *diagnosis.findings]
    if diagnosis.work is not None:
        for check in CHECKS:
            found.extend(check(diagnosis.work))
    return found


def software() -> Finding:
    """The versions of the library and of Python."""
    python = platform.python_version()
    text = f"onward {__version__} on {platform.python_implementation()} {python}"
    return Finding(check="software", level="ok", text=text, data={"onward": __version__, "python": python})


def workers(work: Work) -> Iterator[Finding]:
    """Which workers run."""
    alive = living(work)
    data = {"alive": [{"id": w.id, "name": w.name, "held": work.held.get(w.id, 0)} for w in alive]}
    if alive:
        names = "; ".join(
            f"{w.name} ({counted(len(w.types), 'type')} in queue {', '.join(w.queues)}; holds {work.held.get(w.id, 0)})"
            for w in alive
        )
        versions = len({w.code_version for w in alive})
        mixed = f"; they run {versions} versions of the code" if versions > 1 else ""
        yield Finding(check="workers", level="ok", text=f"{counted(len(alive), 'worker')}: {names}{mixed}", data=data)
        return
    unfinished = _count(work, lambda group: group.status not in FINAL)
    if not unfinished:
        yield Finding(check="workers", level="ok", text="no worker runs, and there is nothing to do", data=data)
        return
    due = _count_due(work)
    late_s = _late_s(work, _open_groups(work))
    since = f", {due:,} of them due for {span(late_s)}" if due else ""
    yield Finding(
        check="workers",
        level="fail" if due and late_s > LATE_S else "warn",
        text=f"no worker runs, but {counted(unfinished, 'workflow')} {_be(unfinished)} unfinished{since}",
        cure="start one: onward worker MODULE",
        data=data,
    )


def leases(work: Work) -> Iterator[Finding]:
    """Workers that died or fell silent, and what they still hold."""
    lives = {worker.id: life(worker, work) for worker in work.workers}
    takers = [worker for worker in work.workers if lives[worker.id] is Life.ALIVE]
    silent = [worker for worker in work.workers if lives[worker.id] is Life.SILENT]
    gone = [worker for worker in work.workers if lives[worker.id] is Life.GONE]
    held_by_living = {one for one, how in lives.items() if how in (Life.ALIVE, Life.SILENT)}
    orphaned = sum(count for worker_id, count in work.held.items() if worker_id not in held_by_living)
    data = {
        "silent": [worker.id for worker in silent],
        "gone": [worker.id for worker in gone],
        "dead": sum(how is Life.DEAD for how in lives.values()),
        "orphaned": orphaned,
    }
    for worker in silent:
        silence = span((work.now - worker.expires_at) / 1e6)
        yield Finding(
            check="leases",
            level="fail",
            text=f"worker {worker.name} let its lease run out {silence} ago, but its process (pid {worker.pid} on "
            f"{worker.host}) lives and holds {counted(work.held.get(worker.id, 0), 'workflow')}",
            cure="it was stopped (SIGSTOP), or something blocks its event loop: see its log, or restart it",
            data=data,
        )
    if orphaned:
        names = ", ".join(worker.name for worker in gone if worker.id in work.held) or "a worker that is gone"
        cure = (
            "start one, it takes over: onward worker MODULE" if not takers else "a running worker takes over in seconds"
        )
        yield Finding(
            check="leases",
            level="warn" if takers else "fail",
            text=f"{counted(orphaned, 'workflow')} {_be(orphaned)} held by dead workers ({names})",
            cure=cure,
            data=data,
        )
    elif not silent:
        past = [f"{data['dead']} found dead in the last 7 days"] if data["dead"] else []
        past += [f"{len(gone)} dead and not noticed yet, since no other runs"] if gone else []
        running = sum(work.held.values())
        text = (
            f"{counted(running, 'running workflow')}, each held by a living worker" if running else "nothing is running"
        )
        yield Finding(check="leases", level="ok", text="; ".join([text, *past]), data=data)


def work_done(work: Work) -> Iterator[Finding]:
    """How many workflows there are, by status."""
    counts: Counter[str] = Counter()
    for group in work.groups:
        counts[group.status] += group.count
    order = ("running", "pending", "waiting", "completed", "failed", "cancelled")
    text = ", ".join(f"{counts[status]:,} {status}" for status in order if counts[status]) or "none yet"
    finished = [group.oldest_finished_at for group in work.groups if group.oldest_finished_at is not None]
    if finished:
        text += f"; the oldest finished one ended {span((work.now - min(finished)) / 1e6)} ago"
    yield Finding(check="workflows", level="ok", text=text, data={status: counts[status] for status in order})


def unclaimable(work: Work) -> Iterator[Finding]:
    """Unfinished workflows whose type or queue no living worker has."""
    alive = living(work)
    if not alive:
        return  # `workers` says it
    is_any = False
    for group in _open_groups(work):
        if any(group.queue in w.queues and group.type in w.types for w in alive):
            continue
        is_any = True
        has_queue = any(group.queue in w.queues for w in alive)
        has_type = any(group.type in w.types for w in alive)
        late_s = _late_s(work, [group])
        due = f", {group.due_count:,} due for {span(late_s)}" if group.due_count else ""
        if not has_type:
            why, cure = (
                f"no living worker has type {group.type!r}",
                "run a worker with its module, or add also= after a rename",
            )
        elif not has_queue:
            why, cure = f"no living worker serves queue {group.queue!r}", f"onward worker MODULE --queue {group.queue}"
        else:
            why = f"no living worker serves queue {group.queue!r} and has type {group.type!r} too"
            cure = f"run a worker with its module and --queue {group.queue}"
        yield Finding(
            check="unclaimable",
            level="fail" if group.due_count and late_s > LATE_S else "warn",
            text=f"{counted(group.count, 'workflow')} of type {group.type!r} in queue {group.queue!r}{due}: {why}",
            cure=cure,
            data={"type": group.type, "queue": group.queue, "count": group.count, "due": group.due_count},
        )
    if not is_any:
        yield Finding(check="unclaimable", level="ok", text="living workers have every type and queue that is needed")


def backlog(work: Work) -> Iterator[Finding]:
    """Rows that wait for long although a worker could take them."""
    alive = living(work)
    if not alive:
        return
    served = [g for g in _open_groups(work) if any(g.queue in w.queues and g.type in w.types for w in alive)]
    due, late_s = sum(group.due_count for group in served), _late_s(work, served)
    data = {"due": due, "late_s": round(late_s, 3)}
    if late_s <= LATE_S:
        text = f"{counted(due, 'workflow')} due" if due else "nothing waits for a worker"
        yield Finding(check="backlog", level="ok", text=text, data=data)
        return
    running = sum(work.held.get(worker.id, 0) for worker in alive)
    yield Finding(
        check="backlog",
        level="warn",
        text=f"{counted(due, 'workflow')} {_be(due)} due, the first for {span(late_s)}; {counted(len(alive), 'worker')} "
        f"{'holds' if len(alive) == 1 else 'hold'} {running}",
        cure="if that does not shrink: more workers, or more --slots and --threads",
        data=data,
    )


def waits(work: Work) -> Iterator[Finding]:
    """Workflows that wait for something that cannot come."""
    if not work.unwakeable.count:
        yield Finding(check="waits", level="ok", text="whatever waits can be woken")
        return
    yield Finding(
        check="waits",
        level="fail",
        text=f"{counted(work.unwakeable.count, 'workflow')} {_be(work.unwakeable.count)} waiting for workflows that have "
        f"ended or do not exist any more: {_names(work.unwakeable)}",
        cure="were rows deleted by hand? cancel them: onward cancel ID",
        data=_as_data(work.unwakeable),
    )


def crashes(work: Work) -> Iterator[Finding]:
    """Workflows that take their workers down."""
    if work.quarantined.count:
        yield Finding(
            check="crashes",
            level="warn",
            text=f"{counted(work.quarantined.count, 'workflow')} crashed several workers and now only "
            f"{'runs' if work.quarantined.count == 1 else 'run'} alone: {_names(work.quarantined)}",
            cure=f"look for out-of-memory kills and crashing extensions; after {CRASH_LIMIT} crashes one is failed",
            data=_as_data(work.quarantined),
        )
    if work.crashed.count:
        yield Finding(
            check="crashes",
            level="warn",
            text=f"{counted(work.crashed.count, 'workflow')} failed in the last 7 days for crashing workers: "
            f"{_names(work.crashed)}",
            cure="once the cause is mended: onward retry ID",
            data=_as_data(work.crashed),
        )
    if not (work.quarantined.count or work.crashed.count):
        yield Finding(check="crashes", level="ok", text="no workflow crashes its workers")


def divergences(work: Work) -> Iterator[Finding]:
    """Workflows that today's code cannot replay."""
    if not work.diverged.count:
        yield Finding(check="divergences", level="ok", text="the code fits every history that was tried")
        return
    yield Finding(
        check="divergences",
        level="fail",
        text=f"{counted(work.diverged.count, 'workflow')} cannot go on, since the code does not fit the history "
        f"(NonDeterminismError): {_names(work.diverged)}",
        cure="onward show ID tells where; run the earlier code again, or guard the change with patched()",
        data=_as_data(work.diverged),
    )


def clock(work: Work) -> Iterator[Finding]:
    """Whether the database holds times that have not come yet."""
    times = [group.updated_at for group in work.groups if group.updated_at is not None]
    newest = max([*times, *(worker.started_at for worker in work.workers)], default=work.now)
    ahead_s = (newest - work.now) / 1e6
    if ahead_s <= CLOCK_TOLERANCE_S:
        yield Finding(check="clock", level="ok", text="no time in the database lies in the future")
        return
    yield Finding(
        check="clock",
        level="fail",
        text=f"the newest time in the database is {span(ahead_s)} ahead of its clock",
        cure="this clock is slow, or was fast when that was written: set it by NTP; timers wait until it has caught up",
        data={"ahead_s": round(ahead_s, 3)},
    )


def growth(work: Work) -> Iterator[Finding]:
    """How fast the database grows."""
    per_day = daily_bytes(work)
    text = f"{counted(work.created_last_day, 'workflow')} in the last 24 hours"
    if per_day:
        text += f", about {size(per_day)} a day"
    yield Finding(
        check="growth", level="ok", text=text, data={"created_last_day": work.created_last_day, "bytes_a_day": per_day}
    )


def payloads(work: Work) -> Iterator[Finding]:
    """The largest values."""
    if work.payloads is None:
        yield Finding(check="payloads", level="ok", text="not looked at, it takes long here: --full does")
        return
    if not work.payloads:
        return
    shown = ", ".join(f"{size(one.size)} ({one.what} of {one.workflow_id})" for one in work.payloads[:3])
    is_large = work.payloads[0].size >= LARGE_PAYLOAD
    yield Finding(
        check="payloads",
        level="warn" if is_large else "ok",
        text=f"the largest: {shown}",
        cure="every replay reads them: keep large values elsewhere, and pass their keys" if is_large else "",
        data={
            "largest": [{"workflow_id": one.workflow_id, "what": one.what, "bytes": one.size} for one in work.payloads]
        },
    )


CHECKS: tuple[Callable[[Work], Iterator[Finding]], ...] = (
    workers,
    leases,
    work_done,
    unclaimable,
    backlog,
    waits,
    crashes,
    divergences,
    clock,
    growth,
    payloads,
)


def _open_groups(work: Work) -> list[Group]:
    """What workers have yet to claim, one group for each queue and type."""
    merged: dict[tuple[str, str], Group] = {}
    for group in work.groups:
        if group.status in ("pending", "waiting"):
            key = (group.queue, group.type)
            other = merged.get(key, Group("pending", *key, 0))
            times = [at for at in (group.due_since, other.due_since) if at is not None]
            count, due = group.count + other.count, group.due_count + other.due_count
            merged[key] = Group("pending", *key, count, due, min(times, default=None))
    return list(merged.values())


def _late_s(work: Work, groups: Sequence[Group]) -> float:
    """For how long the first of these has been due."""
    times = [group.due_since for group in groups if group.due_since is not None]
    return max(0.0, (work.now - min(times)) / 1e6) if times else 0.0


def _count(work: Work, wanted: Callable[[Group], bool]) -> int:
    return sum(group.count for group in work.groups if wanted(group))


def _count_due(work: Work) -> int:
    return sum(group.due_count for group in work.groups)


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def _names(sample: Sample) -> str:
    more = sample.count - len(sample.examples)
    return ", ".join(sample.examples) + (f" and {more:,} more" if more > 0 else "")


def _as_data(sample: Sample) -> dict[str, object]:
    return {"count": sample.count, "examples": list(sample.examples)}
