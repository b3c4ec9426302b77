#!lua flags=allow-oom
-- reap: the maintenance of a queue: puts due jobs in line, takes expired leases away (back to the old place, or dead where the job has crashed its worker too often), and rings over a non-empty queue.
-- KEYS: ready zset, scheduled zset, running zset, started zset, open zset, done zset, dead zset, claims hash, results hash, waiters hash, cancels zset, history hash, totals hash, config hash, bell list, runners zset, outbox stream
-- ARGV: clock_ms (ms, 0: server time), expected_ms (ms: the time the caller believes it is, 0: judge no lease), limit (jobs, at most 1000), most_crashes (the crash that ends a job), longest_ms (ms: no lease may last longer from now on), runner (id of the runtime that calls, or empty: it is noted as alive)
-- Returns: {now ms, promoted jobs, runners, rank of the runner by its id or -1, entries in the outbox, then, unless no lease was judged: next deadline ms or 0, reaped jobs, dead jobs}; no lease is judged where the clock is over a second off what was expected
-- Guards: I1 I2 I3 I4 I8 I9
-- Repeat: no second effect
-- Cost: O(log n) per due job, expired lease and runner that is gone, and O(1) per runner
local ready, scheduled, running, started, open, done, dead, claims, results, waiters, cancels, history, totals, config, bell, runners, outbox = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13], KEYS[14], KEYS[15], KEYS[16], KEYS[17]
local clock_ms, expected_ms, limit, most_crashes, longest_ms, runner = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local TOLERANCE_MS, NOTE_MS, GONE_MS = 1000, 10000, 30000

if limit < 1 or limit > 1000 then
  return redis.error_reply('PROTOCOL reap takes 1 to 1000 jobs')
end
--@include clock
--@include number
--@include bell
--@include row
--@include finish
--@include history
--@include promote

-- After a step of the clock, a stall or a failover a deadline says nothing about its holder: let the holders renew first.
local judges = math.abs(now_ms - expected_ms) <= TOLERANCE_MS
local expired = judges and redis.call('ZRANGEBYSCORE', running, '-inf', now_ms, 'LIMIT', 0, limit) or {}
local submitted, starts, rows, histories = {}, {}, {}, {}
if #expired > 0 then
  rows = redis.call('HMGET', claims, unpack(expired))
  submitted = redis.call('ZMSCORE', open, unpack(expired))
  starts = redis.call('ZMSCORE', started, unpack(expired))
  histories = redis.call('HMGET', history, unpack(expired))
end
local wishes = cancel_wishes(expired)
local waiting_out = redis.call('XLEN', outbox)
redis.call('ZCARD', runners)
redis.call('ZCARD', ready)
redis.call('ZCARD', done)
redis.call('ZCARD', dead)
redis.call('HLEN', results)
redis.call('HLEN', waiters)
redis.call('HLEN', totals)
redis.call('LLEN', bell)
local paused = redis.call('HGET', config, 'paused') == '1'

local reaped, places, new_rows, lines = {}, {}, {}, {}
for index, id in ipairs(expired) do
  local token, attempt, failures, crashes, place = parse_row(rows[index] or '', id)
  crashes = crashes >= WAITING and crashes - WAITING or crashes + 1
  local runtime = string.match(token, '^[^.]*')
  if wishes[index] then
    finish(id, 'dead', make_row('crash/' .. token, attempt, failures, crashes, place), submitted[index], starts[index], CANCELLED)
  elseif crashes >= most_crashes then
    local message = 'lease expired ' .. crashes .. ' times'
    local reason = cjson.encode({error = 'Crashed', message = message, attempt = attempt, worker = runtime})
    finish(id, 'dead', make_row('crash/' .. token, attempt, failures, crashes, place), submitted[index], starts[index], reason)
  else
    table.insert(reaped, id)
    table.insert(places, whole(place))
    table.insert(places, id)
    table.insert(new_rows, id)
    table.insert(new_rows, make_row('-', attempt, failures, crashes, place))
    table.insert(lines, id)
    local failure = cjson.encode({error = 'Crashed', message = 'its lease expired', attempt = attempt, worker = runtime})
    table.insert(lines, longer_history(histories[index], failure))
  end
end
-- Checks rows of its own before it writes, so it is the first to write.
local promoted = promote(limit)
-- The row goes first: it takes the old token's power away.
if #reaped > 0 then
  redis.call('HSET', claims, unpack(new_rows))
  redis.call('HSET', history, unpack(lines))
  redis.call('ZADD', ready, unpack(places))
  redis.call('ZREM', running, unpack(reaped))
  redis.call('ZREM', started, unpack(reaped))
  redis.call('HINCRBY', totals, 'reaped', #reaped)
end
write_finished()

-- The clock went back, or somebody leased for longer than this queue allows: no deadline lies beyond now + longest.
local beyond = judges and redis.call('ZREVRANGEBYSCORE', running, '+inf', '(' .. whole(now_ms + longest_ms), 'LIMIT', 0, limit) or {}
if #beyond > 0 then
  local cut = {}
  for _, id in ipairs(beyond) do
    table.insert(cut, now_ms + longest_ms)
    table.insert(cut, id)
  end
  redis.call('ZADD', running, 'XX', unpack(cut))
end
if not paused and redis.call('ZCARD', ready) > 0 then
  ring()
end
if runner ~= '' and now_ms - (redis.call('ZSCORE', runners, runner) or 0) > NOTE_MS then
  redis.call('ZADD', runners, now_ms, runner)
  local gone = redis.call('ZRANGEBYSCORE', runners, '-inf', now_ms - GONE_MS - 1000 * redis.call('ZCARD', runners), 'LIMIT', 0, limit)
  if #gone > 0 then
    redis.call('ZREM', runners, unpack(gone))
  end
end
tell_waiters()
-- By their ids, not by when they were last seen: a runtime's turn must not move each time that one is noted.
local rank, known = 0, redis.call('ZRANGE', runners, 0, limit - 1)
for _, other in ipairs(known) do
  rank = rank + (other < runner and 1 or 0)
end
local answer = {now_ms, promoted, #known, runner == '' and -1 or rank, waiting_out}
if judges then
  table.insert(answer, redis.call('ZRANGE', running, 0, 0, 'WITHSCORES')[2] or '0')
  table.insert(answer, #reaped)
  table.insert(answer, #ended)
end
return answer
