"""What people do to jobs beyond sending them: one module per subject, thin over the ledger, and re-exported by ``switchyard``.

Each verb is a plain function that any process may call: a web app, a script, the command line, the dashboard. None needs a worker in its
process. ``access`` leads to the database and the broker of whoever configured this process.
"""
