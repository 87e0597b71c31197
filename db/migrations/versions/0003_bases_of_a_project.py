"""Allowed bases are a project's; a list that there is goes to every project"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

NAMES = ("uri", "revision", "licence", "created_at")


def upgrade() -> None:
    bases = _all(*NAMES)
    projects = op.get_bind().execute(sa.text("SELECT id FROM project")).scalars().all()
    op.drop_table("base_model")
    table = op.create_table(
        "base_model",
        sa.Column("project_id", sa.String(length=64), nullable=False),
        *_columns(),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_base_model_project_id")),
        sa.PrimaryKeyConstraint("project_id", "uri", name=op.f("pk_base_model")),
    )
    op.bulk_insert(table, [{"project_id": project, **base} for project in projects for base in bases])


def downgrade() -> None:
    bases = {base["uri"]: base for base in _all(*NAMES)}
    op.drop_table("base_model")
    table = op.create_table("base_model", *_columns(), sa.PrimaryKeyConstraint("uri", name=op.f("pk_base_model")))
    op.bulk_insert(table, list(bases.values()))


def _all(*names: str) -> list[dict]:
    found = op.get_bind().execute(sa.text(f"SELECT {', '.join(names)} FROM base_model"))
    return [dict(row) for row in found.mappings()]


def _columns() -> list[sa.Column]:
    return [
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=True),
        sa.Column("licence", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
    ]
