"""Runs an exported model where there is neither JAX nor `lm`.

    python client.py "The match ended in a draw."
    python client.py '{"text": "The Broncos won.", "question": "Who won?"}'

Each argument is a text, or a JSON object of the task's fields.
"""

import json
import sys
from pathlib import Path

from runtime import load

if __name__ == "__main__":
    model = load(Path(__file__).parent)
    for argument in sys.argv[1:]:
        is_json = argument.startswith("{")
        fields = json.loads(argument) if is_json else {"text": argument}
        try:
            print(json.dumps(model.predict(**fields), ensure_ascii=False))
        except ValueError as error:
            sys.exit(f"error: {error}")
