"""All calls of a process run in one loop, whoever comes first."""

import asyncio
import threading
import time

from offramp.adapters import connection


def test_threads_that_come_at_once_share_the_loop(monkeypatch):
    async def here():
        return asyncio.get_running_loop()

    for _ in range(20):
        monkeypatch.setattr(connection, "_loops", {})
        begun, found = threading.Barrier(8), []

        def ask(begun=begun, found=found):
            begun.wait(10)
            found.append(connection.run(here()))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(found) == 8
        assert len(set(found)) == 1
        found[0].call_soon_threadsafe(found[0].stop)
        while found[0].is_running():
            time.sleep(0.001)
        found[0].close()
