"""A worker reduced to what it does with payloads: reads pickled requests from stdin, answers on stdout."""

from __future__ import annotations

import pickle
import sys

from hpcpool.wire import functions
from hpcpool.wire.failures import pickle_failure
from hpcpool.wire.packing import Payload
from hpcpool.wire.payload import install_main, pickle_value, unpickle_call


def main() -> None:
    blobs: dict[bytes, bytes] = {}
    functions.blob_source = blobs.__getitem__
    install_main()
    while True:
        try:
            new_blobs, payloads = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        blobs.update(new_blobs)
        try:
            function, args, kwargs = unpickle_call([Payload(data, buffers) for data, buffers in payloads])
            answer = (True, pickle_value(function(*args, **kwargs)))
        except Exception as error:
            answer = (False, pickle_failure(error, own_frames=1))
        succeeded, payload = answer
        pickle.dump((succeeded, payload.data, [bytes(buffer) for buffer in payload.buffers]), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
