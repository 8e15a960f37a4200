"""The settings of every command: frozen records, presets, and checks of ranges.

Settings are checked when they are made: each error is one sentence that names the flag, what was given, what is
allowed and what to do. What needs a look outside (is there a GPU, is the folder free) is checked later.
Standard library only, so that `nsr --help` is quick. The text under a field is its help on the command line.
"""

from nsr.config.evaluation import EvalConfig, EvalRun
from nsr.config.fit import FitConfig
from nsr.config.presets import PRESETS, with_preset
from nsr.config.run import (
    HUB_DATA,
    MIN_TOKENS,
    TRACKERS,
    Advantage,
    BaselineConfig,
    EngineName,
    LossType,
    NormalizeOver,
    OptimizerName,
    RunConfig,
    Thinking,
    TrainConfig,
    compared_settings,
    settings_diff,
    to_record,
)
from nsr.config.tools import (
    DataConfig,
    ExplainConfig,
    ExportConfig,
    PlayConfig,
    ReportConfig,
    SolveConfig,
    SuiteConfig,
    WarmstartConfig,
    WatchConfig,
)

__all__ = [
    "HUB_DATA",
    "MIN_TOKENS",
    "PRESETS",
    "TRACKERS",
    "Advantage",
    "BaselineConfig",
    "DataConfig",
    "EngineName",
    "EvalConfig",
    "EvalRun",
    "ExplainConfig",
    "ExportConfig",
    "FitConfig",
    "LossType",
    "NormalizeOver",
    "OptimizerName",
    "PlayConfig",
    "ReportConfig",
    "RunConfig",
    "SolveConfig",
    "SuiteConfig",
    "Thinking",
    "TrainConfig",
    "WarmstartConfig",
    "WatchConfig",
    "compared_settings",
    "settings_diff",
    "to_record",
    "with_preset",
]
