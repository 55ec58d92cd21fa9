"""A way into a network namespace: ``relay FD PORT`` passes what connects to a socket of another one on to PORT here.

Needs nothing but Python. A connection that is refused or cut here is cut there.
"""

from __future__ import annotations

import asyncio
import socket
import sys


async def main(listening: int, port: int) -> None:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.wait(
            [asyncio.ensure_future(passed(reader, server_writer)), asyncio.ensure_future(passed(server_reader, writer))]
        )
        writer.close()
        server_writer.close()

    async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 18):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            writer.transport.abort()

    server = await asyncio.start_server(relay, sock=socket.socket(fileno=listening))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
