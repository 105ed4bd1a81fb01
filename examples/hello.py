"""The smallest promise: kill this at any moment, run it again, and it goes on where it was.

    pip install onward
    python hello.py          # press Ctrl-C (or kill -9 it) while it counts, then run it again

One process, one file (onward.db, made here). Remove that file to begin anew.
"""

import asyncio

import onward


@onward.step
def say(words: str) -> str:
    print(words, flush=True)
    return words


@onward.workflow
async def countdown(start: int) -> str:
    for number in range(start, 0, -1):
        await say(f"{number} …")  # printed once, whatever happens in between
        await asyncio.sleep(1)  # durable: a restart waits for the rest of it only
    return await say("Lift-off!")


if __name__ == "__main__":
    print("result:", onward.run(countdown.using(id="hello"), 5))
