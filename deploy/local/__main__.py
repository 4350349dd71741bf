"""`python -m deploy.local`: the single-machine stack."""

import sys

from deploy.local.launcher import main

sys.exit(main())
