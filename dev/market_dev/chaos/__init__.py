"""The chaos test."""

import os

# This process starts others while gRPC runs in it. With gRPC's support for forks, its threads would run in a new
# process, too, and could write to its standard error, or end it, before the program is executed.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
