"""The floor of HTTP: a bare ASGI application on uvicorn that reads the same request and answers in the same form, no model.

One process with uvloop and httptools. It does of the protocol what any server must: the length of the JSON part out of the
header, the JSON part parsed, the tensor viewed as an array, an answer with a JSON part and a tensor. Not a check more.
"""

import argparse
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import numpy as np
import orjson
import uvicorn

LENGTH = b"inference-header-content-length"

Message = MutableMapping[str, Any]


class Floor:
    """The application.

    Args:
        model: name to answer under.
        stage: rung to name in the answers.
    """

    def __init__(self, model: str, stage: str) -> None:
        self._model = model
        self._parameters = {"cascade_stage": stage}

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        length = int(next(value for name, value in scope["headers"] if name == LENGTH))
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        tensor = orjson.loads(body[:length])["inputs"][0]
        array = np.frombuffer(body, np.uint8, offset=length).reshape(tensor["shape"])
        labels = np.zeros(len(array), np.int64)
        output = {
            "name": "label",
            "shape": labels.shape,
            "datatype": "INT64",
            "parameters": {"binary_data_size": labels.nbytes},
        }
        text = orjson.dumps(
            {"model_name": self._model, "model_version": "1", "parameters": self._parameters, "outputs": [output]}
        )
        answer = text + labels.tobytes()
        headers = [
            (b"content-type", b"application/octet-stream"),
            (LENGTH, b"%d" % len(text)),
            (b"content-length", b"%d" % len(answer)),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--stage", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    uvicorn.run(
        Floor(options.model, options.stage),
        host="127.0.0.1",
        port=options.port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
