"""Reference data: the symbol master, splits and daily history."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "symbols",
        sa.Column("symbol", sa.Text, nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("exchange", sa.Text),
        sa.Column("tape", sa.Text),
        sa.Column("type", sa.Text),
        sa.Column("is_test", sa.Boolean, nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("market_cap", sa.Double),
        sa.Column("shares_outstanding", sa.Double),
        sa.Column("sector", sa.Text),
        sa.Column("round_lot", sa.BigInteger),
        sa.Column("as_of", sa.Date, nullable=False),
        sa.PrimaryKeyConstraint("symbol", name="pk_symbols"),
    )
    op.create_table(
        "splits",
        sa.Column("symbol", sa.Text, nullable=False),
        sa.Column("ex_date", sa.Date, nullable=False),
        sa.Column("split_from", sa.Double, nullable=False),
        sa.Column("split_to", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("symbol", "ex_date", name="pk_splits"),
    )
    op.create_table(
        "bars_1d",
        sa.Column("symbol", sa.Text, nullable=False),
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("open", sa.Double, nullable=False),
        sa.Column("high", sa.Double, nullable=False),
        sa.Column("low", sa.Double, nullable=False),
        sa.Column("close", sa.Double, nullable=False),
        sa.Column("volume", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("symbol", "day", name="pk_bars_1d"),
    )
    op.create_index("ix_bars_1d_day", "bars_1d", ["day"])
