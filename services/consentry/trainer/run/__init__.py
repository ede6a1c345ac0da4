"""Training runs: a lease on fresh data, a record of what was read, and a certificate of it."""

from consentry.trainer.run.dataset import digest_of_files
from consentry.trainer.run.errors import ConsentStale, LeaseRevoked, RunClosed
from consentry.trainer.run.lease import Lease, LeaseCondition, RunJudge
from consentry.trainer.run.run import TrainingRun
from consentry.trainer.run.store import RunFolder, RunStore

__all__ = [
    "ConsentStale",
    "Lease",
    "LeaseCondition",
    "LeaseRevoked",
    "RunClosed",
    "RunFolder",
    "RunJudge",
    "RunStore",
    "TrainingRun",
    "digest_of_files",
]
