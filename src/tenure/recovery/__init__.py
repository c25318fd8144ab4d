"""Finding the true leader and the way back to one: what ``tenure recover`` stands on.

``survey`` looks at the nodes, the database and the logs at once; ``tenure.core.verdict`` decides; ``advice``
turns the verdict into commands. Nothing here may change anything that it looks at.
"""

from tenure.endpoints import Endpoint
from tenure.recovery.advice import Step, advise
from tenure.recovery.surveying import Survey, survey
from tenure.recovery.targets import Targets, find_targets

__all__ = ["Endpoint", "Step", "Survey", "Targets", "advise", "find_targets", "survey"]
