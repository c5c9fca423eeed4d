"""tamis doctor; fails where an implementation does not serve this machine's GPU."""

import sys

from tamis.cli.doctor import backends, examination, lines

print(*(f"{name}: {text}" for name, text in lines(examination())), sep="\n")
sys.exit("; ".join(f"{name}: {b.reason}" for name, b in backends().items() if not b.live))
