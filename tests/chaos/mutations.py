"""Bugs planted into the scripts, each of which the model must notice: who guards the guards."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from aioflow.engine import scripts


@dataclass(frozen=True)
class Mutation:
    """A line of a script that stands there once, and what a careless hand makes of it."""

    name: str
    file: str
    line: str
    instead: str


MUTATIONS = [
    Mutation(
        "settle without a fence",
        "queue/settle.lua",
        "  if row and string.sub(row, 1, #prefix) == prefix then",
        "  if row then",
    ),
    Mutation(
        "settle that lets any token of a job's hear its answer",
        "queue/settle.lua",
        "  if settled_by ~= token then",
        "  if false then",
    ),
    Mutation(
        "acknowledgement before the effects were checked",
        "queue/settle.lua",
        "    local refusal = effects[index] and refuse_effects(effects[index])",
        "    local refusal = nil",
    ),
    Mutation(
        "retry that forgets a failure",
        "queue/settle.lua",
        "        local counted = failures + (failed and 1 or 0)",
        "        local counted = failures",
    ),
    Mutation(
        "reap that leaves the old token valid",
        "queue/reap.lua",
        "    table.insert(new_rows, make_row('-', attempt, failures, crashes, place))",
        "    table.insert(new_rows, make_row(token, attempt, failures, crashes, place))",
    ),
    Mutation(
        "reap without the expected time",
        "queue/reap.lua",
        "local judges = math.abs(now_ms - expected_ms) <= TOLERANCE_MS",
        "local judges = expected_ms > 0",
    ),
    Mutation(
        "reap that sends a job to the end of the line",
        "queue/reap.lua",
        "    table.insert(places, whole(place))",
        "    table.insert(places, whole(now_ms))",
    ),
    Mutation(
        "claim that does not keep the place",
        "queue/claim.lua",
        "      row = make_row(token, attempt + 1, failures, crashes, place)",
        "      row = make_row(token, attempt + 1, failures, crashes, now_ms)",
    ),
    Mutation(
        "claim that takes the job out of the line last, and only the first",
        "queue/claim.lua",
        "  redis.call('ZREMRANGEBYRANK', ready, 0, claimed - 1)",
        "  redis.call('ZREMRANGEBYRANK', ready, 0, 0)",
    ),
    Mutation(
        "claim that rings for nobody",
        "queue/claim.lua",
        "if redis.call('ZCARD', ready) > 0 then\n  ring()\nend",
        "",
    ),
    Mutation(
        "relay that ignores the last sequence taken",
        "queue/relay.lua",
        "  if is_after(sequence, newest) then",
        "  if true then",
    ),
    Mutation(
        "renew by a stale token",
        "queue/renew.lua",
        "  if row and string.sub(row, 1, #token + 1) == token .. ':' then",
        "  if row then",
    ),
    Mutation(
        "release by a stale token",
        "queue/release.lua",
        "  elseif row and string.sub(row, 1, #token + 1) == token .. ':' then",
        "  elseif row then",
    ),
    Mutation(
        "release to the end of the line",
        "queue/release.lua",
        "      table.insert(places, whole(after > 0 and now_ms + after or place))",
        "      table.insert(places, whole(now_ms + after))",
    ),
    Mutation(
        "trim of a live record",
        "queue/trim.lua",
        "for finished, keep_ms in pairs({[done] = keep_done_ms, [dead] = keep_dead_ms}) do",
        "local live = string.gsub(done, 'done$', 'open')\n"
        "for finished, keep_ms in pairs({[done] = keep_done_ms, [dead] = keep_dead_ms, [live] = keep_dead_ms}) do",
    ),
    Mutation(
        "submit that takes the place of a job with the same id",
        "queue/submit.lua",
        "  local before = known[index] or taken[id]",
        "  local before = taken[id]",
    ),
    Mutation(
        "submit beyond the bound",
        "queue/submit.lua",
        "  elseif unfinished >= bound then",
        "  elseif unfinished > bound then",
    ),
    Mutation(
        "requeue by whoever asks",
        "queue/requeue.lua",
        "  elseif settled_by == token then",
        "  elseif settled_by then",
    ),
    Mutation(
        "cancel that ends a job under its holder",
        "queue/cancel.lua",
        "  elseif held[index] then",
        "  elseif false then",
    ),
]


def plant(mutation: Mutation, folder: Path) -> Path:
    """A copy of the scripts with one bug in it."""
    root = folder / "lua"
    shutil.copytree(scripts.script_root(), root)
    file = root / mutation.file
    source = file.read_text()
    assert source.count(mutation.line) == 1, f"{mutation.file} holds this {source.count(mutation.line)} times"
    file.write_text(source.replace(mutation.line, mutation.instead))
    return root
