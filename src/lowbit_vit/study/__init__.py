"""How trials are run: the cells of each study, one process or container for each, over the devices of a machine or a cluster."""

import os

# A local Ray must listen on the loopback alone, for it runs the programs of every client. This is Ray's switch for that, named after
# the systems on which it is the default. Ray reads it at import, and on Linux binds to all interfaces without it, whatever its address.
if os.environ.get("RAY_ADDRESS", "local") in ("", "local"):
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
else:
    # To a cluster that is not there, one attempt of 20 s instead of 20 attempts of 40 s; Ray reads these at import, too.
    os.environ.setdefault("RAY_py_gcs_connect_timeout_s", "10")
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
    # Of ray://, where three attempts take 5, 10 and 15 s.
    os.environ.setdefault("RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S", "7")
