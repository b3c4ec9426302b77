#!lua flags=allow-oom
-- promote: puts due jobs in line and rings a silent bell over a non-empty queue; the half of maintenance that is always safe.
-- KEYS: ready zset, scheduled zset, claims hash, config hash, bell list
-- ARGV: clock_ms (ms, 0: server time), limit (jobs, at most 1000)
-- Returns: {now ms, next due ms or 0, promoted jobs}
-- Guards: I1 I4 I8 I9
-- Repeat: no second effect
-- Cost: O(log n) per due job
local ready, scheduled, claims, config, bell = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local clock_ms, limit = ARGV[1], tonumber(ARGV[2])

if limit < 1 or limit > 1000 then
  return redis.error_reply('PROTOCOL promote takes 1 to 1000 jobs')
end
--@include clock
--@include number
--@include bell
--@include row
--@include promote

redis.call('ZCARD', ready)
redis.call('LLEN', bell)
local paused = redis.call('HGET', config, 'paused') == '1'
local promoted = promote(limit)
if not paused and redis.call('ZCARD', ready) > 0 then
  ring()
end
return {now_ms, next_due(), promoted}
