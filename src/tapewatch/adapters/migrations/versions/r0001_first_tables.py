"""Bars, alerts, rules with their versions, and readers' positions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "bars_1m",
        sa.Column("symbol", sa.Text, nullable=False),
        sa.Column("ts_ns", sa.BigInteger, nullable=False),
        sa.Column("open", sa.Double),
        sa.Column("high", sa.Double),
        sa.Column("low", sa.Double),
        sa.Column("close", sa.Double),
        sa.Column("volume", sa.Double),
        sa.Column("vwap", sa.Double),
        sa.Column("vwap_volume", sa.Double),
        sa.Column("trade_count", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("symbol", "ts_ns", name="pk_bars_1m"),
    )
    op.create_table(
        "alert_history",
        sa.Column("alert_id", sa.Text, nullable=False),
        sa.Column("rule_id", sa.Text, nullable=False),
        sa.Column("rule_version", sa.BigInteger, nullable=False),
        sa.Column("rule_name", sa.Text, nullable=False),
        sa.Column("symbol", sa.Text, nullable=False),
        sa.Column("fired_at_ns", sa.BigInteger, nullable=False),
        sa.Column("price", sa.Double),
        sa.Column("values", sa.JSON, nullable=False),
        sa.Column("session", sa.Text, nullable=False),
        sa.Column("received_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("alert_id", name="pk_alert_history"),
    )
    for columns in (
        ["fired_at_ns", "alert_id"],
        ["symbol", "fired_at_ns", "alert_id"],
        ["rule_id", "fired_at_ns", "alert_id"],
    ):
        op.create_index("ix_alert_history_" + "_".join(columns), "alert_history", columns)
    op.create_table(
        "rules",
        sa.Column("rule_id", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("rule_id", name="pk_rules"),
    )
    op.create_table(
        "rule_versions",
        sa.Column("rule_id", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
        sa.ForeignKeyConstraint(["rule_id"], ["rules.rule_id"], name="fk_rule_versions_rule_id"),
        sa.PrimaryKeyConstraint("rule_id", "version", name="pk_rule_versions"),
    )
    numbers = op.create_table(
        "ruleset_number",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ruleset_number"),
    )
    op.bulk_insert(numbers, [{"id": 1, "number": 0}])
    op.create_table(
        "reader_positions",
        sa.Column("reader", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("reader", name="pk_reader_positions"),
    )
