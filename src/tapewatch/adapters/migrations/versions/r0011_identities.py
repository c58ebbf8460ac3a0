"""Who signs in through an OpenID provider."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    text = sa.Text(collation="C") if op.get_bind().dialect.name == "postgresql" else sa.Text()
    op.create_table(
        "identities",
        sa.Column("issuer", text, nullable=False),
        sa.Column("subject", text, nullable=False),
        sa.Column("user_id", text, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.user_id"], name="fk_identities_user_id"),
        sa.PrimaryKeyConstraint("issuer", "subject", name="pk_identities"),
    )
    op.create_index("ix_identities_user_id", "identities", ["user_id"])
