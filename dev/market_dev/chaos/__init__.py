"""Kills everything, time and again, and checks every order afterwards."""

import os

# Before gRPC is imported: processes are started all the time, and none of them is a fork that goes on to use it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
