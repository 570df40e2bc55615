"""How many mutated inputs a fuzz test tries: 300 by default, 50,000 with `tox run -e fuzz`."""

import os

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
