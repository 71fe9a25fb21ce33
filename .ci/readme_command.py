"""Print the shell block that follows ``<!-- command: NAME -->`` in the README."""

import re
import sys
from pathlib import Path

readme = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
name = re.escape(sys.argv[1])
found = re.search(rf"<!-- command: {name} -->\s*```bash\n(.*?)```", readme, re.DOTALL)
if found is None:
    sys.exit(f"README.md has no command {sys.argv[1]!r}")
sys.stdout.write(found[1])
