"""`onward demo`: four systems, each killed half-way, on fresh SQLite files or PostgreSQL schemas, and what became of their work.

The parts are in `_demo/`: `jobs.py` names the four and plays those that are scripts of `examples/`. The pipeline's are
`pipeline.py`, which is what a user would write, `place.py` and `postgres.py`, its databases, `stage.py`, which runs and kills,
and `proof.py`, which reads the database.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import click

from onward._store.opening import open_store
from onward._store.urls import ENVIRONMENT_VARIABLE
from onward.cli._demo.jobs import JOBS, PIPELINE, play_script
from onward.cli._demo.place import Place, SqliteFile
from onward.cli._demo.proof import Report, prove
from onward.cli._demo.sources import source_files
from onward.cli._demo.stage import WORKFLOW_ID, DemoFailed, Plan, Played, play
from onward.cli.database import unusable
from onward.cli.settings import Failure, Settings, common_options, pass_settings
from onward.cli.words import listed

FEWEST = 12
CURE = 'pip install "onward[demo]"'
_POSTGRES = ("postgresql://", "postgres://")


@click.command(short_help="Kill four systems half-way; prove nothing is lost.")
@click.argument("names", nargs=-1, type=click.Choice(list(JOBS)), metavar=f"[{'|'.join(JOBS)}]...")
@click.option(
    "--items",
    type=click.IntRange(FEWEST, 5000),
    default=600,
    show_default=True,
    help="How many documents for the pipeline.",
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the files go; default a new temporary folder.",
)
@click.option(
    "--keep/--no-keep",
    default=None,
    help="Whether what was made stays for you to look at; by default files stay, and schemas of PostgreSQL go.",
)
@common_options
@pass_settings
def demo(settings: Settings, names: tuple[str, ...], items: int, folder: Path | None, keep: bool | None) -> None:
    """Run four systems, kill each half-way with SIGKILL, and show that nothing was lost or done twice.

    \b
    pipeline  classifies 600 documents, drops duplicates, loads the rest into a table
    welcome   sends a mail, sleeps for three days (seconds here), sends another
    webhook   is called three times with one Stripe event, and fulfils it once
    ai        asks a language model three times, and shows the answers on a page

    They play one after another, or those that are named: on new SQLite files in about half a minute, or each in a new
    schema of the PostgreSQL database that --url or ONWARD_DATABASE_URL names, in less than one. All but the pipeline
    need the packages of onward[demo]. The exit code is 1 if a claim of a report fails.
    """
    chosen = _chosen(names)
    available = _documents(items) if PIPELINE in chosen else 0
    url = _url(settings.url, chosen)
    own_folder = folder is None
    folder = (Path(tempfile.mkdtemp(prefix="onward-demo-")) if folder is None else _made(folder)).resolve()
    try:
        place = _place(url, folder)
        keep = place.kind == "file" if keep is None else keep
        for name in chosen:
            click.secho(f"{'' if name == chosen[0] else chr(10)}{name}: {JOBS[name].title}", bold=True)
            if name == PIPELINE:
                _play_pipeline(Plan(folder, place, available), keep=keep)
            else:
                _play_script(name, (url or "") if place.kind == "schema" else "", folder, keep=keep)
    except Failure:
        if own_folder and not any(folder.iterdir()):
            folder.rmdir()
        raise
    except KeyboardInterrupt:
        if own_folder and not keep:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if len(chosen) > 1:
        click.echo(f"\nEach was killed half-way, and nothing was lost or done twice: {listed(chosen)}.")
    if own_folder and keep:
        click.echo(f"\nWhen you are done: rm -r {shlex.quote(str(folder))}")
    elif own_folder:
        folder.rmdir()


def _chosen(names: tuple[str, ...]) -> list[str]:
    """In the order in which they play; without names all that can."""
    chosen = [name for name in JOBS if name in names or not names]
    lacking = {name: JOBS[name].lacks() for name in chosen if JOBS[name].lacks()}
    if names and lacking:
        name, packages = next(iter(lacking.items()))
        raise Failure(f"{name} needs {listed(packages)}: {CURE}", 2)
    if lacking:
        click.echo(f"left out, for want of packages: {listed(list(lacking))} ({CURE} for all)", err=True)
    return [name for name in chosen if name not in lacking]


def _documents(items: int) -> int:
    available = len(source_files(items))
    if available < FEWEST:
        raise Failure("this Python has no source files of its standard library to work on", 2)
    return available


def _url(given: str | None, chosen: list[str]) -> str | None:
    """The URL that is meant: a file of the user's own in ONWARD_DATABASE_URL is none of the demo's business."""
    fallback = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if given is None:
        return fallback if fallback.lower().startswith(_POSTGRES) else None
    if not given.lower().startswith(("sqlite://", *_POSTGRES)):
        raise Failure(
            "the demo runs on SQLite and PostgreSQL: leave --url out, name a file that does not exist yet "
            "(sqlite:///demo.db), or a PostgreSQL database, where it makes schemas of its own",
            2,
        )
    if PIPELINE not in chosen and given.lower().startswith("sqlite://"):
        raise Failure(f"{listed(chosen)}: makes an SQLite file of its own; name the folder for it (--dir)", 2)
    return given


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"the folder {folder} cannot be made: {error}", 2) from error
    return folder


def _place(url: str | None, folder: Path) -> Place:
    """The pipeline's file or schema, which does not exist yet: the proof wants it so."""
    if url is not None and url.lower().startswith(_POSTGRES):
        with unusable():
            open_store(url)  # says what is wrong with the URL, and whether the driver is missing
            from onward.cli._demo.postgres import check_server, fresh_schema

            check_server(url)
        _check_fresh(folder)
        return fresh_schema(url)
    path = folder / "demo.db" if url is None else Path(open_store(url).url.removeprefix("sqlite:///"))
    _check_fresh(folder, path)
    return SqliteFile(path)


