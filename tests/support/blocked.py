"""A worker that answers its parent, and then holds the interpreter for ever: no code of it runs."""

import asyncio
import re
import signal

from offramp.serve.channel import Channel


def work(sources, settings, known, held, parent, **how):
    """Stands for `offramp.serve.workers._work`."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.run(_ready_and_blocked(parent))


async def _ready_and_blocked(parent):
    channel = Channel(parent, None)
    await channel.open()
    await channel.ask("loading")
    await channel.ask("ready")
    re.match("(a+)+$", 60 * "a" + "b")  # takes ages, and gives the interpreter to nobody
