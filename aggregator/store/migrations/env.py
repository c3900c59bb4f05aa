"""Run by Alembic: migrate on the connection that `aggregator.store.migrations.migrate` was given."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