def _check_fresh(folder: Path, *files: Path) -> None:
    for path, taken in [*((path, path) for path in files), (folder / "bodies.log", folder)]:
        if path.exists():
            raise Failure(f"the demo wants a fresh file, but {taken} holds an earlier run; name another", 2)


def _play_pipeline(plan: Plan, *, keep: bool) -> None:
    click.echo(f"database: {plan.place.shown}", err=True)
    try:
        with unusable():
            played = play(plan)
            report = prove(plan, played)
    except DemoFailed as error:
        click.echo(f"{error}\n({_kept(plan)})", err=True)
        raise click.exceptions.Exit(1) from error
    except BaseException:
        if not keep:
            with contextlib.suppress(Exception):  # it may be the server that is away
                _remove(plan)
        raise
    _show(plan, played, report)
    if not report.holds:
        click.echo(f"A claim does not hold: please report this ({_kept(plan)}).", err=True)
        raise click.exceptions.Exit(1)
    if keep:
        _show_where(plan)
    else:
        _remove(plan)


def _play_script(name: str, url: str, folder: Path, *, keep: bool) -> None:
    before = set(folder.iterdir())
    code = None
    try:
        code = play_script(JOBS[name], url=url, folder=folder, keep=keep)
    finally:
        if not keep and code in (0, None):  # None: interrupted
            for path in set(folder.iterdir()) - before:
                shutil.rmtree(path, ignore_errors=True)
    if code != 0:
        click.echo(f"{name} ended with exit code {code}: please report this (files are kept in {folder})", err=True)
        raise click.exceptions.Exit(1)
    if keep:
        click.echo(f"  {JOBS[name].source}   (its source)")


def _show(plan: Plan, played: Played, report: Report) -> None:
    python = sys.version.split()[0]
    kinds = ", ".join(f"{kind} {count}" for kind, count in report.kinds.items())
    click.echo(f"\nDone in {played.took_s:.1f} s; {played.recovery_s:.1f} s from the kill until the work went on.")
    click.echo(f"  collected   {plan.items} source files of Python {python}'s standard library")
    click.echo(f"  dropped     {len(report.duplicates)} duplicates")
    click.echo(f"  loaded      {report.loaded} documents ({kinds})\n")
    click.echo(f"The proof, from the database {plan.place.kind}:")
    for check in report.checks:
        mark = click.style("  ok   ", fg="green") if check.holds else click.style(" FAIL  ", fg="red", bold=True)
        click.echo(f"{mark}{check.claim}\n         {check.numbers}")


def _show_where(plan: Plan) -> None:
    click.echo("\nLook at it:")
    for command in plan.place.commands(WORKFLOW_ID):
        click.echo(f"  {command}")
    click.echo(f"  {JOBS[PIPELINE].source}   (its source)")
    farewell = plan.place.farewell()
    if farewell is not None:
        click.echo(f"  {farewell}   (when you are done)")


def _kept(plan: Plan) -> str:
    schema = f", and {plan.place.shown}" if plan.place.kind == "schema" else ""
    return f"the files are kept in {plan.folder}{schema}"


def _remove(plan: Plan) -> None:
    """Remove what the pipeline made, and nothing else."""
    try:
        plan.place.remove()
    finally:
        for pattern in ("bodies.log", "classifier-quota.*", "worker-?.log"):
            for path in plan.folder.glob(pattern):
                path.unlink()
