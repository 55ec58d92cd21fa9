"""What the server program serves, read from a TOML file and the command line, and checked once."""

from reverb_async.config.load import Config, ServerConfig, load
from reverb_async.config.tables import TableConfig

__all__ = ["Config", "ServerConfig", "TableConfig", "load"]
