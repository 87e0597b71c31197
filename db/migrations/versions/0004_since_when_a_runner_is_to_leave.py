"""Since when a runner's attempt is asked to leave"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("runner", sa.Column("asked_at", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("runner", "asked_at")
