"""How a store becomes the store of this release.

Owns the steps and the check that a store is not from a newer release. It never opens a connection, reads no ini file
and leaves logging alone. Each step in `versions` is written once and never changed after a release.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from tapewatch.errors import ConfigError


def upgrade(connection: Connection) -> None:
    """Create or upgrade the schema inside the connection's transaction. `ConfigError` if it is a newer release's."""
    config = Config()
    # Alembic formats this option, so that a percent sign in the path has to be doubled.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    unknown = set(MigrationContext.configure(connection).get_current_heads()) - known
    if unknown:
        raise ConfigError(
            f"the store's schema ({', '.join(sorted(unknown))}) is from a newer release of tapewatch: "
            "install that release, or restore a backup made by this one"
        )
    command.upgrade(config, "head")
