"""Wrong uses of clients and of what workflow code calls: each type checker must report exactly the marked lines."""

import onward
from onward import AsyncClient, Client, Signal, Worker, step, workflow

approved = Signal("approved", bool)


@step
def double(number: int) -> int:
    return 2 * number


@workflow
async def parent(number: int) -> str:
    wrong: int = await onward.start(parent, 1)  # error
    await onward.start(parent, "1")  # error
    await onward.start(double, 1)  # error
    text: str = await approved.wait()  # error
    await approved.wait(timeout="1h")  # error
    return f"{wrong}{text}"


async def with_async_client(client: AsyncClient) -> None:
    await client.start(parent, "42")  # error
    await client.start(parent)  # error
    await client.start(parent, 42, id="p")  # error
    await client.start(double, 42)  # error
    await client.start(parent(42))  # error
    await client.start_many([parent])  # error
    number: int = await client.run(parent, 42)  # error
    await client.signal("p", approved, "yes")  # error
    print(number)


def with_client(client: Client) -> None:
    client.start(parent, "42")  # error
    client.start(parent.bind("42"))  # error
    number: int = client.start(parent, 42).result()  # error
    print(number, client.handle(42))  # error
    client.signal("p", approved, "yes")  # error
    Worker(workflows=[double])  # error
    Worker()  # error
    onward.run(parent, "42")  # error
