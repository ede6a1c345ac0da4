"""Training runs: a lease on fresh data, a record of the rows read, and a certificate of it."""

from consentry.trainer.runs.dataset import digest_of_files
from consentry.trainer.runs.errors import ConsentStale, LeaseRevoked, RunClosed
from consentry.trainer.runs.lease import Lease, LeaseCondition, RunDecider
from consentry.trainer.runs.run import TrainingRun
from consentry.trainer.runs.store import RunFolder, RunStore

__all__ = [
    "ConsentStale",
    "Lease",
    "LeaseCondition",
    "LeaseRevoked",
    "RunClosed",
    "RunDecider",
    "RunFolder",
    "RunStore",
    "TrainingRun",
    "digest_of_files",
]
