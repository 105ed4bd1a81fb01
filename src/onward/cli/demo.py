"""`onward demo`: the daily data pipeline on a fresh SQLite file, with one worker killed on the way, and the proof.

The parts are in `_demo/`: `pipeline.py` is what a user would write, `stage.py` runs and kills, `proof.py` reads the database.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import click

from onward._store.opening import open_store
from onward.cli._demo.proof import Report, prove
from onward.cli._demo.sources import source_files
from onward.cli._demo.stage import WORKFLOW_ID, DemoFailed, Plan, Played, play
from onward.cli.settings import Failure, Settings, common_options, pass_settings

FEWEST = 12
QUERY = "SELECT kind, count(*) FROM documents GROUP BY kind"


@click.command(short_help="Kill the worker of a pipeline half-way; prove nothing is lost.")
@click.option("--items", type=click.IntRange(FEWEST, 5000), default=600, show_default=True, help="How many documents.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where its files go; default a new temporary folder.",
)
@click.option("--keep/--no-keep", default=True, show_default=True, help="Whether the files stay for you to look at.")
@common_options
@pass_settings
def demo(settings: Settings, items: int, folder: Path | None, keep: bool) -> None:
    """Run a data pipeline, kill its worker in the middle, and prove that nothing was lost or done twice.

    It collects the source files of Python's standard library, classifies each, drops duplicates and loads the rest
    into a table, on a fresh SQLite file. Takes about twelve seconds. The exit code is 1 if a claim of its report fails.
    """
    available = len(source_files(items))
    if available < FEWEST:
        raise Failure("this Python has no source files of its standard library to work on", 2)
    own_folder = folder is None
    folder = Path(tempfile.mkdtemp(prefix="onward-demo-")) if folder is None else _made(folder)
    plan = Plan(folder.resolve(), _database(settings.url, folder), available)
    click.echo(f"database: {plan.database}", err=True)
    try:
        played = play(plan)
        report = prove(plan, played)
    except DemoFailed as error:
        click.echo(f"{error}\n(the files are kept in {plan.folder})", err=True)
        raise click.exceptions.Exit(1) from error
    _show(plan, played, report)
    if not report.holds:
        click.echo(f"A claim does not hold. The files are kept in {plan.folder}: please report this.", err=True)
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


def _database(url: str | None, folder: Path) -> Path:
    """The file to make; the proof wants one that does not exist yet."""
    if url is None:
        path = folder.resolve() / "demo.db"
    elif url.lower().startswith("sqlite://"):
        path = Path(open_store(url).url.removeprefix("sqlite:///"))
    else:
        raise Failure(
            "the demo runs on SQLite: leave --url out, or name a file that does not exist yet: sqlite:///demo.db", 2
        )
    if path.exists() or (folder / "bodies.log").exists():
        taken = path if path.exists() else folder
        raise Failure(f"the demo wants a fresh file, but {taken} holds an earlier run; name another", 2)
    return path


def _show(plan: Plan, played: Played, report: Report) -> None:
    python = sys.version.split()[0]
    kinds = ", ".join(f"{kind} {count}" for kind, count in report.kinds.items())
    click.echo(f"\nDone in {played.took_s:.1f} s; {played.recovery_s:.1f} s from the kill until the work went on.")
    click.echo(f"  collected   {plan.items} source files of Python {python}'s standard library")
    click.echo(f"  dropped     {len(report.duplicates)} duplicates")
    click.echo(f"  loaded      {report.loaded} documents ({kinds})\n")
    click.echo("The proof, from the database file:")
    for check in report.checks:
        mark = click.style("  ok   ", fg="green") if check.holds else click.style(" FAIL  ", fg="red", bold=True)
        click.echo(f"{mark}{check.claim}\n         {check.numbers}")


def _show_where(plan: Plan, own_folder: bool) -> None:
    url = shlex.quote(plan.url)
    database = shlex.quote(str(plan.database))
    click.echo("\nLook at it:")
    click.echo(f"  onward show {WORKFLOW_ID} --url {url}")
    click.echo(f"  sqlite3 {database} '{QUERY}'")
    click.echo(f"  {Path(__file__).parent / '_demo' / 'pipeline.py'}   (the pipeline's source)")
    if own_folder:
        click.echo(f"  rm -r {shlex.quote(str(plan.folder))}   (when you are done)")


def _remove(plan: Plan, own_folder: bool) -> None:
    """Remove what the demo made, and nothing else."""
    for name in (plan.database, *plan.database.parent.glob(f"{plan.database.name}-*")):
        if name.is_dir():
            shutil.rmtree(name)
        else:
            name.unlink(missing_ok=True)
    for pattern in ("bodies.log", "classifier-quota.*", "worker-?.log"):
        for path in plan.folder.glob(pattern):
            path.unlink()
    if own_folder:
        plan.folder.rmdir()
