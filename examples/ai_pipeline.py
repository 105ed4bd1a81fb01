"""An analysis in three calls of a language model, followed on a page, with a crash in the middle of an answer.

    pip install "onward[demo]"
    python ai_pipeline.py               # --stay keeps the page until you press Enter

The real `anthropic` package asks a stand-in (_messages_stub.py) that is overloaded once and drops one connection. Then the
worker is killed with SIGKILL half-way through the third answer. No answer that was recorded is asked, or paid, for again.
"""

import asyncio
import html
import sys

import _stage  # first: it says what is missing
import anthropic
from _messages_stub import MessagesStub
from fastapi import FastAPI, responses

import onward

LETTERS = "'My export lost 200 rows!' - 'The invoice came in March.' - 'Rows are missing, and I billed by them.'"
QUESTIONS = {"themes": "List the themes of", "risks": "Judge the risk of", "advice": "Advise what to do about"}
page = FastAPI()


@onward.step(retry=onward.Retry(tries=4, delay=0.5, give_up_on=(anthropic.BadRequestError,)))
async def ask(question: str, so_far: dict[str, str], title: str) -> str:
    call = {"model": "claude-haiku-4-5", "max_tokens": 500, "messages": [{"role": "user", "content": question}]}
    call["extra_headers"] = {"X-Step": onward.current_step().key}  # for the report alone
    try:
        async with anthropic.AsyncAnthropic(max_retries=0) as model, model.messages.stream(**call) as answer:
            async for _ in answer.text_stream:  # as it is written; ten times a second is enough for a page
                onward.progress(so_far | {title: answer.current_message_snapshot.content[0].text + " …"})
            return await answer.get_final_text()
    except anthropic.APIStatusError as error:
        if wait := error.response.headers.get("retry-after"):  # 429 and 529: the other side says when
            raise onward.RetryLater(after=float(wait)) from error
        raise


@onward.workflow
async def analyse(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for title, question in QUESTIONS.items():
        text = found[title] = await ask.using(key=title)(f"{question}: {text}", found, title)
    onward.progress(found)
    return found


@page.get("/", response_class=responses.HTMLResponse)
async def show() -> str:  # from the database alone: no worker has to live for it
    info = await page.state.analysis.info()
    parts = [f"<p><b>{title}</b>: {html.escape(text)}</p>" for title, text in (info.progress or {}).items()]
    refresh = "" if info.finished_at else '<meta http-equiv="refresh" content="1">'
    return f"<!doctype html>{refresh}<title>Analysis</title><h1>Analysis: {info.state}</h1>{''.join(parts)}"


async def main() -> None:
    stub = MessagesStub(["overloaded", "answered", "dropped", "answered", "cut off", "answered"])
    async with stub.served(), _stage.served(page) as address, onward.AsyncClient(_stage.fresh("analysis")) as client:
        page.state.analysis = await client.start(analyse.using(id="analysis"), LETTERS)
        print(f"Follow the analysis at {address}, or with: onward show analysis --url '{_stage.shown()}'", flush=True)
        worker = _stage.start("onward", "worker", __file__, "--log-level", "error", "--lease", "6s")
        await asyncio.wait_for(_stage.text_of(address, having="Mend the export"), timeout=120)
        _stage.kill(worker, "in the middle of the third answer")
        print(f"The page still shows{(shown := await _stage.text_of(address))}", flush=True)
        _stage.start("onward", "worker", __file__, "--log-level", "error", "--lease", "6s")
        await page.state.analysis.result(timeout=120)
        print(f"Another worker went on, and the page shows{await _stage.text_of(address)}\nCalls of the model:")
        for step, ends in stub.calls.items():
            print(f"  {step}: {len(ends)} ({', '.join(ends)})")
        if "--stay" in sys.argv:
            await asyncio.to_thread(input, "The page stays until you press Enter.")
    if "Mend the export" not in shown or any(ends.count("answered") != 1 for ends in stub.calls.values()):
        sys.exit("BROKEN: an answer was lost, or asked for again")
    print("Ok: what was answered was kept, and never asked for again.")


if __name__ == "__main__":
    asyncio.run(main())
