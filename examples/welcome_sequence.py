"""A welcome sequence: one mail now, the follow-up three days later, and a crash in between.

    pip install "onward[demo]"
    python welcome_sequence.py               # the three days are shortened to 3 seconds
    python welcome_sequence.py --days 3      # … or waited for in earnest

The mails go to a real SMTP server on this machine. The worker is killed with SIGKILL between the two; another finishes.
Message-ID is the step's idempotency key, the same on every try: should a crash ever fall between sending a mail and
recording it, the receiver can tell the repetition from a second mail.
"""

import argparse
import asyncio
import email.message
import os
import smtplib
import subprocess
import sys
from typing import Any

import _database

import onward

try:
    from aiosmtpd.smtp import SMTP
except ImportError:
    sys.exit('this example needs aiosmtpd for its mail server: pip install "onward[demo]"')


@onward.step(retry=onward.Retry(tries=4, delay=0.5))
def send_email(address: str, template: str) -> str:
    mail = email.message.EmailMessage()
    mail["Message-ID"] = f"<{onward.current_step().idempotency_key}@example.com>"
    mail["From"], mail["To"], mail["Subject"] = "team@example.com", address, template
    mail.set_content(f"This is the {template} mail.")
    with smtplib.SMTP("127.0.0.1", int(os.environ["SMTP_PORT"])) as server:
        server.send_message(mail)
    return str(mail["Message-ID"])


@onward.workflow
async def welcome_sequence(address: str, pause_s: float) -> list[str]:
    first = await send_email(address, "welcome")
    await asyncio.sleep(pause_s)  # durable: it needs no process and no memory, and survives restarts
    return [first, await send_email(address, "follow-up")]


class Mailbox:  # what the mail server calls
    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        mail = email.message_from_bytes(envelope.content)
        print(f"  mail server: received {mail['Subject']!r}, Message-ID {mail['Message-ID']}", flush=True)
        return "250 OK"


def start_worker() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "onward", "worker", __file__, "--log-level", "error"])


async def main(pause_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(Mailbox()), "127.0.0.1", 0)
    os.environ["SMTP_PORT"] = str(server.sockets[0].getsockname()[1])
    async with onward.AsyncClient(_database.fresh("welcome")) as client:
        handle = await client.start(welcome_sequence.using(id="welcome-ada"), "ada@example.com", pause_s)
        print(f"Three days are {pause_s:g} seconds here{' (shortened)' * (pause_s < 3 * 86_400)}.", flush=True)
        worker = start_worker()
        while not (info := await handle.info()).waiting_for:  # noqa: ASYNC110  (until it sleeps)
            await asyncio.sleep(0.05)
        worker.kill()
        print(f"Worker {worker.pid} is killed with SIGKILL; the workflow is {info.state}.", flush=True)
        print(f"Worker {(worker := start_worker()).pid} is started.", flush=True)
        print(f"Completed: {len(await handle.result())} mails. {_database.look('welcome-ada')}")
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Two mails, three days and a crash between them.")
    options.add_argument("--days", type=float, default=3 / 86_400, help="the wait (default: 3 seconds)")
    asyncio.run(main(options.parse_args().days * 86_400))
