"""The command `trunkline`, also as `python -m trunkline`."""

import os
import sys


def main() -> int:
    """Run the command line; its exit code."""
    # Read when grpc is imported: programs are only ever started here by fork and exec at once.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from trunkline.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
