"""Runs an exported model where there is neither JAX nor `lm`.

    python client.py "The match ended in a draw."
    python client.py '{"text": "The Broncos won.", "question": "Who won?"}'

Each argument is a text, or a JSON object of the task's fields.
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    if len(sys.argv) == 1 or sys.argv[1].startswith("--"):
        sys.exit(__doc__)
    try:
        from runtime import load

        model = load(Path(__file__).parent)
        for argument in sys.argv[1:]:
            is_json = argument.startswith("{")
            fields = json.loads(argument) if is_json else {"text": argument}
            print(json.dumps(model.predict(**fields), ensure_ascii=False))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        sys.exit(f"error: {error}; see README.md")
