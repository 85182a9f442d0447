"""A relay that runs on a login node whose sshd lets tunnels listen on the loopback address only; sent as text.

It listens on all addresses, at the first of some ports that is free, prints that, and passes each connection on to a
port of the loopback address. It ends when its stdin does, and so with the SSH connection that started it. Any Python
from 3.6 on can run it; it imports nothing of ours.
"""

import asyncio
import socket
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


def listener(*ports: int) -> socket.socket:
    """Listen on the first of these that is free."""
    for port in ports:
        stream = socket.socket()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            stream.bind(("0.0.0.0", port))
            stream.listen(128)
        except OSError:
            stream.close()
        else:
            return stream
    raise OSError("none of its ports is free: %s" % ", ".join(map(str, ports)))  # noqa: UP031 - see the Pythons above


async def relay(port: int, *ports: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pass_on(reader, back), pass_on(there, writer))
        back.close()
        writer.close()

    here = listener(*ports)
    server = await asyncio.start_server(serve, sock=here)
    sys.stdout.write("%d\n" % here.getsockname()[1])  # noqa: UP031 - see the Pythons above
    sys.stdout.flush()
    await asyncio.get_event_loop().run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    loop = asyncio.new_event_loop()
    loop.run_until_complete(relay(*map(int, sys.argv[1:])))
