"""Subscriptions, channels, and the outbox of deliveries."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    text = sa.Text(collation="C") if op.get_bind().dialect.name == "postgresql" else sa.Text()
    for kind in ("subscription", "channel"):
        op.create_table(
            f"{kind}s",
            sa.Column(f"{kind}_id", text, nullable=False),
            sa.Column("owner", text, nullable=False),
            sa.Column("version", sa.BigInteger, nullable=False),
            sa.Column("deleted", sa.Boolean, nullable=False),
            sa.Column("document", sa.JSON, nullable=False),
            sa.PrimaryKeyConstraint(f"{kind}_id", name=f"pk_{kind}s"),
        )
        op.create_index(f"ix_{kind}s_owner", f"{kind}s", ["owner"])
    op.create_table(
        "deliveries",
        sa.Column("delivery_id", text, nullable=False),
        sa.Column("channel_id", text, nullable=False),
        sa.Column("owner", text, nullable=False),
        sa.Column("kind", text, nullable=False),
        sa.Column("state", text, nullable=False),
        sa.Column("alert_id", text, nullable=False),
        sa.Column("rule_id", text, nullable=False),
        sa.Column("symbol", text, nullable=False),
        sa.Column("subscriptions", sa.JSON, nullable=False),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
        sa.Column("next_try_ns", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("error", text, nullable=False),
        sa.Column("digest_id", text, nullable=False),
        sa.Column("sent_ns", sa.BigInteger, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("delivery_id", name="pk_deliveries"),
    )
    for columns in (
        ["channel_id", "state", "at_ns"],
        ["state", "next_try_ns"],
        ["owner", "at_ns", "delivery_id"],
        ["at_ns", "delivery_id"],
    ):
        op.create_index("ix_deliveries_" + "_".join(columns), "deliveries", columns)
