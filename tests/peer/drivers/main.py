"""Does what the tests ask for, under an interpreter that has dm-reverb: a call per line of JSON, an answer per line.

A call is ``{"module": ..., "name": ..., "arguments": {...}}`` of a function in a module beside this one; the answer is
``{"result": ...}``, or ``{"error": traceback}``.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import traceback
from typing import Any


def main() -> None:
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What the libraries print is no answer.
    for line in sys.stdin:
        answers.write(json.dumps(answer(**json.loads(line))) + "\n")


def answer(module: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": getattr(importlib.import_module(module), name)(**arguments)}
    except BaseException:
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    main()
