"""A relay that runs on a login node whose sshd lets tunnels listen on the loopback address only; sent as text.

It listens on all addresses, prints its port, and passes each connection on to a port of the loopback address. It ends
when its stdin does, and so with the SSH connection that started it. Any Python from 3.6 on can run it; it imports
nothing of ours.
"""

import asyncio
import sys


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            data = await reader.read(65536)
            if not data:
                break
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()


async def relay(port: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pass_on(reader, back), pass_on(there, writer))
        back.close()
        writer.close()

    server = await asyncio.start_server(serve, "0.0.0.0", 0)
    sys.stdout.write("%d\n" % server.sockets[0].getsockname()[1])  # noqa: UP031 - see the Pythons above
    sys.stdout.flush()
    await asyncio.get_event_loop().run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    loop = asyncio.new_event_loop()
    loop.run_until_complete(relay(int(sys.argv[1])))
