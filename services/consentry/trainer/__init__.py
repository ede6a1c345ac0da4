"""The trainer, a training system's side of Consentry: exclude, purge and prove.

`Client` follows all records and controls. Each name is loaded when it is first used: some need an
extra such as torch or Spark, and a command that checks files needs no Kafka client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from consentry.ops.clock import system_clock
    from consentry.trainer.bundled import bundle_decider
    from consentry.trainer.client import Client
    from consentry.trainer.deciding.columns import Columns
    from consentry.trainer.deciding.decide_table import Decisions
    from consentry.trainer.filters import ray_, spark_
    from consentry.trainer.filters.torch_ import ConsentDataset, ConsentLoader, filter_batches
    from consentry.trainer.purge.open_dataset import open_dataset
    from consentry.trainer.purge.row_selector import (
        ExcludedSelector,
        JointSelector,
        OrdersSelector,
    )
    from consentry.trainer.runs.errors import ConsentStale, LeaseRevoked
    from consentry.trainer.runs.mlflow_ import MlflowObserver
    from consentry.trainer.runs.openlineage_ import OpenLineageObserver
    from consentry.wire.tokens import TokenKeys

_LOADED_LATER: Final = {
    "Client": "consentry.trainer.client",
    "Columns": "consentry.trainer.deciding.columns",
    "ConsentDataset": "consentry.trainer.filters.torch_",
    "ConsentLoader": "consentry.trainer.filters.torch_",
    "ConsentStale": "consentry.trainer.runs.errors",
    "Decisions": "consentry.trainer.deciding.decide_table",
    "ExcludedSelector": "consentry.trainer.purge.row_selector",
    "JointSelector": "consentry.trainer.purge.row_selector",
    "LeaseRevoked": "consentry.trainer.runs.errors",
    "MlflowObserver": "consentry.trainer.runs.mlflow_",
    "OpenLineageObserver": "consentry.trainer.runs.openlineage_",
    "OrdersSelector": "consentry.trainer.purge.row_selector",
    "TokenKeys": "consentry.wire.tokens",
    "bundle_decider": "consentry.trainer.bundled",
    "filter_batches": "consentry.trainer.filters.torch_",
    "open_dataset": "consentry.trainer.purge.open_dataset",
    "ray_": "consentry.trainer.filters.ray_",
    "spark_": "consentry.trainer.filters.spark_",
    "system_clock": "consentry.ops.clock",
}
"""The module of each name that importing this package does not load; two names are modules."""

__all__ = [
    "Client",
    "Columns",
    "ConsentDataset",
    "ConsentLoader",
    "ConsentStale",
    "Decisions",
    "ExcludedSelector",
    "JointSelector",
    "LeaseRevoked",
    "MlflowObserver",
    "OpenLineageObserver",
    "OrdersSelector",
    "TokenKeys",
    "bundle_decider",
    "filter_batches",
    "open_dataset",
    "ray_",
    "spark_",
    "system_clock",
]


def __getattr__(name: str) -> Any:
    """Load the name when it is first used. Raises ImportError where its library is missing."""
    if name not in _LOADED_LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_LOADED_LATER[name])
    return getattr(module, name, module)
