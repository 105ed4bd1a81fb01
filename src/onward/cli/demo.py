"""`onward demo`: the daily data pipeline on a fresh SQLite file or PostgreSQL schema, a worker killed on the way, and proof.

The parts are in `_demo/`: `place.py` and `postgres.py` are the databases,
`pipeline.py` is what a user would write, `stage.py` runs and kills, `proof.py` reads the database.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import tempfile
from pathlib import Path

import click

from onward._store.opening import open_store
from onward._store.urls import ENVIRONMENT_VARIABLE
from onward.cli._demo.place import Place, SqliteFile
from onward.cli._demo.proof import Report, prove
from onward.cli._demo.sources import source_files
from onward.cli._demo.stage import WORKFLOW_ID, DemoFailed, Plan, Played, play
from onward.cli.database import unusable
from onward.cli.settings import Failure, Settings, common_options, pass_settings

FEWEST = 12
_POSTGRES = ("postgresql://", "postgres://")


@click.command(short_help="Kill the worker of a pipeline half-way; prove nothing is lost.")
@click.option("--items", type=click.IntRange(FEWEST, 5000), default=600, show_default=True, help="How many documents.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where its files go; default a new temporary folder.",
)
@click.option(
    "--keep/--no-keep",
    default=None,
    help="Whether what it made stays for you to look at; by default files stay, and a schema of PostgreSQL goes.",
)
@common_options
@pass_settings
def demo(settings: Settings, items: int, folder: Path | None, keep: bool | None) -> None:
    """Run a data pipeline, kill its worker in the middle, and prove that nothing was lost or done twice.

    It collects the source files of Python's standard library, classifies each, drops duplicates and loads the rest
    into a table: on a fresh SQLite file, or in a fresh schema of the PostgreSQL database that --url or
    ONWARD_DATABASE_URL names. Takes about twelve seconds. The exit code is 1 if a claim of its report fails.
    """
    available = len(source_files(items))
    if available < FEWEST:
        raise Failure("this Python has no source files of its standard library to work on", 2)
    own_folder = folder is None
    folder = Path(tempfile.mkdtemp(prefix="onward-demo-")) if folder is None else _made(folder)
    plan = Plan(folder.resolve(), _place(settings.url, folder), available)
    keep = plan.place.kind == "file" if keep is None else keep
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
                _remove(plan, own_folder)
        raise
    _show(plan, played, report)
    if not report.holds:
        click.echo(f"A claim does not hold: please report this ({_kept(plan)}).", err=True)
        raise click.exceptions.Exit(1)
    if keep:
        _show_where(plan, own_folder)
    else:
        _remove(plan, own_folder)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"the folder {folder} cannot be made: {error}", 2) from error
    return folder


def _place(url: str | None, folder: Path) -> Place:
    """The file or schema to make; the proof wants one that does not exist yet."""
    given = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if url is None and given.lower().startswith(_POSTGRES):  # a file of the user's own is none of the demo's business
        url = given
    if url is not None and url.lower().startswith(_POSTGRES):
        return _schema(url, folder)
    if url is None:
        path = folder.resolve() / "demo.db"
    elif url.lower().startswith("sqlite://"):
        path = Path(open_store(url).url.removeprefix("sqlite:///"))
    else:
        raise Failure(
            "the demo runs on SQLite and PostgreSQL: leave --url out, name a file that does not exist yet "
            "(sqlite:///demo.db), or a PostgreSQL database, where it makes a schema of its own",
            2,
        )
    _check_fresh(folder, path)
    return SqliteFile(path)


def _schema(url: str, folder: Path) -> Place:
    with unusable():
        open_store(url)  # says what is wrong with the URL, and whether the driver is missing
    from onward.cli._demo.postgres import fresh_schema

    _check_fresh(folder)
    return fresh_schema(url)


def _check_fresh(folder: Path, *files: Path) -> None:
    for path, taken in [*((path, path) for path in files), (folder / "bodies.log", folder)]:
        if path.exists():
            raise Failure(f"the demo wants a fresh file, but {taken} holds an earlier run; name another", 2)


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


def _show_where(plan: Plan, own_folder: bool) -> None:
    click.echo("\nLook at it:")
    for command in plan.place.commands(WORKFLOW_ID):
        click.echo(f"  {command}")
    click.echo(f"  {Path(__file__).parent / '_demo' / 'pipeline.py'}   (the pipeline's source)")
    farewell = plan.place.farewell()
    if own_folder:
        click.echo(f"  rm -r {shlex.quote(str(plan.folder))}   (when you are done)")
    if farewell is not None:
        click.echo(f"  {farewell}   (when you are done)")


def _kept(plan: Plan) -> str:
    schema = f", and {plan.place.shown}" if plan.place.kind == "schema" else ""
    return f"the files are kept in {plan.folder}{schema}"


def _remove(plan: Plan, own_folder: bool) -> None:
    """Remove what the demo made, and nothing else."""
    try:
        plan.place.remove()
    finally:
        for pattern in ("bodies.log", "classifier-quota.*", "worker-?.log"):
            for path in plan.folder.glob(pattern):
                path.unlink()
        if own_folder:
            plan.folder.rmdir()
