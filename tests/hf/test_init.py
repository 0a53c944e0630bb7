"""What `planner.hf` says where it cannot be used."""

from __future__ import annotations

import subprocess
import sys


def test_without_transformers_the_extra_is_named():
    """The import says what is missing and how to get it."""
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from planner.errors import MissingExtraError\n"
        "try:\n    import planner.hf\n"
        "except MissingExtraError as error:\n    print(error.message, '|', error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == 'planner.hf needs transformers, which is not installed | pip install "qplan[torch]"'
