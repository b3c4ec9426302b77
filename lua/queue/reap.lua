#!lua flags=allow-oom
-- reap: takes expired leases away: back to the old place, or dead where the job has crashed its worker too often.
-- KEYS: ready zset, running zset, started zset, open zset, done zset, dead zset, claims hash, results hash, waiters hash, totals hash, config hash, bell list
-- ARGV: clock_ms (ms, 0: server time), expected_ms (ms: the time the caller believes it is), limit (jobs, at most 1000), most_crashes (the crash that ends a job), longest_ms (ms: no lease may last longer from now on)
-- Returns: {now ms, next deadline ms or 0, reaped jobs, dead jobs}, or {now ms} alone where the clock is over a second off what was expected
-- Guards: I1 I2 I3 I4 I8 I9
-- Repeat: no second effect
-- Cost: O(log n) per expired lease
local ready, running, started, open, done, dead, claims, results, waiters, totals, config, bell = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local clock_ms, expected_ms, limit, most_crashes, longest_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local TOLERANCE_MS = 1000

if limit < 1 or limit > 1000 then
  return redis.error_reply('PROTOCOL reap takes 1 to 1000 jobs')
end
--@include clock
--@include number
--@include bell
--@include row
--@include finish

-- After a step of the clock, a stall or a failover a deadline says nothing about its holder: let the holders renew first.
if math.abs(now_ms - expected_ms) > TOLERANCE_MS then
  return {now_ms}
end

local expired = redis.call('ZRANGEBYSCORE', running, '-inf', now_ms, 'LIMIT', 0, limit)
local submitted, starts, rows = {}, {}, {}
if #expired > 0 then
  rows = redis.call('HMGET', claims, unpack(expired))
  submitted = redis.call('ZMSCORE', open, unpack(expired))
  starts = redis.call('ZMSCORE', started, unpack(expired))
end
redis.call('ZCARD', ready)
redis.call('ZCARD', done)
redis.call('ZCARD', dead)
redis.call('HLEN', results)
redis.call('HLEN', waiters)
redis.call('HLEN', totals)
redis.call('LLEN', bell)
local paused = redis.call('HGET', config, 'paused') == '1'

local reaped, places, new_rows = {}, {}, {}
for index, id in ipairs(expired) do
  local token, attempt, failures, crashes, place = parse_row(rows[index] or '', id)
  crashes = crashes >= WAITING and crashes - WAITING or crashes + 1
  if crashes >= most_crashes then
    local reason = cjson.encode({error = 'Crashed', message = 'lease expired ' .. crashes .. ' times'})
    finish(id, 'dead', make_row('crash/' .. token, attempt, failures, crashes, place), submitted[index], starts[index], reason)
  else
    table.insert(reaped, id)
    table.insert(places, whole(place))
    table.insert(places, id)
    table.insert(new_rows, id)
    table.insert(new_rows, make_row('-', attempt, failures, crashes, place))
  end
end
-- The row goes first: it takes the old token's power away.
if #reaped > 0 then
  redis.call('HSET', claims, unpack(new_rows))
  redis.call('ZADD', ready, unpack(places))
  redis.call('ZREM', running, unpack(reaped))
  redis.call('ZREM', started, unpack(reaped))
  redis.call('HINCRBY', totals, 'reaped', #reaped)
end
write_finished()

-- The clock went back, or somebody leased for longer than this queue allows: no deadline lies beyond now + longest.
local beyond = redis.call('ZREVRANGEBYSCORE', running, '+inf', '(' .. whole(now_ms + longest_ms), 'LIMIT', 0, limit)
if #beyond > 0 then
  local cut = {}
  for _, id in ipairs(beyond) do
    table.insert(cut, now_ms + longest_ms)
    table.insert(cut, id)
  end
  redis.call('ZADD', running, 'XX', unpack(cut))
end
if #reaped > 0 and not paused then
  ring()
end
tell_waiters()
return {now_ms, redis.call('ZRANGE', running, 0, 0, 'WITHSCORES')[2] or '0', #reaped, #ended}
