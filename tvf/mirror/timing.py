"""How often a mirror is written and looked at, in seconds."""

from tvf.lease import EXPIRY as EXPIRY
from tvf.lease import HEARTBEAT as HEARTBEAT

INTERVAL = 5.0  # between uploads of a job
POLL = 1.0  # between looks at another's claim
