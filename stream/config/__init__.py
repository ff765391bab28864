"""Settings: frozen, read once at the edge from defaults, a YAML file and the environment.

Order, later wins: defaults, the file (`--config` or RISKSTREAM_CONFIG), the environment
(RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS, two underscores between section and field), the command line.
"""

from stream.config.loading import (
    ENV_FILE_VARIABLE,
    ENV_PREFIX,
    OTHER_VARIABLES,
    Loaded,
    Setting,
    load_settings,
    mask_url,
)
from stream.config.settings import (
    BatchSettings,
    HttpSettings,
    KafkaSettings,
    LogSettings,
    QualitySettings,
    RecordSettings,
    RedisSettings,
    ScoringSettings,
    Section,
    Settings,
    StateSettings,
    TopicSettings,
    TraceSettings,
)

__all__ = [
    "ENV_FILE_VARIABLE",
    "ENV_PREFIX",
    "OTHER_VARIABLES",
    "BatchSettings",
    "HttpSettings",
    "KafkaSettings",
    "Loaded",
    "LogSettings",
    "QualitySettings",
    "RecordSettings",
    "RedisSettings",
    "ScoringSettings",
    "Section",
    "Setting",
    "Settings",
    "StateSettings",
    "TopicSettings",
    "TraceSettings",
    "load_settings",
    "mask_url",
]
