"""configs/vivid.py's joint stage at 64 pixels and a quarter of the width, after configs/food64.py's pretraining."""

from typing import Any

from colorjax.study import rows
from configs import food64
from configs.vivid import vivid


def get_config(row: str = "full") -> Any:
    """The configuration, with the overrides of one ablation row applied."""
    return rows.apply(vivid(food64.get_config()), row)
