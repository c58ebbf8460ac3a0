"""Watchlists with their versions, who changed what, and alerts with the age of their values and words of their rule."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("alert_history", sa.Column("ages_s", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("alert_history", sa.Column("severity", sa.Text, nullable=False, server_default="info"))
    op.add_column("alert_history", sa.Column("tags", sa.JSON, nullable=False, server_default="[]"))
    op.create_table(
        "watchlists",
        sa.Column("watchlist_id", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("watchlist_id", name="pk_watchlists"),
    )
    op.create_table(
        "watchlist_versions",
        sa.Column("watchlist_id", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
        sa.ForeignKeyConstraint(
            ["watchlist_id"], ["watchlists.watchlist_id"], name="fk_watchlist_versions_watchlist_id"
        ),
        sa.PrimaryKeyConstraint("watchlist_id", "version", name="pk_watchlist_versions"),
    )
    # No rule of an earlier release names a watchlist.
    op.create_table(
        "rule_watchlists",
        sa.Column("rule_id", sa.Text, nullable=False),
        sa.Column("watchlist_id", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["rule_id"], ["rules.rule_id"], name="fk_rule_watchlists_rule_id"),
        sa.PrimaryKeyConstraint("rule_id", "watchlist_id", name="pk_rule_watchlists"),
    )
    op.create_index("ix_rule_watchlists_watchlist_id", "rule_watchlists", ["watchlist_id"])
    op.create_table(
        "audit_log",
        sa.Column("entry", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False, autoincrement=True),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("entry", name="pk_audit_log"),
        sqlite_autoincrement=True,
    )
    for columns in (["at_ns"], ["subject", "entry"]):
        op.create_index("ix_audit_log_" + "_".join(columns), "audit_log", columns)
