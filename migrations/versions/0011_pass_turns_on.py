"""Pass a turn for a slot on when its holder goes to wait for something else, as it is decided.

Lock cost: a function is exchanged in a moment.
Deploy: before or after the code, which calls it as before.
"""

from __future__ import annotations

from typing import Final

from alembic import op

from migrations.functions_0009 import ADMIT

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

#: What becomes of the function as of 0009: each text, and what stands in its place.
CHANGES: Final = (
    (
        "-- more: something was left that may run. ",
        "-- A turn for a slot whose holder has to wait for something else is passed on at once.\n"
        "-- more: something was left that may run. ",
    ),
    (
        "    promised_versions bigint[] := '{}';\n",
        "    promised_versions bigint[] := '{}';\n    passed_on text[] := '{}';\n",
    ),
    ("    lined boolean[];\n", "    lined boolean[];\n    turned boolean[];\n"),
    (
        "                WHERE j.blocked_on = g.key AND j.state = 'scheduled'\n            ) OR EXISTS (\n",
        "                WHERE j.blocked_on = g.key AND j.state = 'scheduled'\n"
        "            )\n"
        "            ORDER BY g.key\n"
        "        ),\n"
        "        array_agg(\n"
        "            EXISTS (\n",
    ),
    ("    INTO slot_limit, used, lined, slot_left\n", "    INTO slot_limit, used, lined, turned, slot_left\n"),
    (
        "        -- A slot is taken before a rate. Where there is a line, only who was woken from it comes before its end.\n"
        "        blocked := CASE\n"
        "            WHEN used[s] >= slot_limit[s] OR (lined[s] AND slot_limit[s] > 0 AND job_line[i] IS DISTINCT FROM slots[s]) THEN s\n"
        "            WHEN used[queue_at] >= queue_limit OR (lined[queue_at] AND job_line[i] IS DISTINCT FROM queue_key) THEN queue_at\n"
        "        END;\n",
        "        -- A slot is taken before a rate. Where there is a line, only who was woken from it comes before its end,\n"
        "        -- and who was promised a time, which he was before it formed; nobody comes before a turn that is out.\n"
        "        blocked := CASE\n"
        "            WHEN used[s] >= slot_limit[s] OR (\n"
        "                slot_limit[s] > 0 AND job_line[i] IS DISTINCT FROM slots[s]\n"
        "                AND (turned[s] OR (lined[s] AND job_promise[i] IS NULL))\n"
        "            ) THEN s\n"
        "            WHEN used[queue_at] >= queue_limit OR (\n"
        "                job_line[i] IS DISTINCT FROM queue_key\n"
        "                AND (turned[queue_at] OR (lined[queue_at] AND job_promise[i] IS NULL))\n"
        "            ) THEN queue_at\n"
        "        END;\n",
    ),
    (
        "            blocked_keys := blocked_keys || slots[blocked];\n",
        "            blocked_keys := blocked_keys || slots[blocked];\n"
        "            IF job_line[i] <> slots[blocked] THEN\n"
        "                passed_on := passed_on || job_line[i];\n"
        "            END IF;\n",
    ),
    (
        "                soonest := least(soonest, slot);\n",
        "                soonest := least(soonest, slot);\n"
        "                IF job_line[i] IS NOT NULL THEN\n"
        "                    passed_on := passed_on || job_line[i];\n"
        "                END IF;\n",
    ),
    (
        "                WHEN n.back THEN n.line\n"
        "                ELSE n.first + sum(CASE WHEN n.back THEN 0 ELSE 1 / n.weight END)"
        " OVER (PARTITION BY n.key, n.flow ORDER BY n.place)\n",
        "                WHEN n.back THEN n.line\n"
        "                -- Who has had his turn is the first, when his time comes while all slots are taken.\n"
        "                WHEN n.promised THEN n.clock\n"
        "                ELSE n.first + sum(CASE WHEN n.back OR n.promised THEN 0 ELSE 1 / n.weight END)\n"
        "                    OVER (PARTITION BY n.key, n.flow ORDER BY n.place)\n",
    ),
    (
        "                coalesce(w.blocked_on = u.key, false) AS back,\n",
        "                coalesce(w.blocked_on = u.key, false) AS back, w.reserved_version IS NOT NULL AS promised, g.clock,\n",
    ),
    (
        "    WHERE g.kind = 'slot' AND g.key = ANY(slots) AND g.used_at < moment - interval '10 minutes';\n",
        "    WHERE g.kind = 'slot' AND g.key = ANY(slots) AND g.used_at < moment - interval '10 minutes';\n"
        "    -- Of those alone whose gates are held, by the order of locks; those of a limit that is gone a keeper finds.\n"
        "    passed_on := ARRAY(SELECT DISTINCT p.key FROM unnest(passed_on) AS p (key) WHERE p.key = ANY(slots));\n"
        "    IF passed_on <> '{}' THEN\n"
        "        more := switchyard.wake_waiters(passed_on) > 0 OR more;\n"
        "    END IF;\n",
    ),
)


def _changed(text: str) -> str:
    for old, new in CHANGES:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def upgrade() -> None:
    # As it is: alembic would take what follows a colon for a parameter.
    op.get_bind().exec_driver_sql(_changed(ADMIT))


def downgrade() -> None:
    op.get_bind().exec_driver_sql(ADMIT)
