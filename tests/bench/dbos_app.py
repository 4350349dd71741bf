"""DBOS Transact behind FastAPI, as its documentation sets it up; run by the interpreter of its own environment.

Only `dbos_peer.py` starts it: `dbos_app.py <database URL> <port>`. POST /chain and /fan-out answer when the workflow
has ended.
"""

import asyncio
import sys

import uvicorn  # type: ignore[import-not-found, unused-ignore]  # these are in the peer's environment
from dbos import DBOS  # type: ignore[import-not-found]
from fastapi import FastAPI

URL, PORT = sys.argv[1], int(sys.argv[2])
app = FastAPI()
DBOS(
    config={
        "name": "bench",
        "system_database_url": URL,
        "run_admin_server": False,
        "log_level": "WARNING",
        "executor_id": "local",
        "application_version": "1",
    }
)


@DBOS.step()  # type: ignore[untyped-decorator]
async def step(number: int) -> dict[str, object]:
    """A step that does nothing."""
    return {"n": number, "ok": True}


@DBOS.workflow()  # type: ignore[untyped-decorator]
async def chain() -> None:
    """Ten steps, one after another."""
    for number in range(10):
        await step(number)


@DBOS.workflow()  # type: ignore[untyped-decorator]
async def fan_out() -> None:
    """One step, fifty beside each other, one after all of them."""
    await step(0)
    await asyncio.gather(*(step(number) for number in range(50)))
    await step(51)


@app.post("/chain")
async def run_chain() -> dict[str, bool]:
    """Run the chain to its end."""
    await (await DBOS.start_workflow_async(chain)).get_result()
    return {"ok": True}


@app.post("/fan-out")
async def run_fan_out() -> dict[str, bool]:
    """Run the fan-out to its end."""
    await (await DBOS.start_workflow_async(fan_out)).get_result()
    return {"ok": True}


if __name__ == "__main__":
    DBOS.launch()
    uvicorn.run(app, host="127.0.0.1", port=PORT, loop="uvloop", access_log=False, log_level="warning")
