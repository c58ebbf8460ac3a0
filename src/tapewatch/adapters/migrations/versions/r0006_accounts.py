"""Users, their sign-ins, the tokens of their programs, and a number that rises when one of these changes."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # On PostgreSQL texts sort by their bytes, as in every table.
    text = sa.Text(collation="C") if op.get_bind().dialect.name == "postgresql" else sa.Text()
    op.create_table(
        "users",
        sa.Column("user_id", text, nullable=False),
        sa.Column("name", text, nullable=False),
        sa.Column("name_key", text, nullable=False),
        sa.Column("role", text, nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False),
        sa.Column("password_hash", text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("created_at_ns", sa.BigInteger, nullable=False),
        sa.Column("profile", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_users"),
    )
    op.create_index("ix_users_name_key", "users", ["name_key"], unique=True)
    op.create_table(
        "sessions",
        sa.Column("session_id", text, nullable=False),
        sa.Column("user_id", text, nullable=False),
        sa.Column("refresh_hash", text, nullable=False),
        sa.Column("created_at_ns", sa.BigInteger, nullable=False),
        sa.Column("expires_ns", sa.BigInteger, nullable=False),
        sa.Column("used_at_ns", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.user_id"], name="fk_sessions_user_id"),
        sa.PrimaryKeyConstraint("session_id", name="pk_sessions"),
    )
    op.create_index("ix_sessions_user_id_used_at_ns", "sessions", ["user_id", "used_at_ns"])
    op.create_index("ix_sessions_expires_ns", "sessions", ["expires_ns"])
    op.create_table(
        "api_tokens",
        sa.Column("token_id", text, nullable=False),
        sa.Column("user_id", text, nullable=False),
        sa.Column("name", text, nullable=False),
        sa.Column("secret_hash", text, nullable=False),
        sa.Column("scopes", sa.JSON),
        sa.Column("created_at_ns", sa.BigInteger, nullable=False),
        sa.Column("expires_ns", sa.BigInteger, nullable=False),
        sa.Column("used_at_ns", sa.BigInteger),
        sa.Column("revoked", sa.Boolean, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.user_id"], name="fk_api_tokens_user_id"),
        sa.PrimaryKeyConstraint("token_id", name="pk_api_tokens"),
    )
    op.create_index("ix_api_tokens_user_id_created_at_ns", "api_tokens", ["user_id", "created_at_ns"])
    numbers = op.create_table(
        "accounts_number",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_accounts_number"),
    )
    op.bulk_insert(numbers, [{"id": 1, "number": 0}])
