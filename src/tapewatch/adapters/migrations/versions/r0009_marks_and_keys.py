"""What users put on alerts, and requests that are done once."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Texts sort by their bytes, in every database alike.
    text = sa.Text(collation="C") if op.get_bind().dialect.name == "postgresql" else sa.Text()
    op.create_table(
        "alert_marks",
        sa.Column("user_id", text, nullable=False),
        sa.Column("alert_id", text, nullable=False),
        sa.Column("fired_at_ns", sa.BigInteger, nullable=False),
        sa.Column("acknowledged_at_ns", sa.BigInteger),
        sa.Column("note", text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "alert_id", name="pk_alert_marks"),
    )
    op.create_index("ix_alert_marks_fired_at_ns", "alert_marks", ["fired_at_ns"])
    op.create_table(
        "done_once",
        sa.Column("user_id", text, nullable=False),
        sa.Column("key", text, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("begun_ns", sa.BigInteger, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("headers", sa.JSON),
        sa.Column("body", sa.LargeBinary),
        sa.PrimaryKeyConstraint("user_id", "key", name="pk_done_once"),
    )
    op.create_index("ix_done_once_begun_ns", "done_once", ["begun_ns"])
