"""How trials are run: the cells of each study, one process or container for each, over the devices of a machine or a cluster."""

import os

# A local Ray must listen on the loopback alone, for it runs the programs of every client. This is Ray's switch for that, named after
# the systems on which it is the default. Ray reads it at import, and on Linux binds to all interfaces without it, whatever its address.
if os.environ.get("RAY_ADDRESS", "local") in ("", "local"):
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
