"""The sample as a client inside the stack, where workers reach its receiver: `python -m tests.containers.sample`."""

import asyncio
import os
import sys

from rich.console import Console

from deploy.local import sample
from deploy.local.info import StackInfo


def main() -> None:
    """Run the sample; status 0 if every run came to its expected end."""
    stack = StackInfo(
        gateway_url="http://gateway:8080",
        admin_email=os.environ["EMAIL"],
        admin_password=os.environ["PASSWORD"],
        receiver_host="sample",
        receiver_port=8000,
        console=Console(),
    )
    sys.exit(asyncio.run(sample.run(stack)))


if __name__ == "__main__":
    main()
