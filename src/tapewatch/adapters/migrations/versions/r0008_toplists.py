"""Users' toplists with their versions."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    text = sa.Text(collation="C") if op.get_bind().dialect.name == "postgresql" else sa.Text()
    op.create_table(
        "toplist_configs",
        sa.Column("toplist_id", text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("created_at", text, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("owner", text, nullable=False, server_default="local"),
        sa.Column("shows", sa.JSON, nullable=False, server_default="[]"),
        sa.PrimaryKeyConstraint("toplist_id", name="pk_toplist_configs"),
    )
    op.create_index("ix_toplist_configs_owner", "toplist_configs", ["owner"])
    op.create_table(
        "toplist_versions",
        sa.Column("toplist_id", text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
        sa.ForeignKeyConstraint(["toplist_id"], ["toplist_configs.toplist_id"], name="fk_toplist_versions_toplist_id"),
        sa.PrimaryKeyConstraint("toplist_id", "version", name="pk_toplist_versions"),
    )
