"""Every code block of the README and docs/ does what the page says, and the runner notices those that do not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DEADLINE_S = 110


def follow(page: Path, here: Path) -> str:
    """What is wrong with a page; empty where nothing is. It runs in a process group that does not outlive this call."""
    here = here / "app"
    here.mkdir()
    script = (
        f"import sys; sys.path[:0] = [{str(here)!r}, {str(ROOT)!r}]\n"
        f"from tests.docs.page import main\nsys.exit(main({str(page)!r}))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONWARD_")}
    reader = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=here, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        _, wrong = reader.communicate(timeout=DEADLINE_S)
    finally:
        with_group_killed(reader)
    return wrong if reader.returncode else ""


def with_group_killed(process: subprocess.Popen[str]) -> None:
    """End a process and all that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    """Python blocks run, shown output is what is printed, commands end as shown."""
    assert not (wrong := follow(page, tmp_path)), wrong


GOOD = """\
# A page
<!-- snippet: setup
hidden = 40
-->
```python
import asyncio
import onward

@onward.workflow
async def answer(more: int) -> int:
    return hidden + more
```
It goes on in one namespace, and may await:
```python
await asyncio.sleep(0)
client = onward.Client("sqlite:///here.db")
print(client.run(answer, 2))  # -> 42
```
<!-- snippet: output -->
```text
42
```
```python
# flows.py
import onward

@onward.workflow
async def greet(name: str) -> str:
    return f"hello {name}"
```
```console
$ onward worker flows
database: /home/ann/app/onward.db (a new file)
workflows: greet
…
$ onward start flows:greet '["Ann"]' --id ann --wait
database: /home/ann/app/onward.db
ann
"hello Ann"
$ onward show nobody
database: …
error: no workflow has the id 'nobody' …
$ pkill -9 -f "onward worker flows"
$ pip install never-run
```
<!-- snippet: raises WorkflowNotFound -->
```python
client.handle("nobody").result()
```
<!-- snippet: postgres -->
```sql
CREATE FUNCTION one() RETURNS integer LANGUAGE sql
    AS $$ SELECT 1; $$;

SELECT one(), NULL;  -- -> 1 | null
```
<!-- snippet: skip, it would never end -->
```python
while True: pass
```
<!-- snippet: fresh -->
```console
$ ls
```
```pycon
>>> 1 + 1
2
```
"""


@pytest.mark.slow
def test_a_page_that_is_right_is_followed_to_its_end(tmp_path: Path) -> None:
    """One block of every kind."""
    page = tmp_path / "page.md"
    page.write_text(GOOD)
    assert follow(page, tmp_path) == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```python\n1 / 0\n```", "page.md:2: ZeroDivisionError: division by zero (line 2)"),
        ("```python\nprint(1)  # -> 2\n```", "page.md:2: should print '2' and printed ['1']"),
        ("```python\nif False:\n    print(1)  # -> 1\n```", "page.md:3: should print '1' and printed []"),
        (
            "```python\nprint(1)\n```\n<!-- snippet: output -->\n```text\n2\n```",
            "page.md:6: the code above should print",
        ),
        ("<!-- snippet: raises OSError -->\n```python\npass\n```", "should raise OSError and did not"),
        ("<!-- snippet: raises OSError -->\n```python\n1 / 0\n```", "ZeroDivisionError"),
        ("```python\n# bad.py\nimport nothing_of_this_name\n```", "ModuleNotFoundError"),
        ("```console\n$ onward ls\n```", "page.md:2: `onward ls` ended with 5"),
        ("```console\n$ echo one\ntwo\n```", "`echo one` should say\ntwo\nand said\none"),
        ("```console\n$ reboot\n```", "the runner does not know 'reboot'"),
        ("```console\nno command\n```", "a console block begins with a command"),
        ("<!-- snippet: skip -->\n```python\n1\n```", "needs a word after it"),
        ("<!-- snippet: skipp, x -->\n```python\n1\n```", "'snippet: skipp, x'"),
        ("<!-- snippet: skip, x -->\ntext\n```python\n1\n```", "belong right before a code block"),
        ("```pycon\n>>> 1 + 1\n3\n```", "Expected:\n    3\nGot:\n    2"),
        (
            "<!-- snippet: postgres -->\n```sql\nBEGIN;\n\nSELECT 1,\n  2;  -- -> 1 | 3\n```",
            "page.md:5: should give '1 | 3' and gave '1 | 2'",
        ),
        ("<!-- snippet: postgres -->\n```sql\nSELECT 1;\nSELECT 1/0;\n```", "page.md:4: DivisionByZero"),
        ("<!-- snippet: postgres -->\n```sql\nSELECT 1\n```", "does not end with a semicolon"),
    ],
)
def test_a_page_that_is_wrong_is_named_with_its_line(text: str, says: str, tmp_path: Path) -> None:
    """The first thing that does not do what the page says."""
    page = tmp_path / "page.md"
    page.write_text(text + "\n")
    assert says in follow(page, tmp_path)
