"""Rules, lists and alerts have owners and may be shared; alerts tell when they were scanned and passed on.

What was there before is the one local user's, and private. The columns cost no row a write: their defaults are
constants. The indexes hold rows of other owners and shared ones alone, so on a history of before they are empty, and
to make them is to read it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # As all texts there: sorted by bytes.
    text = sa.Text(collation="C") if op.get_bind().dialect.name == "postgresql" else sa.Text()
    for table in ("rules", "watchlists", "alert_history"):
        op.add_column(table, sa.Column("owner", text, nullable=False, server_default="local"))
    for table in ("rules", "watchlists"):
        op.create_index(f"ix_{table}_owner", table, ["owner"])
    op.add_column("alert_history", sa.Column("shared", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("alert_history", sa.Column("scanned_ns", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("alert_history", sa.Column("filtered_ns", sa.BigInteger, nullable=False, server_default="0"))
    owned, shared = sa.text("owner <> 'local'"), sa.text("shared")
    for columns in ([], ["symbol"], ["rule_id"]):
        op.create_index(
            "_".join(["ix_alert_history_owned", *columns]),
            "alert_history",
            ["owner", *columns, "fired_at_ns", "alert_id"],
            sqlite_where=owned,
            postgresql_where=owned,
        )
        op.create_index(
            "_".join(["ix_alert_history_shared", *columns]),
            "alert_history",
            [*columns, "fired_at_ns", "alert_id"],
            sqlite_where=shared,
            postgresql_where=shared,
        )
