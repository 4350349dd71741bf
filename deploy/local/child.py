"""Become another program that cannot outlive the launcher. Run as a script by `deploy.local.processes`, never imported.

    python -I -S child.py PARENT_PID ORPHAN_SIGNAL UID:GID|- PROGRAM [ARGUMENT...]

Between fork and exec it drops to another user where asked, has the kernel send ORPHAN_SIGNAL when the parent
dies, and undoes what the interpreter did to signals. A script of its own, instead of `preexec_fn`, because Python
code may not run in the child of a process with threads. The order matters: the kernel forgets the death signal when
the user changes (prctl(2), PR_SET_PDEATHSIG).
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, orphan_signal, owner, *argv = sys.argv[1:]
    if owner != "-":
        uid, gid = (int(part) for part in owner.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(orphan_signal), 0, 0, 0)
    if os.getppid() != int(parent):  # the launcher died before the request was in place
        sys.exit(1)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ignored signals stay ignored across exec
    os.execv(argv[0], argv)  # noqa: S606 - replacing this process is the point, and no shell is involved


if __name__ == "__main__":
    main()
