#!lua flags=allow-oom
-- trim: forgets finished jobs whose retention has ended, by age only.
-- KEYS: jobs hash, results hash, history hash, progress hash, done zset, dead zset, totals hash
-- ARGV: clock_ms (ms, 0: server time), limit (jobs per outcome, at most 1000), keep_done_ms (ms), keep_dead_ms (ms)
-- Returns: {now ms, forgotten jobs}
-- Guards: I1 I7 I8
-- Repeat: no second effect
-- Cost: O(log n) per forgotten job
local jobs, results, history, progress, done, dead, totals = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local clock_ms, limit, keep_done_ms, keep_dead_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

if limit < 1 or limit > 1000 then
  return redis.error_reply('PROTOCOL trim takes 1 to 1000 jobs')
end
--@include clock
--@include number

redis.call('HLEN', jobs)
redis.call('HLEN', results)
local described = redis.call('HLEN', history) + redis.call('HLEN', progress) > 0
redis.call('HLEN', totals)
redis.call('ZCARD', done)
redis.call('ZCARD', dead)
local forgotten = 0
for finished, keep_ms in pairs({[done] = keep_done_ms, [dead] = keep_dead_ms}) do
  local old = redis.call('ZRANGEBYSCORE', finished, '-inf', '(' .. whole(now_ms - keep_ms), 'LIMIT', 0, limit)
  if #old > 0 then
    redis.call('HDEL', results, unpack(old))
    redis.call('HDEL', jobs, unpack(old))
    if described then
      redis.call('HDEL', history, unpack(old))
      redis.call('HDEL', progress, unpack(old))
    end
    redis.call('ZREM', finished, unpack(old))
    forgotten = forgotten + #old
  end
end
if forgotten > 0 then
  redis.call('HINCRBY', totals, 'trimmed', forgotten)
end
return {now_ms, forgotten}
