"""Readers have owners and may keep a state; figures that are fixed for the life of the installation."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # An owner may come before the first position.
    with op.batch_alter_table("reader_positions") as readers:
        readers.alter_column("epoch", existing_type=sa.BigInteger, nullable=True)
        readers.alter_column("sequence", existing_type=sa.BigInteger, nullable=True)
        readers.add_column(sa.Column("owner", sa.BigInteger, nullable=False, server_default="0"))
        readers.add_column(sa.Column("state", sa.LargeBinary))
        readers.add_column(sa.Column("state_epoch", sa.BigInteger))
        readers.add_column(sa.Column("state_sequence", sa.BigInteger))
    op.create_table(
        "installation",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_installation"),
    )
    if op.get_bind().dialect.name == "postgresql":
        _sort_by_bytes()
        # A table in chunks of time can keep only such keys unique as hold the time; the id is derived from it.
        op.drop_constraint("pk_alert_history", "alert_history", type_="primary")
        op.create_primary_key("pk_alert_history", "alert_history", ["alert_id", "fired_at_ns"])


def _sort_by_bytes() -> None:
    """In every database alike, whatever its language, and whatever its libraries learn about that language later."""
    texts = op.get_bind().execute(
        sa.text(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema()"
            " AND data_type = 'text' AND collation_name IS DISTINCT FROM 'C' ORDER BY table_name, column_name"
        )
    )
    for table, column in texts.all():
        op.alter_column(table, column, type_=sa.Text(collation="C"))
