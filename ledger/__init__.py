"""What happened to every job: states, tables, and the statements that write and read them. Knows Postgres, and nothing of Dramatiq.

states     the seven states and every legal step between them, as data
tables     the schema, as alembic compares it
sql/       the hot statements
database   connections: a pool per process, private ones for threads that live on them
records    what goes in and out of the hot statements
write      enqueue, claim, finish, heartbeat, release, relay, rescue
read, job  the read path, and the frozen values it returns
forks      locks that are free in a forked child
version    where it is, and the migration this code needs
"""
