#!lua flags=allow-oom
-- pause: stops a queue from being claimed, or lets it go on and rings over what waits.
-- KEYS: ready zset, scheduled zset, config hash, bell list
-- ARGV: paused (1: stop, 0: go on)
-- Returns: 1 changed | 0 was so already
-- Guards: I8
-- Repeat: no second effect
-- Cost: O(1)
local ready, scheduled, config, bell = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local paused = ARGV[1]
--@include bell

local was = redis.call('HGET', config, 'paused') or '0'
local waiting = redis.call('ZCARD', ready) + redis.call('ZCARD', scheduled)
redis.call('LLEN', bell)
if paused == '1' then
  redis.call('HSET', config, 'paused', '1')
  -- The token in the bell is left to whoever takes it: a claim of a paused queue finds nothing and rings nothing.
else
  redis.call('HDEL', config, 'paused')
  -- Also over what is only scheduled: a claim while the queue was paused has told nobody when to look again.
  if waiting > 0 then
    ring()
  end
end
return was ~= paused and 1 or 0
