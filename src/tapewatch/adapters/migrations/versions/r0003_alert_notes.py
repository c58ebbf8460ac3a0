"""What was learned about an alert after it fired."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("alert_history", sa.Column("note", sa.Text, nullable=False, server_default=""))
