"""`onward doctor`: looks for what is wrong with the database, the workers and the work, and says what to do about it.

Only renders: the store looks (`Store.diagnose`), and `_store/checks.py` judges. Creates and changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import click
import msgspec

from onward._store.checks import findings_of
from onward._store.diagnosis import Finding
from onward._store.opening import open_store
from onward._store.urls import database_url
from onward.cli.database import UNUSABLE, place, unusable
from onward.cli.settings import Failure, Settings, common_options, one_line, pass_settings

PROBLEMS = 1
"""Exit code: a check failed."""
MARKS = {"ok": ("ok", "green", False), "warn": ("warn", "yellow", True), "fail": ("FAIL", "red", True)}
"""By level: the word in the margin, its colour, whether it is bold."""


@click.command()
@common_options
@click.option("--full", is_flag=True, help="Check the whole database for damage, however long it takes.")
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with `findings`.")
@pass_settings
def doctor(settings: Settings, full: bool, strict: bool, as_json: bool) -> None:
    """Look for what is wrong, and say what to do about it.

    Versions, schema, file system, durability, integrity, disk space; workers and leases; workflows that stand still;
    clock; size and growth. Exits with 0 if nothing failed, with 1 if something did, with 5 if the database cannot be used.
    Creates and changes nothing.
    """
    settings.start_logging()
    with unusable():
        store = open_store(database_url(settings.url))
        diagnosis = asyncio.run(store.diagnose(thorough=full))
    findings = findings_of(diagnosis)
    worst = _worst(findings)
    if as_json:
        shown = {"database": diagnosis.url, "level": worst, "findings": findings}
        click.echo(msgspec.json.encode(shown))
    else:
        click.echo(f"database: {place(diagnosis.url)}", err=True)
        for line in lines(findings):
            click.echo(line)
    for finding in findings:
        if finding.is_unusable:
            raise Failure(f"{finding.text}; {finding.cure}" if finding.cure else finding.text, UNUSABLE)
    if worst == "fail" or (strict and worst == "warn"):
        click.get_current_context().exit(PROBLEMS)


def lines(findings: Sequence[Finding]) -> Iterator[str]:
    """A line a finding, below it the cure of what is not well, and the sum at the end."""
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        word, colour, is_bold = MARKS[finding.level]
        mark = click.style(f"{word:<4}", fg=colour, bold=is_bold)
        yield f"{mark}  {finding.check:<{width}}  {one_line(finding.text)}"
        if finding.cure and finding.level != "ok":
            yield f"{'':<{width + 8}}-> {one_line(finding.cure)}"
    counts = {level: sum(finding.level == level for finding in findings) for level in MARKS}
    yield ""
    yield (
        f"{counts['fail']} failed, {counts['warn']} to look at, {counts['ok']} well"
        if counts["fail"] or counts["warn"]
        else f"all is well ({counts['ok']} checks)"
    )


def _worst(findings: Sequence[Finding]) -> str:
    levels = {finding.level for finding in findings}
    return next(level for level in ("fail", "warn", "ok") if level in levels)
