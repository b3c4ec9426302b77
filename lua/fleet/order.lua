#!lua flags=allow-oom
-- order: leaves an order for a runtime that is noted, and calls it.
-- KEYS: seen zset, orders hash
-- ARGV: id, channel (of the runtime), name, value (another than before, where it is to be obeyed again)
-- Returns: 1 left | 0 no such runtime
-- Guards: I8
-- Repeat: no second effect
-- Cost: O(log n)
local seen, orders = KEYS[1], KEYS[2]
local id, channel, name, value = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local KEEP_MS = 86400000

redis.call('HLEN', orders)
if not redis.call('ZSCORE', seen, id) then
  return 0
end
redis.call('HSET', orders, name, value)
redis.call('PEXPIRE', orders, KEEP_MS)
redis.call('PUBLISH', channel, 'order\n')
return 1
