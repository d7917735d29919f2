"""What programs read of a command."""

import json
from typing import Any


def print_json(content: Any) -> None:
    from nnc.report import strict

    print(json.dumps(strict(content), indent=2))  # in ASCII, which no locale lacks
