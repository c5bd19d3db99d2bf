"""The tests."""

import os

# Tests start processes while gRPC runs in this one. With gRPC's support for forks, its threads would run in a new
# process, too, and could write to its standard error before the program is executed.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
