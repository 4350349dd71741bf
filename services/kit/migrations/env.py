"""What Alembic runs to upgrade a schema, with the connection that `services.kit.migrate` gives it."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table_schema=context.config.attributes["schema"],
    # A revision that fails leaves those before it in place, and the version row true.
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
