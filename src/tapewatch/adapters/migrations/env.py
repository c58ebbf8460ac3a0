"""What Alembic runs for each upgrade: the steps, on the connection and in the transaction of the caller."""

from alembic import context

from tapewatch.adapters.sql_tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
